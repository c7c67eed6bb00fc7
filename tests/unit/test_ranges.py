# SPDX-License-Identifier: MIT
"""Numbers and ranges as people type them."""

import pytest

from barfs.errors import UsageError
from barfs.ranges import parse_number, parse_range


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("256", 256), ("0x1F", 31), ("4k", 4096), ("0x10K", 16384), ("1M", 1 << 20)],
)
def test_numbers(text: str, number: int) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize("text", ["", "k", "-1", "+1", " 1", "0x", "1.5", "4kk", "zero", "010"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(UsageError, match="is no number"):
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
    assert parse_range(text, default_size=16) == found


@pytest.mark.parametrize("text", ["8-7", "8+0"])
def test_empty_ranges(text: str) -> None:
    with pytest.raises(UsageError, match="is an empty range"):
        parse_range(text)


@pytest.mark.parametrize("text", ["0x100", "1+2+3", "-4", "4-", ""])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(UsageError, match="write it like"):
        parse_range(text)
