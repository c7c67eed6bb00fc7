# SPDX-License-Identifier: MIT
"""Reading and writing single registers, through a file in a mount or an opened device.

A FILE is the path of a region in a mount (any other file that `pread` works on will do), or
`DEVICE:REGION`, like `0000:01:00.0:bar0`: the barfs mount that holds the device, or else the device
itself, opened.

Rule 1: `read` and `write` make one access of their width, never repeat it and read nothing back.
Rule 2: a request that exceeds the region, is misaligned, or is wider than its segment allows is
        refused before the first access. The widths in a mounted file are those of its layout.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from barfs.attached.mounts import FSTYPE, find_device
from barfs.cli.edge import tell
from barfs.errors import BarfsError, UsageError
from barfs.host.mountinfo import mounts
from barfs.layout import NARROW_WIDTH, Layout, Segment
from barfs.pci import region_index
from barfs.ranges import parse_number
from barfs.text.system_errors import reason
from barfs.widths import in_words

if TYPE_CHECKING:
    from barfs.device import Device
    from barfs.engine import Table
    from barfs.opening import DeviceName
    from barfs.region import Region

WIDTHS = {"b": 1, "w": 2, "l": 4, "q": 8}
"""The options for the width of a register, and their widths in bytes."""

_LETTER = {width: letter for letter, width in WIDTHS.items()}


class RegisterError(BarfsError):
    """An access to a register has failed."""


class Registers(Protocol):
    """A range of little-endian registers, `size` bytes long.

    `places` are its segments in order, each with the widest access that it allows.
    """

    @property
    def size(self) -> int: ...

    @property
    def places(self) -> tuple[Segment, ...]: ...

    def read(self, offset: int, width: int) -> int:
        """One access of `width` bytes (1, 2, 4, 8). Raises BarfsError."""

    def write(self, offset: int, width: int, value: int) -> None:
        """One access, like `read`."""


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    fd: int
    size: int
    places: tuple[Segment, ...]

    def read(self, offset: int, width: int) -> int:
        try:
            data = os.pread(self.fd, width, offset)
        except OSError as error:
            raise self._error("read", offset, width, os.strerror(error.errno or 0)) from error
        if len(data) != width:
            raise self._error("read", offset, width, f"got only {len(data)} bytes")
        return int.from_bytes(data, "little")

    def write(self, offset: int, width: int, value: int) -> None:
        try:
            done = os.pwrite(self.fd, value.to_bytes(width, "little"), offset)
        except OSError as error:
            raise self._error("write", offset, width, os.strerror(error.errno or 0)) from error
        if done != width:
            raise self._error("write", offset, width, f"wrote only {done} bytes")

    def _error(self, what: str, offset: int, width: int, reason: str) -> RegisterError:
        return RegisterError(f"{self.path}: {what} of {width} bytes at {offset:#x}: {reason}")


@dataclass(frozen=True, slots=True)
class _Region:
    region: "Region"
    table: "Table"

    @property
    def size(self) -> int:
        return self.region.size

    @property
    def places(self) -> tuple[Segment, ...]:
        return self.region.layout.segments

    def read(self, offset: int, width: int) -> int:
        return self.table.load(offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        self.table.store(offset, width, value)


@dataclass(frozen=True, slots=True)
class RegionFile:
    """A FILE argument, resolved: a path, or a device that is not mounted and one of its regions."""

    text: str
    path: Path | None
    device: "DeviceName | None" = None
    region: str = ""
    opened: "Device | None" = None

    @classmethod
    def find(cls, text: str) -> "RegionFile":
        """Resolve a FILE argument. Raises UsageError for a text that is neither."""
        if os.path.exists(text):
            return cls(text, Path(text))
        from barfs.opening import DeviceName

        name, colon, region = text.rpartition(":")
        try:
            if not colon:
                raise UsageError("no region")
            region_index(region)
            device = DeviceName.parse(name)
        except UsageError:
            raise UsageError(
                f"{text} must be a file or DEVICE:REGION, like 0000:01:00.0:bar0"
            ) from None
        directory = find_device(device.source)
        if directory is None:
            return cls(text, None, device, region)
        if not (directory / region).exists():
            raise UsageError(f"{device.source} has no {region}; see {directory}")
        return cls(text, directory / region)

    @contextlib.contextmanager
    def held(self) -> Iterator["RegionFile"]:
        """The same, with its device open, for all uses within the block. Raises DeviceError."""
        if self.device is None or self.opened is not None:
            yield self
            return
        with _open_device(self.device) as device:
            yield replace(self, opened=device)

    @contextlib.contextmanager
    def open(self, flags: int) -> Iterator[Registers]:
        """Open it with `os.O_RDONLY`, `os.O_WRONLY` or `os.O_RDWR`.

        Raises UsageError, DeviceError, RegisterError.
        """
        if self.device is not None:
            from barfs.region import table_of

            with self.held() as held:
                assert held.opened is not None
                region = held.opened[self.region]
                yield _Region(region, table_of(region))
            return
        assert self.path is not None
        try:
            fd = os.open(self.path, flags | os.O_CLOEXEC)
        except OSError as error:
            raise RegisterError(f"{self.path}: {reason(error)}") from error
        try:
            yield _File(str(self.path), fd, _size(self.path, fd), places_of(self.path))
        finally:
            os.close(fd)


def _open_device(name: "DeviceName") -> "Device":
    from barfs.daemon.logs import log_to_stderr
    from barfs.opening import open_implicitly

    log_to_stderr()
    return open_implicitly(name, tell)


def _size(path: Path, fd: int) -> int:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{path} is not a file of registers; name a region's file, like .../bar0")
    return status.st_size


_CUT_BY_KERNEL = ("sysfs", "proc")
"""File systems in which the kernel splits accesses to configuration space after 4 bytes
(drivers/pci/pci-sysfs.c, pci_read_config; drivers/pci/proc.c, proc_bus_pci_read)."""


def places_of(path: Path) -> tuple[Segment, ...]:
    """The segments of a file, each with the widest access that it allows.

    Touches no device. Empty for a file that is not a device's. Raises BarfsError.
    """
    status = os.stat(path)
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    here = [entry for entry in mounts() if entry.device == device]
    narrow = (Segment(0, max(status.st_size, 1), "pread", "rw", NARROW_WIDTH),)
    if any(entry.fstype in _CUT_BY_KERNEL for entry in here):
        return narrow
    if not any(entry.fstype == FSTYPE for entry in here):
        return ()
    beside = Path(f"{os.path.realpath(path)}.layout")
    layout = _layout_of(status, [beside])
    if layout is None:  # the path is a bind mount of this file alone
        roots = [entry.mountpoint for entry in here]
        patterns = ("bus/*/*.layout", "*/*.layout", "*.layout")
        found = (file for root in roots for pattern in patterns for file in root.glob(pattern))
        layout = _layout_of(status, found)
    return narrow if layout is None else layout.segments


def _layout_of(region: os.stat_result, files: Iterable[Path]) -> Layout | None:
    """The layout of a region among the files, found by inode number (`barfs.fuse.tree`)."""
    for file in files:
        with contextlib.suppress(OSError):
            status = file.stat()
            if (status.st_dev, status.st_ino) == (region.st_dev, region.st_ino + 1):
                return Layout.from_text(file.read_text())
    return None


@dataclass(frozen=True, slots=True)
class Bits:
    """Bits `high` down to `low` of a register, both inclusive, as in `0x10[15:8]`."""

    high: int
    low: int

    @property
    def mask(self) -> int:
        return (1 << self.high + 1) - (1 << self.low)

    def check(self, text: str, width: int) -> None:
        """Raises UsageError for bits, typed as `text`, that a register of this width has not."""
        if not self.low <= self.high < 8 * width:
            raise UsageError(f"{text}: a register of {width} bytes has bits [{8 * width - 1}:0]")

    def of(self, value: int) -> int:
        return (value & self.mask) >> self.low

    def place(self, text: str) -> int:
        """Parse a value and shift it to these bits. Raises UsageError."""
        return _parse_signed(text, self.high - self.low + 1, f"the bits {self}") << self.low

    def __str__(self) -> str:
        return f"[{self.high}:{self.low}]"


_BITS = re.compile(r"(.*)\[([0-9]{1,9})(?::([0-9]{1,9}))?\]")


def split_bits(text: str) -> tuple[str, Bits | None]:
    """Split `0x10[15:8]` into `0x10` and its bits; `0x10[3]` is one bit."""
    match = _BITS.fullmatch(text)
    if match is None:
        return text, None
    high = int(match[2])
    return match[1], Bits(high, high if match[3] is None else int(match[3]))


def parse_value(text: str, width: int) -> int:
    """Parse a value of `width` bytes, a negative one as two's complement. Raises UsageError."""
    return _parse_signed(text, 8 * width, f"{width} bytes")


def _parse_signed(text: str, bits: int, room: str) -> int:
    value = -parse_number(text[1:]) if text.startswith("-") else parse_number(text)
    if not -(1 << bits - 1) <= value < 1 << bits:
        raise UsageError(f"{text} does not fit in {room}")
    return value & ((1 << bits) - 1)


def check_range(start: int, end: int, width: int, size: int | None) -> None:
    """Raises UsageError unless `[start, end)` is whole, aligned registers inside `size` bytes."""
    if start % width or (end - start) % width:
        raise UsageError(
            f"{start:#x}+{end - start:#x} must be aligned {width}-byte registers; -b, -w, -l and "
            "-q choose 1, 2, 4 and 8 bytes"
        )
    if size is not None and end > size:
        raise UsageError(
            f"{start:#x}+{end - start:#x} exceeds the region, which has {size:#x} bytes"
        )


def check_widths(start: int, end: int, width: int, places: Iterable[Segment]) -> None:
    """Raises UsageError unless each register of `[start, end)` is one access in its segment."""
    for place in places:
        if width in place.widths or place.end <= start or end <= place.start:
            continue
        register = max(start, place.start - place.start % width)
        if not place.widths:
            raise UsageError(
                f"no access is possible at {register:#x}: the device takes at most {place.width} "
                "bytes there, which the mount's widths do not allow"
            )
        if sum(place.widths) == 2 * place.width - 1:
            taken, letters = f"at most {place.width} bytes", place.widths[-1:]
        else:
            taken, letters = in_words(place.widths), place.widths
        options = " or ".join(f"-{_LETTER[one]}" for one in letters)
        raise UsageError(
            f"an access at {register:#x} must have {taken}, not {width}; use {options}"
        )
