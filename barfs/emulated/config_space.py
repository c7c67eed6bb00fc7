# SPDX-License-Identifier: MIT
"""The configuration space of a software device: a type 0 header, PCI Express and MSI-X.

Rule 1: each byte has a value and a mask of the bits that a write changes. BAR sizing needs no more:
        the low bits of a BAR are read-only, so all-ones read back as the size's complement. The
        only write with a side effect is to a bit that resets the function.
Rule 2: decode bits and addresses are stored and have no effect: accesses do not reach this device
        by address.
Rule 3: the writable capabilities are those in the final list, after the description's contents (of
        a real device, say) have overwritten the generated ones.

Layout: PCI Local Bus Specification 3.0, chapter 6; PCI Express Base Specification 3.0, section 7.8;
Conventional PCI Advanced Capabilities ECN.
"""

import struct
from collections.abc import Iterator

from barfs.emulated.spec import DeviceSpec, RegionSpec
from barfs.pci import CONFIG_INDEX, CONFIG_SIZE, ROM_INDEX, ConfigSpace

_COMMAND = 0x04
_STATUS = 0x06
_CACHE_LINE_SIZE_AND_LATENCY_TIMER = 0x0C
_BAR0 = 0x10
_SUBSYSTEM = 0x2C
_ROM_BAR = 0x30
_CAPABILITY_POINTER = 0x34
_INTERRUPT_LINE = 0x3C
_INTERRUPT_PIN = 0x3D
_EXPRESS = 0x40

_MSIX = 0x80

_COMMAND_IO = 0x1
_COMMAND_MEMORY = 0x2
_COMMAND_WRITABLE = 0x0547
_STATUS_CAPABILITY_LIST = 0x10
_ID_MSI = 0x05
_ID_EXPRESS = 0x10
_ID_MSIX = 0x11
_ID_ADVANCED_FEATURES = 0x13
_EXPRESS_VERSION_2_INTEGRATED_ENDPOINT = 0x0092
_DEVICE_CAPABILITIES_RESET = 1 << 28
_DEVICE_CONTROL_WRITABLE = 0x7FFF
_DEVICE_CONTROL_RESET = 0x80
"""In the register's second byte."""
_FEATURES_RESET = 0x02
_FEATURES_CONTROL_RESET = 0x01
_MSIX_CONTROL_WRITABLE = 0xC000
_LONGEST_CONTROL = 10
"""No register that is used here ends further into its capability, in bytes."""
_LARGEST_MSI = 5
"""As a power of two: 32 vectors."""

_FIRST_IO_ADDRESS = 0xC000
_FIRST_MEM32_ADDRESS = 0xE000_0000
_FIRST_MEM64_ADDRESS = 0x38_0000_0000
_PAGE_SIZE = 0x1000


class ConfigRegisters:
    """Configuration space: reads and writes of any length within it, byte by byte."""

    def __init__(self, spec: DeviceSpec) -> None:
        region = spec.by_index[CONFIG_INDEX]
        self.size = region.size
        self._initial = bytearray(self.size)
        self._writable = bytearray(self.size)
        self._header(spec)
        self._bars(spec)
        self._capabilities(spec)
        for content in region.contents:
            self._initial[content.offset : content.end] = content.data
        self.has_pin = self._initial[_INTERRUPT_PIN] != 0
        self.msi_vectors = 0
        self._resets: dict[int, int] = {}
        for identifier, offset in ConfigSpace(bytes(self._initial)).capabilities():
            # One that reaches into the extended space or past the end is no capability.
            if offset + _LONGEST_CONTROL <= CONFIG_SIZE:
                self._control(identifier, offset)
        self._values = bytearray(self._initial)

    def read(self, offset: int, count: int) -> bytes:
        return bytes(self._values[offset : offset + count])

    def write(self, offset: int, data: bytes) -> bool:
        """Returns whether the write resets the function."""
        reset = False
        for position, byte in enumerate(data, offset):
            mask = self._writable[position]
            self._values[position] = (self._values[position] & ~mask) | (byte & mask)
            reset |= bool(byte & self._resets.get(position, 0))
        return reset

    def reset(self) -> None:
        """Restore the initial state."""
        self._values[:] = self._initial

    def _set(self, offset: int, layout: str, *values: int) -> None:
        struct.pack_into(layout, self._initial, offset, *values)

    def _allow(self, offset: int, layout: str, *masks: int) -> None:
        struct.pack_into(layout, self._writable, offset, *masks)

    def _header(self, spec: DeviceSpec) -> None:
        regions = spec.by_index.values()
        command = _COMMAND_IO if any(region.is_io for region in regions) else 0
        if any(region.is_bar and not region.is_io for region in regions):
            command |= _COMMAND_MEMORY
        self._set(0, "<HHHH", spec.vendor, spec.device, command, 0)
        self._set(8, "<I", spec.class_code << 8 | spec.revision)
        self._set(_SUBSYSTEM, "<HH", spec.subsystem_vendor, spec.subsystem_device)
        self._allow(_COMMAND, "<H", _COMMAND_WRITABLE)
        self._allow(_CACHE_LINE_SIZE_AND_LATENCY_TIMER, "<BB", 0xFF, 0xFF)
        self._allow(_INTERRUPT_LINE, "<B", 0xFF)

    def _bars(self, spec: DeviceSpec) -> None:
        addresses = dict(_addresses(spec))
        for region in spec.by_index.values():
            address = addresses.get(region.index, 0)
            if region.index == ROM_INDEX:
                self._set(_ROM_BAR, "<I", address)
                self._allow(_ROM_BAR, "<I", -region.size & 0xFFFF_F800 | 1)
            elif region.is_bar:
                layout = "<Q" if region.is_64bit else "<I"
                bits = 64 if region.is_64bit else 32
                self._set(_BAR0 + 4 * region.index, layout, address | _bar_flags(region))
                # Bit 1 of an I/O BAR is reserved; bits 0-3 of a memory BAR are its type.
                fixed = 0x3 if region.is_io else 0xF
                mask = -region.size & ((1 << bits) - 1) & ~fixed
                self._allow(_BAR0 + 4 * region.index, layout, mask)

    def _capabilities(self, spec: DeviceSpec) -> None:
        msix = _MSIX if spec.msix is not None else 0
        self._set(_STATUS, "<H", _STATUS_CAPABILITY_LIST)
        self._set(_CAPABILITY_POINTER, "<B", _EXPRESS)
        self._set(_EXPRESS, "<BBH", _ID_EXPRESS, msix, _EXPRESS_VERSION_2_INTEGRATED_ENDPOINT)
        self._set(_EXPRESS + 4, "<I", _DEVICE_CAPABILITIES_RESET)
        if spec.msix is not None:
            control = spec.msix.vectors - 1
            table = spec.msix.table_offset | spec.msix.table_bar
            pba = spec.msix.pba_offset | spec.msix.pba_bar
            self._set(_MSIX, "<BBHII", _ID_MSIX, 0, control, table, pba)

    def _control(self, identifier: int, offset: int) -> None:
        """Set up a capability: its writable bits, its reset bit, its number of MSI vectors."""
        found = self._initial
        if identifier == _ID_EXPRESS:
            self._allow(offset + 8, "<H", _DEVICE_CONTROL_WRITABLE)
            if struct.unpack_from("<I", found, offset + 4)[0] & _DEVICE_CAPABILITIES_RESET:
                self._resets[offset + 9] = _DEVICE_CONTROL_RESET
        elif identifier == _ID_MSIX:
            self._allow(offset + 2, "<H", _MSIX_CONTROL_WRITABLE)
        elif identifier == _ID_ADVANCED_FEATURES and found[offset + 3] & _FEATURES_RESET:
            self._resets[offset + 4] = _FEATURES_CONTROL_RESET
        elif identifier == _ID_MSI:
            self.msi_vectors = 1 << min(found[offset + 2] >> 1 & 0x7, _LARGEST_MSI)


def _bar_flags(region: RegionSpec) -> int:
    if region.is_io:
        return 0x1
    return (0x4 if region.is_64bit else 0) | (0x8 if region.prefetchable else 0)


def _addresses(spec: DeviceSpec) -> Iterator[tuple[int, int]]:
    """Regions and their addresses, as firmware would assign them; 0 if there is no room left."""
    free = {
        "io": (_FIRST_IO_ADDRESS, 1 << 16),
        "mem32": (_FIRST_MEM32_ADDRESS, 1 << 32),
        "mem64": (_FIRST_MEM64_ADDRESS, 1 << 64),
    }
    for index, region in spec.by_index.items():
        if not region.is_bar and index != ROM_INDEX:
            continue
        kind = "io" if region.is_io else "mem64" if region.is_64bit else "mem32"
        position, limit = free[kind]
        align = region.size if region.is_io else max(region.size, _PAGE_SIZE)
        address = -(-position // align) * align
        if address + region.size > limit:
            yield index, 0
            continue
        free[kind] = (address + align, limit)
        yield index, address
