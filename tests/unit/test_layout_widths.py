# SPDX-License-Identifier: MIT
"""Layouts in which a place takes only some widths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs.layout import Layout, LayoutError, PlanOptions
from barfs.uapi import RegionInfo, SparseArea
from barfs.widths import WIDTHS, AllowedWidths
from tests.unit.test_layout import PAGE, READ_WRITE_MMAP, planned


def with_widths(*parts: tuple[int, int, tuple[int, ...]], width: int = 4) -> Layout:
    """Of two pages: a window, and a gap that takes 4 bytes at most."""
    info = RegionInfo(0, READ_WRITE_MMAP, 2 * PAGE, 0, areas=(SparseArea(0, PAGE),))
    layout = planned(info, PlanOptions(width=width))
    return layout.with_widths([AllowedWidths(*part) for part in parts]).merged()


def full_rows(layout: Layout) -> list[tuple[int, int, str, str, int, str]]:
    return [(s.start, s.end, s.access, s.perm, s.width, s.reason) for s in layout.segments]


def test_widths_are_a_line_of_the_head_and_change_the_column_width() -> None:
    layout = with_widths((0, 2 * PAGE, (2, 4)))
    assert "width  4\nwidths 2:4\n# start" in layout.to_text()
    assert full_rows(layout) == [
        (0, PAGE, "mmap", "rw", 4, "-"),
        (PAGE, 2 * PAGE, "pread", "rw", 4, "not-in-sparse-area"),
    ]
    assert "widths" not in with_widths().to_text()
    assert "widths" not in with_widths((0, 2 * PAGE, WIDTHS)).to_text()


def test_widths_of_parts_are_shown_by_range() -> None:
    layout = with_widths((8, 16, (4,)), (16, 24, (4, 8)), (PAGE, PAGE + 8, (1,)))
    assert "widths 0x8+0x8=4 0x10+0x8=4:8 0x1000+0x8=1\n" in layout.to_text()
    assert layout.to_json()["widths"][0] == {
        "start": 8,
        "start_hex": "0x8",
        "end": 16,
        "end_hex": "0x10",
        "size": 8,
        "size_hex": "0x8",
        "widths": [4],
    }


def test_a_place_that_takes_no_allowed_width_is_not_accessed() -> None:
    layout = with_widths((0, 2 * PAGE, (8,)))
    assert full_rows(layout) == [
        (0, PAGE, "mmap", "rw", 8, "-"),
        (PAGE, 2 * PAGE, "none", "--", 4, "widths"),
    ]
    assert [segment.widths for segment in layout.segments] == [(8,), ()]


@pytest.mark.parametrize(
    ("allowed", "width", "expected"),
    [((4,), 8, 4), ((8,), 4, 8), ((1, 8), 4, 1), ((1, 2, 4, 8), 2, 2)],
)
def test_the_width_of_the_file_is_one_that_it_takes(
    allowed: tuple[int, ...], width: int, expected: int
) -> None:
    assert with_widths((0, 2 * PAGE, allowed), width=width).width == expected
    rest = with_widths((0, 8, (8,)), (8, 2 * PAGE, allowed), width=width)
    assert rest.width == expected


@given(st.lists(st.tuples(st.integers(0, 15), st.sampled_from([(4,), (4, 8), (1,), (8,)]))))
def test_a_layout_with_widths_is_read_back(parts: list[tuple[int, tuple[int, ...]]]) -> None:
    layout = with_widths(*((at * 512, at * 512 + 512, w) for at, w in sorted(dict(parts).items())))
    assert Layout.from_text(layout.to_text()) == layout


@pytest.mark.parametrize("line", ["widths 3", "widths 4:16", "widths 0x0=4", "widths 0x8+8=4"])
def test_widths_that_are_none(line: str) -> None:
    text = with_widths((0, 2 * PAGE, (4,))).to_text().replace("widths 4", line)
    with pytest.raises(LayoutError, match="are not widths"):
        Layout.from_text(text)
