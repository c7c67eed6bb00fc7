# SPDX-License-Identifier: MIT
"""Ranges, compared with sets of bytes; numbers and ranges as people type them."""

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs.errors import UsageError
from barfs.ranges import (
    Range,
    align_down,
    align_up,
    check_cover,
    clip,
    first_overlap,
    merge,
    overlay,
    parse_number,
    parse_range,
)


@dataclass(frozen=True, slots=True)
class Painted(Range):
    colour: str


def sized(start: int, size: int) -> Range:
    return Range(start, start + size)


def painted(start: int, size: int, colour: str) -> Painted:
    return Painted(start, start + size, colour)


ranges = st.builds(sized, st.integers(0, 40), st.integers(0, 20))
layers = st.lists(
    st.builds(painted, st.integers(0, 40), st.integers(0, 20), st.sampled_from("abc")), max_size=12
)


def colours(parts: list[Painted]) -> dict[int, str]:
    return {byte: part.colour for part in parts for byte in range(part.start, part.end)}


def in_order(parts: list[Painted]) -> bool:
    return all(part.size > 0 for part in parts) and all(
        one.end <= following.start for one, following in itertools.pairwise(parts)
    )


@given(st.integers(0, 1 << 70), st.integers(1, 1 << 40))
def test_alignment(number: int, step: int) -> None:
    low, high = align_down(number, step), align_up(number, step)
    assert low % step == high % step == 0
    assert low <= number <= high
    assert high - low == (step if number % step else 0)


@pytest.mark.parametrize(("start", "end"), [(4, 0), (-1, 4)])
def test_what_is_no_range_of_bytes(start: int, end: int) -> None:
    with pytest.raises(ValueError, match=f"no range from {start:#x} to {end:#x}"):
        Range(start, end)


@given(ranges, ranges)
def test_the_overlap_has_the_bytes_of_both(one: Range, other: Range) -> None:
    common = set(range(one.start, one.end)) & set(range(other.start, other.end))
    found = one.overlap(other)
    assert set(range(found.start, found.end)) == common
    assert found.size == other.overlap(one).size == len(common)


@given(layers)
def test_the_last_layer_that_covers_a_byte_is_seen(given_layers: list[Painted]) -> None:
    parts = overlay(given_layers)
    assert in_order(parts)
    assert colours(parts) == colours(given_layers)


def test_layers_that_touch_stay_apart() -> None:
    layers = [painted(0, 4, "a"), painted(4, 4, "a")]
    assert overlay(layers) == layers


@given(layers)
def test_merging_joins_all_that_can_be_joined(given_layers: list[Painted]) -> None:
    parts = overlay(given_layers)
    merged = merge(parts)
    assert colours(merged) == colours(parts)
    assert in_order(merged)
    assert not any(
        one.end == following.start and one.colour == following.colour
        for one, following in itertools.pairwise(merged)
    )


@given(layers, ranges)
def test_clipping_keeps_the_bytes_inside(given_layers: list[Painted], bounds: Range) -> None:
    parts = overlay(given_layers)
    inside = list(clip(parts, bounds))
    assert in_order(inside)
    assert colours(inside) == {
        byte: colour for byte, colour in colours(parts).items() if bounds.start <= byte < bounds.end
    }
    assert len(inside) == sum(part.overlap(bounds).size > 0 for part in parts)


@given(st.lists(ranges.filter(lambda one: one.size > 0), max_size=6))
def test_the_first_overlap(given_ranges: list[Range]) -> None:
    found = first_overlap(given_ranges)
    pairs = itertools.combinations(given_ranges, 2)
    assert (found is not None) == any(one.overlap(other).size for one, other in pairs)
    if found is not None:
        assert found[0].overlap(found[1]).size
        assert found[0].start <= found[1].start


@pytest.mark.parametrize(
    ("edges", "size", "message"),
    [
        ([(0, 4), (4, 9)], 9, None),
        ([], 0, None),
        ([(0, 4), (5, 9)], 9, "0x5..0x9 leaves a gap after what ends at 0x4"),
        ([(0, 4), (3, 9)], 9, "0x3..0x9 overlaps what ends at 0x4"),
        ([(0, 4), (4, 4)], 4, "0x4..0x4 is empty"),
        ([(0, 4)], 9, "the ranges end at 0x4, not at 0x9"),
        ([], 9, "the ranges end at 0x0, not at 0x9"),
    ],
)
def test_covering(edges: list[tuple[int, int]], size: int, message: str | None) -> None:
    parts = [Range(*edge) for edge in edges]
    if message is None:
        check_cover(parts, size)
        return
    with pytest.raises(ValueError, match=message):
        check_cover(parts, size)


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("256", 256), ("0x1F", 31), ("4k", 4096), ("0x10K", 16384), ("1M", 1 << 20)],
)
def test_numbers(text: str, number: int) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize("text", ["", "k", "-1", "+1", " 1", "0x", "1.5", "4kk", "zero", "010"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(UsageError, match="is not a number"):
        parse_number(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0x100+0x40", (0x100, 0x140)),
        ("0x100-0x13f", (0x100, 0x140)),
        ("4k+1M", (0x1000, 0x101000)),
        ("0-0", (0, 1)),
        ("0x20", (0x20, 0x30)),
    ],
)
def test_ranges(text: str, found: tuple[int, int]) -> None:
    assert parse_range(text, default_size=16) == Range(*found)


@pytest.mark.parametrize("text", ["8-7", "8+0"])
def test_empty_ranges(text: str) -> None:
    with pytest.raises(UsageError, match="is an empty range"):
        parse_range(text)


@pytest.mark.parametrize("text", ["0x100", "1+2+3", "-4", "4-", ""])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(UsageError, match="write it like"):
        parse_range(text)
