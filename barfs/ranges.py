# SPDX-License-Identifier: MIT
"""Ranges of bytes, and how people type them: `0x100+0x40`, `0x100-0x13f`, `4k`, `0x10+1M`.

Rule 1: in the program a range is half-open. Only what people type may name its last byte: `+` is
        followed by a size, `-` by the last byte of the range, as in memtool.
Rule 2: a class that says more about a range extends `Range`. The functions here keep what it says:
        they change `start` and `end` and nothing else.
"""

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from barfs.errors import UsageError
from barfs.text import quoted


@dataclass(frozen=True, slots=True)
class Range:
    """The bytes from `start` up to, but not including, `end`; none where the two are equal.

    Raises ValueError for a range that ends before it starts, or starts below 0.
    """

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"there is no range from {self.start:#x} to {self.end:#x}")

    def __str__(self) -> str:
        return f"{self.start:#x}..{self.end:#x}"

    @property
    def size(self) -> int:
        """The count of bytes."""
        return self.end - self.start

    def overlap(self, other: "Range") -> "Range":
        """The bytes that both have; an empty range where they have none in common."""
        start = max(self.start, other.start)
        return Range(start, max(start, min(self.end, other.end)))


R = TypeVar("R", bound=Range)


def align_down(number: int, step: int) -> int:
    """The largest multiple of `step` that is not above `number`."""
    return number // step * step


def align_up(number: int, step: int) -> int:
    """The smallest multiple of `step` that is not below `number`."""
    return -(-number // step) * step


def merge(ranges: Iterable[R]) -> list[R]:
    """Ranges in order, with neighbours that touch and differ in nothing else joined into one.

    >>> merge([Range(0, 4), Range(4, 8), Range(12, 16)])
    [Range(start=0, end=8), Range(start=12, end=16)]
    """
    merged: list[R] = []
    for one in ranges:
        last = merged[-1] if merged else None
        if last and last.end == one.start and _label(last) == _label(one):
            merged[-1] = replace(last, end=one.end)
        else:
            merged.append(one)
    return merged


def overlay(layers: Iterable[R]) -> list[R]:
    """Paint ranges one over the other; returns what is visible then, in order and disjoint.

    A range that a later one covers in part is cut. Pieces are not joined (`merge` does that).

    >>> overlay([Range(0, 16), Range(4, 8)])
    [Range(start=0, end=4), Range(start=4, end=8), Range(start=8, end=16)]
    """
    painted: list[R] = []
    for layer in layers:
        if layer.start == layer.end:
            continue
        first = bisect.bisect_right(painted, layer.start, key=_end)
        last = bisect.bisect_left(painted, layer.end, key=_start)
        covered, pieces = painted[first:last], [layer]
        if covered and covered[0].start < layer.start:
            pieces.insert(0, replace(covered[0], end=layer.start))
        if covered and layer.end < covered[-1].end:
            pieces.append(replace(covered[-1], start=layer.end))
        painted[first:last] = pieces
    return painted


def clip(ranges: Sequence[R], bounds: Range) -> Iterator[R]:
    """The parts of `ranges`, which are in order and disjoint, that lie in `bounds`."""
    first = bisect.bisect_right(ranges, bounds.start, key=_end)
    last = bisect.bisect_left(ranges, bounds.end, key=_start)
    for one in ranges[first:last]:
        inside = one.overlap(bounds)
        if inside.size:
            yield replace(one, start=inside.start, end=inside.end)


def check_cover(ranges: Iterable[Range], size: int) -> None:
    """Raise ValueError unless `ranges` cover `[0, size)` in order, without gap or overlap."""
    end = 0
    for one in ranges:
        if one.size == 0:
            raise ValueError(f"{one} is empty")
        if one.start != end:
            fault = "overlaps" if one.start < end else "leaves a gap after"
            raise ValueError(f"{one} {fault} what ends at {end:#x}")
        end = one.end
    if end != size:
        raise ValueError(f"the ranges end at {end:#x}, not at {size:#x}")


def first_overlap(ranges: Iterable[Range]) -> tuple[Range, Range] | None:
    """The first two of the ranges, by where they start, that have bytes in common."""
    for one, following in itertools.pairwise(sorted(ranges, key=_start)):
        if one.overlap(following).size:
            return one, following
    return None


def _label(one: Range) -> tuple[object, ...]:
    """The fields of a range other than its place."""
    return type(one), *(getattr(one, field.name) for field in fields(one)[2:])


def _start(one: Range) -> int:
    return one.start


def _end(one: Range) -> int:
    return one.end


_SUFFIXES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def parse_number(text: str) -> int:
    """Read a number of bytes: decimal, 0x, 0o or 0b, and k, M or G behind it for powers of 1024.

    Raises UsageError.
    """
    factor = _SUFFIXES.get(text[-1:].lower(), 1)
    digits = text[:-1] if factor > 1 else text
    try:
        if not digits[:1].isdecimal():  # no sign, no spaces
            raise ValueError
        return int(digits, 0) * factor
    except ValueError:
        raise UsageError(
            f"{quoted(text)} is not a number; write it like 256, 0x100, 4k or 1M"
        ) from None


def parse_range(text: str, default_size: int | None = None) -> Range:
    """Read a range; an offset alone is a range of `default_size` bytes.

    Raises UsageError, also for an empty range.
    """
    for separator in "+-":
        start_text, found, end_text = text.partition(separator)
        if found:
            start, number = parse_number(start_text), parse_number(end_text)
            end = start + number if separator == "+" else number + 1
            break
    else:
        if default_size is None:
            raise UsageError(
                f"{quoted(text)} is not a range; write it like 0x100+0x40 or 0x100-0x13f"
            )
        start = parse_number(text)
        end = start + default_size
    if end <= start:
        raise UsageError(f"{quoted(text)} is an empty range")
    return Range(start, end)
