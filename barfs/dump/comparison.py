# SPDX-License-Identifier: MIT
"""Two dumps compared: the registers that differ, by name where the later dump, or else the other,
has names.

Rule 1: bytes that were not read, or are the same in both, cost next to nothing: compare only
        blocks that differ, and none where the rest of a region was not read.
"""

import functools
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from barfs.dump.file import BLOCK, Dump, Hole, filled
from barfs.ranges import Range, align_down, align_up, clip, overlay
from barfs.registers.fields import from_bytes
from barfs.registers.places import Place, RegisterMap

_PAGE = 1 << 12


@dataclass(frozen=True, slots=True)
class Change:
    """A register that differs: `width` bytes at `offset` of `region`; `place` where it has a name.

    `before` and `after` are the values as the description has them, else as little-endian words.
    """

    region: str
    offset: int
    width: int
    before: int
    after: int
    place: Place | None = None


def changes(before: Dump, after: Dump) -> Iterator[Change]:
    """The registers that differ, where both dumps have them: the named ones in their own width, the
    rest in that of the first's file."""
    for region, layout in before.layouts.items():
        if region not in after.layouts:
            continue
        size = min(layout.size, after.layouts[region].size)
        holes = (*before.holes[region], *after.holes[region])
        shown = _without(holes, size, layout.width)
        names = _names(before, after, region)
        for start, old, new in _pairs(before, after, region, shown[-1].end if shown else 0):
            for part in clip(shown, Range(start, start + len(old))):
                own = slice(part.start - start, part.end - start)
                yield from _changes(region, part, old[own], new[own], layout.width, names)


def _names(before: Dump, after: Dump, region: str) -> Callable[[], RegisterMap | None]:
    """What gives the names, read once they are needed."""
    return functools.cache(lambda: after.registers(region) or before.registers(region))


def _changes(
    region: str,
    part: Range,
    old: bytes,
    new: bytes,
    width: int,
    find_names: Callable[[], RegisterMap | None],
) -> Iterator[Change]:
    """The registers in a part of a region, of which all bytes are known, that differ."""
    told: dict[str, int] = {}
    for at, here, there in _unlike(old, new, width):
        offset = part.start + at
        told = {name: end for name, end in told.items() if end > offset}
        explained = set[int]()
        names = find_names()
        for place in names.at(offset, len(here)) if names else ():
            own = slice(place.offset - part.start, place.end - part.start)
            if not place.register.readable or own.start < 0 or own.stop > len(old):
                continue
            explained |= set(range(own.start, own.stop))
            if place.files not in told and old[own] != new[own]:
                told[place.files] = place.end
                before, after = (from_bytes(place.register, 0, data[own])[0] for data in (old, new))
                yield Change(region, place.offset, place.register.width, before, after, place)
        if any(here[i] != there[i] and at + i not in explained for i in range(len(here))):
            before, after = (int.from_bytes(word, "little") for word in (here, there))
            yield Change(region, offset, width, before, after)


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


def _unlike(old: bytes, new: bytes, width: int) -> Iterator[tuple[int, bytes, bytes]]:
    """The words of `width` bytes that differ: their place, and both."""
    for page in range(0, len(old), _PAGE):
        page_end = min(page + _PAGE, len(old))
        if old[page:page_end] == new[page:page_end]:
            continue
        for at in range(page, page_end, width):
            here, there = old[at : at + width], new[at : at + width]
            if here != there:
                yield at, here, there
