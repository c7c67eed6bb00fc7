# SPDX-License-Identifier: MIT
"""What a software device is: frozen facts, checked when they are made.

Rule 1: what cannot be built cannot be described. Every class checks itself, with one line that
        begins with the key at fault; `description` puts the file and the place in front.
Rule 2: sizes and offsets are bytes; areas and initial contents are relative to their region.

The limits of BARs are those of the PCI Local Bus Specification 3.0, section 6.2.5, but for I/O: on
vfio-user there are no ports, and an I/O BAR may be as large as another, and mapped. (Regions of
libvfio-user are I/O unless they are flagged as memory.)
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
    """A description of a device that cannot be built."""


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes that stand at `offset` of a region when the device starts and after a reset."""

    offset: int
    data: bytes

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


@dataclass(frozen=True, slots=True)
class RegionFacts:
    """One region. `areas` are its mappable parts; None with `mappable`: all of it.

    `is_io`, `is_64bit` and `prefetchable` are about BARs: what their register says.
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
            raise DescriptionError(f"name: there is no region {self.index} in a software device")
        _check_size(self)
        _check_flags(self)
        if self.areas is not None:
            if not self.mappable:
                raise DescriptionError('areas: only a region with the flag "mmap" has areas')
            _check_areas(self.areas, self.size)
        for content in self.contents:
            if content.end > self.size:
                raise DescriptionError(
                    f"initial: {len(content.data):#x} bytes at {content.offset:#x} leave the "
                    f"region, which ends at {self.size:#x}"
                )

    @property
    def name(self) -> str:
        return region_name(self.index)

    @property
    def is_bar(self) -> bool:
        return self.index < BAR_COUNT


def _check_size(region: RegionFacts) -> None:
    least, most = 1, LARGEST_REGION
    if region.index == CONFIG_INDEX:
        if region.size not in (CONFIG_SIZE, CONFIG_SIZE_EXPRESS):
            raise DescriptionError(
                f"size: configuration space has {CONFIG_SIZE} or {CONFIG_SIZE_EXPRESS} bytes"
            )
        return
    if region.index == ROM_INDEX:
        least, most = _SMALLEST_ROM, _LARGEST_ROM
    elif region.is_bar:
        least = _SMALLEST_IO_BAR if region.is_io else _SMALLEST_MEMORY_BAR
        most = LARGEST_REGION if region.is_64bit else _LARGEST_MEM32
    if not least <= region.size <= most:
        raise DescriptionError(
            f"size: {region.size:#x} is not possible here; {least:#x} to {most:#x} bytes are"
        )
    if (region.is_bar or region.index == ROM_INDEX) and region.size & (region.size - 1):
        raise DescriptionError(f"size: {region.size:#x} is not a power of two, as PCI wants it")


def _check_flags(region: RegionFacts) -> None:
    if not region.is_bar and (region.is_io or region.is_64bit or region.prefetchable):
        raise DescriptionError("io, bits and prefetchable: only a BAR has them")
    if region.is_io and (region.is_64bit or region.prefetchable):
        raise DescriptionError("io: an I/O BAR has 32 bits and is not prefetchable")
    if region.mappable and region.index in (ROM_INDEX, CONFIG_INDEX):
        raise DescriptionError("flags: rom and config cannot be mapped")
    if region.index == ROM_INDEX and region.writable:
        raise DescriptionError('flags: rom cannot be written; leave "write" out')
    if region.index == CONFIG_INDEX and not (region.readable and region.writable):
        raise DescriptionError("flags: config is always readable and writable")
    if region.is_64bit and region.index == BAR_COUNT - 1:
        raise DescriptionError(f"bits: {region.name} has no BAR behind it for the upper half")


def _check_areas(areas: Iterable[SparseArea], size: int) -> None:
    for area in areas:
        if area.size < 1:
            raise DescriptionError(f"areas: the area at {area.offset:#x} is empty")
        if area.range.end > size:
            raise DescriptionError(
                f"areas: {area.range} leaves the region, which ends at {size:#x}"
            )
    if overlap := first_overlap(area.range for area in areas):
        raise DescriptionError(f"areas: {overlap[1]} overlaps {overlap[0]}")


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """A PCI function: its ids, its regions by ascending index, its MSI-X capability.

    `msix_mappable` says that the MSI-X table may be mapped (the capability MSIX_MAPPABLE).
    Without a region `config` the device has 4096 bytes of configuration space.
    """

    vendor: int
    device: int
    class_code: int
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem_device: int = 0
    regions: tuple[RegionFacts, ...] = ()
    msix: MsixCapability | None = None
    msix_mappable: bool = False
    by_index: dict[int, RegionFacts] = field(init=False, repr=False, compare=False)

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
                raise DescriptionError(f"{key}: {value:#x} does not fit into {bits} bits")
        by_index: dict[int, RegionFacts] = {}
        for region in sorted(self.regions, key=lambda region: region.index):
            if region.index in by_index:
                raise DescriptionError(f"region {region.name}: described twice")
            lower = by_index.get(region.index - 1)
            if region.is_bar and lower is not None and lower.is_64bit:
                raise DescriptionError(
                    f"region {region.name}: is the upper half of {lower.name}, which has 64 bits"
                )
            by_index[region.index] = region
        by_index.setdefault(CONFIG_INDEX, RegionFacts(CONFIG_INDEX, CONFIG_SIZE_EXPRESS))
        object.__setattr__(self, "by_index", by_index)
        if self.msix is not None:
            _check_msix(self.msix, by_index)


def _check_msix(msix: MsixCapability, regions: dict[int, RegionFacts]) -> None:
    if not 1 <= msix.vectors <= _LARGEST_MSIX:
        raise DescriptionError(f"msix: vectors: {msix.vectors} is not in 1..{_LARGEST_MSIX}")
    places = (
        ("table", msix.table_bar, msix.table_offset, msix.table_size),
        ("pba", msix.pba_bar, msix.pba_offset, msix.pba_size),
    )
    for key, index, offset, size in places:
        region = regions.get(index)
        if region is None or not region.is_bar or region.is_io:
            raise DescriptionError(f"msix: {key}: {region_name(index)} is not a memory BAR here")
        if offset % 8:
            raise DescriptionError(f"msix: {key}: offset {offset:#x} is not a multiple of 8")
        if offset + size > region.size:
            raise DescriptionError(
                f"msix: {key}: {offset:#x}..{offset + size:#x} leaves {region.name}, which ends "
                f"at {region.size:#x}"
            )
    (_, table_bar, table, table_size), (_, pba_bar, pba, pba_size) = places
    if table_bar == pba_bar and table < pba + pba_size and pba < table + table_size:
        raise DescriptionError(
            f"msix: pba: {pba:#x}..{pba + pba_size:#x} overlaps the table "
            f"{table:#x}..{table + table_size:#x}"
        )
