# SPDX-License-Identifier: MIT
"""A software device that starts with the contents of a dump, for `barfs serve --from`.

Its registers are memory: they keep what is written, and do nothing else.
"""

import itertools
from collections.abc import Iterator

from barfs.dump.file import Dump, DumpError, filled
from barfs.emulated.spec import Content, DescriptionError, DeviceSpec, RegionSpec
from barfs.layout import (
    REASON_BAD_AREA,
    REASON_BAD_CAPABILITY,
    REASON_NOT_IN_AREA,
    REASON_SUB_PAGE,
    REASON_WIDTHS,
    Layout,
    Segment,
)
from barfs.pci import (
    BAR_COUNT,
    CONFIG_INDEX,
    CONFIG_SIZE_EXPRESS,
    ROM_INDEX,
    Bar,
    ConfigSpace,
    region_index,
)
from barfs.ranges import Range, align_down, align_up, clip, merge
from barfs.uapi import SparseArea

_PAGE = 4096
_MOST_CONTENTS = 1 << 29
# A window takes every width.
_NOT_MAPPABLE = (REASON_NOT_IN_AREA, REASON_BAD_AREA, REASON_BAD_CAPABILITY, REASON_WIDTHS)


def spec_of(dump: Dump) -> DeviceSpec:
    """A dumped device as a spec. Raises DumpError, DescriptionError."""
    if "config" not in dump.layouts:
        raise DumpError("the dump has no config; a device cannot be made without")
    config = ConfigSpace(dump.head("config", CONFIG_SIZE_EXPRESS))
    bars = config.bars()
    contents = _Contents(dump)
    regions = tuple(
        _region(contents, layout, bars.get(region_index(name)))
        for name, layout in dump.layouts.items()
    )
    msix = config.msix()
    places = {region.index for region in regions if region.is_bar and not region.is_io}
    if msix is not None and not {msix.table_bar, msix.pba_bar} <= places:
        msix = None
    return DeviceSpec(
        vendor=config.vendor,
        device=config.device,
        class_code=config.class_code,
        revision=config.revision,
        subsystem_vendor=config.subsystem_vendor,
        subsystem_device=config.subsystem_device,
        regions=regions,
        msix=msix,
        msix_mappable=True,
    )


def _region(contents: "_Contents", layout: Layout, bar: Bar | None) -> RegionSpec:
    index = region_index(layout.region)
    if index >= BAR_COUNT:
        bar = None
    mappable = "mmap" in layout.flags
    try:
        return RegionSpec(
            index=index,
            size=layout.size,
            readable="read" in layout.flags,
            writable=index == CONFIG_INDEX or ("write" in layout.flags and index != ROM_INDEX),
            mappable=mappable,
            areas=tuple(_areas(layout)) if mappable else None,
            is_io=bar is not None and bar.kind == "io",
            is_64bit=bar is not None and bar.kind == "mem64",
            prefetchable=bar is not None and bar.prefetchable,
            contents=tuple(contents.of(layout.region)),
        )
    except DescriptionError as error:
        raise DumpError(f"{layout.region} of the dump cannot be made: {error}") from None


def _areas(layout: Layout) -> Iterator[SparseArea]:
    """The parts that the driver called mappable, mapped or not; neighbours joined if possible."""
    mappable = [segment for segment in layout.segments if segment.reason not in _NOT_MAPPABLE]
    for run in merge(Range(segment.start, segment.end) for segment in mappable):
        edges = (edge for segment in clip(mappable, run) for edge in _edges_of_areas(segment))
        for start, end in itertools.pairwise(itertools.chain([run.start], edges, [run.end])):
            yield SparseArea(start, end - start)


def _edges_of_areas(segment: Segment) -> range:
    """An edge in each whole page that is no window since no area holds all of it."""
    if segment.reason != REASON_SUB_PAGE:
        return range(0)
    first, last = align_up(segment.start, _PAGE), align_down(segment.end, _PAGE)
    return range(first + _PAGE // 2, max(first, last), _PAGE)


class _Contents:
    """The bytes of a dump's regions that are not zero, up to a limit for all of them."""

    def __init__(self, dump: Dump) -> None:
        self._dump = dump
        self._left = _MOST_CONTENTS

    def of(self, region: str) -> Iterator[Content]:
        """Whole pages, neighbours together. Raises DumpError."""
        for start, block in self._dump.blocks(region):
            used = [
                page
                for page in range(0, len(block), _PAGE)
                if not _is_zero(block[page : page + _PAGE])
            ]
            for run in merge(Range(page, page + _PAGE) for page in used):
                data = block[run.start : run.end]
                self._left -= len(data)
                if self._left < 0:
                    raise DumpError(
                        f"the regions of the dump hold more than {_MOST_CONTENTS:#x} bytes that "
                        "are not zero"
                    )
                yield Content(start + run.start, data)


def _is_zero(data: bytes) -> bool:
    return data == filled(0, len(data))
