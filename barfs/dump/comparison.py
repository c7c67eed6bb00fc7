# SPDX-License-Identifier: MIT
"""Two dumps compared: the registers that differ.

Rule 1: bytes that were not read, or are the same in both, cost next to nothing: compare only
        blocks that differ, and none where the rest of a region was not read.
"""

import heapq
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from barfs.dump.file import BLOCK, Dump, Hole, filled
from barfs.ranges import Range, align_down, align_up, clip, overlay

_PAGE = 1 << 12


@dataclass(frozen=True, slots=True)
class Change:
    """A register that differs: `width` bytes at `offset` of `region`."""

    region: str
    offset: int
    width: int
    before: int
    after: int


def changes(before: Dump, after: Dump) -> Iterator[Change]:
    """The registers that differ, where both dumps have them, in the width of the first's file."""
    for region, layout in before.layouts.items():
        if region not in after.layouts:
            continue
        size = min(layout.size, after.layouts[region].size)
        holes = (*before.holes[region], *after.holes[region])
        shown = _without(holes, size, layout.width)
        for start, old, new in _pairs(before, after, region, shown[-1].end if shown else 0):
            for part in clip(shown, Range(start, start + len(old))):
                words = _unlike(old, new, part.start - start, part.end - start, layout.width)
                for at, *values in words:
                    numbers = (int.from_bytes(word, "little") for word in values)
                    yield Change(region, start + at, layout.width, *numbers)


@dataclass(frozen=True, slots=True)
class _Registers(Range):
    shown: bool


def _without(holes: Iterable[Hole], size: int, width: int) -> list[_Registers]:
    """The parts of `[0, size)` without the registers that holes touch."""
    hidden = (
        _Registers(align_down(hole.start, width), align_up(hole.end, width), False)
        for hole in sorted(holes, key=lambda hole: hole.start)
    )
    parts = overlay((_Registers(0, size, True), *hidden))
    return [part for part in parts if part.shown]


def _pairs(before: Dump, after: Dump, region: str, end: int) -> Iterator[tuple[int, bytes, bytes]]:
    """The blocks that differ, up to `end`: where they start, and both contents."""
    if not end:
        return
    both = heapq.merge(_marked(before, region, 0), _marked(after, region, 1))
    for start, group in itertools.groupby(both, key=lambda block: block[0]):
        if start >= end:
            return
        count = min(BLOCK, end - start)
        found = {which: data[:count] for _, which, data in group}
        old, new = (found.get(which) or filled(0, count) for which in (0, 1))
        if old != new:
            yield start, old, new


def _marked(dump: Dump, region: str, which: int) -> Iterator[tuple[int, int, bytes]]:
    return ((start, which, data) for start, data in dump.blocks(region))


def _unlike(
    old: bytes, new: bytes, start: int, end: int, width: int
) -> Iterator[tuple[int, bytes, bytes]]:
    """The words of `width` bytes that differ: their place, and both."""
    for page in range(start, end, _PAGE):
        page_end = min(page + _PAGE, end)
        if old[page:page_end] == new[page:page_end]:
            continue
        for at in range(page, page_end, width):
            here, there = old[at : min(at + width, end)], new[at : min(at + width, end)]
            if here != there:
                yield at, here, there
