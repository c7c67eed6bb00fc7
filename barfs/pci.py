# SPDX-License-Identifier: MIT
"""Names and structures of PCI: addresses, VFIO region names, the configuration space.

Rule 1: pure; bytes and text in, values out.
Rule 2: a configuration space comes from a device, so trust nothing in it: a capability list may
        loop, leave the space, or lie. A field that cannot be read is absent, never an exception.

Layouts are those of the PCI Local Bus Specification 3.0, chapter 6, and `linux/pci_regs.h`.
"""

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from barfs.errors import UsageError
from barfs.text import quoted

BAR_COUNT = 6
ROM_INDEX = 6
CONFIG_INDEX = 7
VGA_INDEX = 8
FIRST_DEVICE_SPECIFIC_INDEX = 9

CONFIG_HEADER_SIZE = 64
CONFIG_SIZE = 256
CONFIG_SIZE_EXPRESS = 4096

COMMAND_IO = 0x1
COMMAND_MEMORY = 0x2

_BAR0 = 0x10
_SUBSYSTEM = 0x2C
_ROM_BAR = {0: 0x30, 1: 0x38}
_BAR_COUNT_BY_HEADER = {0: 6, 1: 2}
_CAPABILITY_POINTER = 0x34
_STATUS = 0x06
_STATUS_CAPABILITY_LIST = 0x10
_CAPABILITY_MSIX = 0x11
_MSIX_ENTRY_SIZE = 16
_MSIX_FIELDS = struct.Struct("<HII")
_INTERRUPT_LINE = 0x3C

# linux/ioport.h, as sysfs prints them in `resource`.
_IORESOURCE_IO = 0x00000100
_IORESOURCE_MEM = 0x00000200
_IORESOURCE_PREFETCH = 0x00002000
_IORESOURCE_READONLY = 0x00004000
_IORESOURCE_SIZEALIGN = 0x00040000
_IORESOURCE_MEM_64 = 0x00100000
_RESOURCE_LINES = 13

_NAMES = {ROM_INDEX: "rom", CONFIG_INDEX: "config", VGA_INDEX: "vga"}
_INDEXES = {name: index for index, name in _NAMES.items()}

_BDF = re.compile(
    r"(?:([0-9a-f]{4,8})([:-]))?([0-9a-f]{2})(?(2)\2|[:-])([0-9a-f]{2})\.([0-7])",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True, slots=True, order=True)
class Bdf:
    """The address of a PCI function: domain, bus, device (0-31), function (0-7)."""

    domain: int
    bus: int
    device: int
    function: int

    def __post_init__(self) -> None:
        # 32-bit domains exist: Hyper-V and VMD make them above 0xffff.
        for value, limit in (
            (self.domain, 1 << 32),
            (self.bus, 256),
            (self.device, 32),
            (self.function, 8),
        ):
            if not 0 <= value < limit:
                raise UsageError(f"{self} is not the address of a PCI function")

    @classmethod
    def parse(cls, text: str) -> "Bdf":
        """Read `dddd:bb:dd.f` or `bb:dd.f` (domain 0), also with `-` in place of each `:`.

        Raises UsageError for any other text.
        """
        match = _BDF.fullmatch(text)
        if match is None:
            raise UsageError(f"{quoted(text)} is not a PCI address; write it like 0000:01:00.0")
        domain, _separator, bus, device, function = match.groups(default="0")
        return cls(int(domain, 16), int(bus, 16), int(device, 16), int(function))

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}.{self.function}"

    @property
    def flat(self) -> str:
        """The address without a colon, which some tools take for the end of a host or a device."""
        return str(self).replace(":", "-")


def region_name(index: int) -> str:
    """The file name of a VFIO region: `bar0`..`bar5`, `rom`, `config`, `vga`, `region9`..."""
    if index < BAR_COUNT:
        return f"bar{index}"
    return _NAMES.get(index, f"region{index}")


def region_index(name: str) -> int:
    """The VFIO index of a region's file name. Raises UsageError for a name that is none."""
    if name in _INDEXES:
        return _INDEXES[name]
    match = re.fullmatch(r"bar([0-5])|region([1-9][0-9]{0,8})", name, re.ASCII)
    if match is not None:
        index = int(match[1] or match[2])
        if match[1] or index >= FIRST_DEVICE_SPECIFIC_INDEX:
            return index
    raise UsageError(
        f"{quoted(name)} is not a region; regions are bar0..bar5, rom, config, region9..."
    )


@dataclass(frozen=True, slots=True)
class Bar:
    """A base address register as the configuration space shows it; `address` 0 is unassigned."""

    index: int
    kind: Literal["io", "mem32", "mem64"]
    prefetchable: bool
    address: int


@dataclass(frozen=True, slots=True)
class MsixCapability:
    """The places of the MSI-X table and the pending bits: BAR numbers, offsets in bytes."""

    vectors: int
    table_bar: int
    table_offset: int
    pba_bar: int
    pba_offset: int

    @property
    def table_size(self) -> int:
        return self.vectors * _MSIX_ENTRY_SIZE

    @property
    def pba_size(self) -> int:
        return (self.vectors + 63) // 64 * 8


class Data(Protocol):
    """Bytes in memory, or bytes that are read when they are looked at."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> bytes: ...


class ReadOnDemand:
    """The first `size` bytes of what `read(offset, count)` reads.

    The first `head` are read at once, each 4 of the others when they are looked at. Where a read
    gives fewer, nothing after the head is there: the device would fail the next ones, too.
    """

    def __init__(self, read: Callable[[int, int], bytes], head: int, size: int) -> None:
        self._read = read
        self._head = read(0, head)
        self._size = size if len(self._head) == head else len(self._head)
        self._found: dict[int, bytes] = {}

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice, /) -> bytes:
        start, end, _step = part.indices(self._size)
        if end <= len(self._head):
            return self._head[start:end]
        first = start & ~3
        data = b"".join(map(self._at, range(first, end, 4)))
        return data[start - first : end - first]

    def _at(self, offset: int) -> bytes:
        if offset < len(self._head):
            return self._head[offset : offset + 4]
        if offset not in self._found and offset < self._size:
            self._found[offset] = self._read(offset, 4)
            if len(self._found[offset]) < 4:
                self._size = len(self._head)
        return self._found.get(offset, b"")


class ConfigSpace:
    """A snapshot of a function's configuration space, of any length; what is missing reads as 0."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def _value(self, offset: int, width: int) -> int:
        return int.from_bytes(self.data[offset : offset + width], "little")

    @property
    def vendor(self) -> int:
        return self._value(0, 2)

    @property
    def device(self) -> int:
        return self._value(2, 2)

    @property
    def revision(self) -> int:
        return self._value(8, 1)

    @property
    def class_code(self) -> int:
        """Base class, subclass and programming interface, 24 bits."""
        return self._value(9, 3)

    @property
    def header_type(self) -> int:
        """0: an ordinary function; 1: a bridge (the multi-function bit is left out)."""
        return self._value(0x0E, 1) & 0x7F

    @property
    def subsystem_vendor(self) -> int:
        return self._value(_SUBSYSTEM, 2) if self.header_type == 0 else 0

    @property
    def subsystem_device(self) -> int:
        return self._value(_SUBSYSTEM + 2, 2) if self.header_type == 0 else 0

    @property
    def interrupt_line(self) -> int:
        return self._value(_INTERRUPT_LINE, 1)

    @property
    def rom_address(self) -> int:
        """The address in the expansion ROM register, 0 where there is none or it is unassigned."""
        offset = _ROM_BAR.get(self.header_type)
        return 0 if offset is None else self._value(offset, 4) & ~0x7FF

    def bars(self) -> dict[int, Bar]:
        """The base address registers by number; the upper half of a 64-bit one has no entry."""
        found: dict[int, Bar] = {}
        index = 0
        while index < _BAR_COUNT_BY_HEADER.get(self.header_type, 0):
            low = self._value(_BAR0 + 4 * index, 4)
            if low & 1:
                bar = Bar(index, "io", False, low & ~0x3)
            elif low & 0x6 == 0x4:
                high = self._value(_BAR0 + 4 * index + 4, 4)
                bar = Bar(index, "mem64", bool(low & 8), (high << 32) | (low & ~0xF))
            else:
                bar = Bar(index, "mem32", bool(low & 8), low & ~0xF)
            found[index] = bar
            index += 2 if bar.kind == "mem64" else 1
        return found

    def capabilities(self) -> Iterator[tuple[int, int]]:
        """The standard capabilities as (id, offset) in list order; a loop or a bad link ends it."""
        if not self._value(_STATUS, 2) & _STATUS_CAPABILITY_LIST:
            return
        seen: set[int] = set()
        offset = self._value(_CAPABILITY_POINTER, 1) & ~3
        while offset >= 0x40 and offset not in seen and offset + 2 <= len(self.data):
            seen.add(offset)
            yield self._value(offset, 1), offset
            offset = self._value(offset + 1, 1) & ~3

    def msix(self) -> MsixCapability | None:
        """The MSI-X capability, or None. Its BARs and offsets are the device's, unchecked."""
        for identifier, offset in self.capabilities():
            fields = self.data[offset + 2 : offset + 12] if identifier == _CAPABILITY_MSIX else b""
            if len(fields) == _MSIX_FIELDS.size:
                control, table, pba = _MSIX_FIELDS.unpack(fields)
                return MsixCapability(
                    vectors=(control & 0x7FF) + 1,
                    table_bar=table & 7,
                    table_offset=table & ~7,
                    pba_bar=pba & 7,
                    pba_offset=pba & ~7,
                )
        return None


def sysfs_attributes(config: ConfigSpace, sizes: Mapping[int, int]) -> dict[str, str]:
    """The text files that sysfs shows for a function, by name.

    `sizes` gives the size in bytes of each region that exists, by VFIO index. Formats are those of
    `drivers/pci/pci-sysfs.c`, so that pciutils can read them.
    """
    return {
        "vendor": f"0x{config.vendor:04x}\n",
        "device": f"0x{config.device:04x}\n",
        "class": f"0x{config.class_code:06x}\n",
        "revision": f"0x{config.revision:02x}\n",
        "subsystem_vendor": f"0x{config.subsystem_vendor:04x}\n",
        "subsystem_device": f"0x{config.subsystem_device:04x}\n",
        "irq": f"{config.interrupt_line}\n",
        "resource": _resource_text(config, sizes),
    }


def _resource_text(config: ConfigSpace, sizes: Mapping[int, int]) -> str:
    bars = config.bars()
    lines = []
    for index in range(_RESOURCE_LINES):
        start = flags = 0
        if index in bars and sizes.get(index, 0):
            start, flags = bars[index].address, _bar_flags(bars[index])
        elif index == ROM_INDEX and sizes.get(index, 0):
            start = config.rom_address
            flags = _IORESOURCE_MEM | _IORESOURCE_READONLY | _IORESOURCE_SIZEALIGN
        end = start + sizes[index] - 1 if flags else 0
        lines.append(f"0x{start:016x} 0x{end:016x} 0x{flags:016x}\n")
    return "".join(lines)


def _bar_flags(bar: Bar) -> int:
    if bar.kind == "io":
        return _IORESOURCE_IO | 0x1 | _IORESOURCE_SIZEALIGN
    flags = _IORESOURCE_MEM | _IORESOURCE_SIZEALIGN
    if bar.kind == "mem64":
        flags |= _IORESOURCE_MEM_64 | 0x4
    if bar.prefetchable:
        flags |= _IORESOURCE_PREFETCH | 0x8
    return flags
