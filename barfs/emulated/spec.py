# SPDX-License-Identifier: MIT
"""The spec of a software device: frozen, and checked when it is made.

Rule 1: a spec that cannot be built cannot be made. Each class checks itself; its error is one line
        that begins with the key at fault, and `description` prefixes the file and the place.
Rule 2: sizes and offsets are bytes; areas and initial contents are relative to their region.

BARs have the limits of the PCI Local Bus Specification 3.0, section 6.2.5, except for I/O BARs:
vfio-user has no ports, so an I/O BAR may be as large as any other, and mapped. (A region of
libvfio-user is I/O unless it is flagged as memory.)
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from barfs.errors import DeviceError
from barfs.pci import (
    BAR_COUNT,
    CONFIG_INDEX,
    CONFIG_SIZE,
    CONFIG_SIZE_EXPRESS,
    ROM_INDEX,
    VGA_INDEX,
    MsixCapability,
    region_name,
)
from barfs.ranges import first_overlap
from barfs.uapi import SparseArea

LARGEST_REGION = 1 << 40
LARGEST_INDEX = 63
_LARGEST_MEM32 = 1 << 31
_SMALLEST_MEMORY_BAR = 16
_SMALLEST_IO_BAR = 4
_SMALLEST_ROM = 1 << 11
_LARGEST_ROM = 1 << 24
_LARGEST_MSIX = 2048


class DescriptionError(DeviceError):
    """The description is of a device that cannot be built."""


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes at `offset` of a region when the device starts, and again after a reset."""

    offset: int
    data: bytes

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


@dataclass(frozen=True, slots=True)
class RegionSpec:
    """One region. `areas` are its mappable parts; None with `mappable` means all of it.

    `is_io`, `is_64bit` and `prefetchable` apply to BARs, and show in their register.
    """

    index: int
    size: int
    readable: bool = True
    writable: bool = True
    mappable: bool = False
    areas: tuple[SparseArea, ...] | None = None
    is_io: bool = False
    is_64bit: bool = False
    prefetchable: bool = False
    contents: tuple[Content, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.index <= LARGEST_INDEX or self.index == VGA_INDEX:
            raise DescriptionError(
                "name: must be bar0 to bar5, rom, config or region9 to region63, "
                f"not {region_name(self.index)}"
            )
        _check_size(self)
        _check_flags(self)
        if self.areas is not None:
            if not self.mappable:
                raise DescriptionError('areas: need the flag "mmap"')
            _check_areas(self.areas, self.size)
        for content in self.contents:
            if content.end > self.size:
                raise DescriptionError(
                    f"initial: {len(content.data):#x} bytes at {content.offset:#x} reach past the "
                    f"region's end, {self.size:#x}"
                )

    @property
    def name(self) -> str:
        return region_name(self.index)

    @property
    def is_bar(self) -> bool:
        return self.index < BAR_COUNT


def _check_size(region: RegionSpec) -> None:
    least, most = 1, LARGEST_REGION
    if region.index == CONFIG_INDEX:
        if region.size not in (CONFIG_SIZE, CONFIG_SIZE_EXPRESS):
            raise DescriptionError(
                f"size: must be {CONFIG_SIZE} or {CONFIG_SIZE_EXPRESS} for configuration space, "
                f"not {region.size}"
            )
        return
    if region.index == ROM_INDEX:
        least, most = _SMALLEST_ROM, _LARGEST_ROM
    elif region.is_bar:
        least = _SMALLEST_IO_BAR if region.is_io else _SMALLEST_MEMORY_BAR
        most = LARGEST_REGION if region.is_64bit else _LARGEST_MEM32
    if not least <= region.size <= most:
        raise DescriptionError(f"size: must be {least:#x} to {most:#x}, not {region.size:#x}")
    if (region.is_bar or region.index == ROM_INDEX) and region.size & (region.size - 1):
        raise DescriptionError(f"size: must be a power of two, not {region.size:#x}")


def _check_flags(region: RegionSpec) -> None:
    if not region.is_bar and (region.is_io or region.is_64bit or region.prefetchable):
        raise DescriptionError("io, bits and prefetchable: apply to BARs only")
    if region.is_io and (region.is_64bit or region.prefetchable):
        raise DescriptionError("io: an I/O BAR has 32 bits and is not prefetchable")
    if region.mappable and region.index in (ROM_INDEX, CONFIG_INDEX):
        raise DescriptionError("flags: rom and config cannot be mapped")
    if region.index == ROM_INDEX and region.writable:
        raise DescriptionError('flags: rom cannot be written; leave "write" out')
    if region.index == CONFIG_INDEX and not (region.readable and region.writable):
        raise DescriptionError("flags: config is always readable and writable")
    if region.is_64bit and region.index == BAR_COUNT - 1:
        raise DescriptionError(f"bits: must be 32 for {region.name}, which no BAR follows")


def _check_areas(areas: Iterable[SparseArea], size: int) -> None:
    for area in areas:
        if area.size < 1:
            raise DescriptionError(f"areas: the area at {area.offset:#x} is empty")
        if area.range.end > size:
            raise DescriptionError(f"areas: {area.range} reaches past the region's end, {size:#x}")
    if overlap := first_overlap(area.range for area in areas):
        raise DescriptionError(f"areas: {overlap[1]} overlaps {overlap[0]}")


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A PCI function: its ids, its regions by ascending index, its MSI-X capability.

    `msix_mappable`: the MSI-X table may be mapped (the capability MSIX_MAPPABLE). A device without
    a region `config` has 4096 bytes of configuration space.
    """

    vendor: int
    device: int
    class_code: int
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem_device: int = 0
    regions: tuple[RegionSpec, ...] = ()
    msix: MsixCapability | None = None
    msix_mappable: bool = False
    by_index: dict[int, RegionSpec] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, bits in (
            ("vendor", 16),
            ("device", 16),
            ("class_code", 24),
            ("revision", 8),
            ("subsystem_vendor", 16),
            ("subsystem_device", 16),
        ):
            value = getattr(self, name)
            if not 0 <= value < 1 << bits:
                key = name.removesuffix("_code")
                raise DescriptionError(f"{key}: {value:#x} does not fit in {bits} bits")
        by_index: dict[int, RegionSpec] = {}
        for region in sorted(self.regions, key=lambda region: region.index):
            if region.index in by_index:
                raise DescriptionError(f"region {region.name}: is described twice")
            lower = by_index.get(region.index - 1)
            if region.is_bar and lower is not None and lower.is_64bit:
                raise DescriptionError(
                    f"region {region.name}: is the upper half of {lower.name}, which has 64 bits"
                )
            by_index[region.index] = region
        by_index.setdefault(CONFIG_INDEX, RegionSpec(CONFIG_INDEX, CONFIG_SIZE_EXPRESS))
        object.__setattr__(self, "by_index", by_index)
        if self.msix is not None:
            _check_msix(self.msix, by_index)


def _check_msix(msix: MsixCapability, regions: dict[int, RegionSpec]) -> None:
    if not 1 <= msix.vectors <= _LARGEST_MSIX:
        raise DescriptionError(f"msix: vectors: must be 1 to {_LARGEST_MSIX}, not {msix.vectors}")
    places = (
        ("table", msix.table_bar, msix.table_offset, msix.table_size),
        ("pba", msix.pba_bar, msix.pba_offset, msix.pba_size),
    )
    for key, index, offset, size in places:
        region = regions.get(index)
        if region is None or not region.is_bar or region.is_io:
            raise DescriptionError(
                f"msix: {key}: bar must be a memory BAR, not {region_name(index)}"
            )
        if offset % 8:
            raise DescriptionError(f"msix: {key}: offset must be a multiple of 8, not {offset:#x}")
        if offset + size > region.size:
            raise DescriptionError(
                f"msix: {key}: {offset:#x}..{offset + size:#x} reaches past the end of "
                f"{region.name}, {region.size:#x}"
            )
    (_, table_bar, table, table_size), (_, pba_bar, pba, pba_size) = places
    if table_bar == pba_bar and table < pba + pba_size and pba < table + table_size:
        raise DescriptionError(
            f"msix: pba: {pba:#x}..{pba + pba_size:#x} overlaps the table "
            f"{table:#x}..{table + table_size:#x}"
        )
