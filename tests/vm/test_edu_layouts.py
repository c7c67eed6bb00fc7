# SPDX-License-Identifier: MIT
"""edu under the variant driver: the layout says what the driver said, and widths are exact.

edu itself is the oracle for widths: below 0x80 it answers 4-byte accesses only, 1 and 2 bytes read
as zeros, 8 bytes as all-ones, and an 8-byte write does nothing.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.guest import sparse

from .mounts import MIB, PAGE, layout_rows, mounted, read, word, write

IDENTITY = 0x010000ED
LIVENESS = 4  # reads as the complement of what was written

Row = tuple[int, int, str, str]


@dataclass(frozen=True)
class Case:
    """Areas that the driver reports, and the segments that have to come of them."""

    areas: Sequence[tuple[int, int]] | None
    rows: Sequence[Row]


def window(start: int, end: int) -> Row:
    return (start, end, "mmap", "-")


def gap(start: int, end: int, reason: str = "not-in-sparse-area") -> Row:
    return (start, end, "pread", reason)


CASES = {
    "no capability": Case(None, [window(0, MIB)]),
    "one": Case([(0, PAGE)], [window(0, PAGE), gap(PAGE, MIB)]),
    "three": Case(
        [(0x10000, 0x10000), (0, PAGE), (0x3000, PAGE)],
        [
            window(0, 0x1000),
            gap(0x1000, 0x3000),
            window(0x3000, 0x4000),
            gap(0x4000, 0x10000),
            window(0x10000, 0x20000),
            gap(0x20000, MIB),
        ],
    ),
    # The driver refuses an mmap of both.
    "adjacent": Case([(PAGE, PAGE), (0, PAGE)], [window(0, 2 * PAGE), gap(2 * PAGE, MIB)]),
    "adjacent, inside a page": Case(
        [(0, 0x1800), (0x1800, 0x1800)],
        [
            window(0, 0x1000),
            gap(0x1000, 0x2000, "sub-page"),
            window(0x2000, 0x3000),
            gap(0x3000, MIB),
        ],
    ),
    "not page-aligned": Case(
        [(0x800, 0x2000)],
        [
            gap(0, 0x800),
            gap(0x800, 0x1000, "sub-page"),
            window(0x1000, 0x2000),
            gap(0x2000, 0x2800, "sub-page"),
            gap(0x2800, MIB),
        ],
    ),
    "empty": Case([], [gap(0, MIB)]),
    "leaves the BAR": Case([(0, PAGE), (MIB - PAGE, 2 * PAGE)], [gap(0, MIB, "bad-area")]),
    "overlapping": Case([(0, 0x3000), (0x2000, 0x3000)], [gap(0, MIB, "bad-area")]),
}


@dataclass(frozen=True)
class Edu:
    """A mounted edu, whose registers stand in its BAR's first segment."""

    bar0: Path
    case: Case

    @property
    def registers_in_window(self) -> bool:
        return self.case.rows[0][2] == "mmap"


@pytest.fixture(scope="module")
def edus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Edu]]:
    """An edu for each case, all in one mount; the last two share an IOMMU group."""
    with contextlib.ExitStack() as stack:
        bdfs = {
            name: stack.enter_context(sparse("edu", case.areas, number=number))
            for number, (name, case) in enumerate(CASES.items())
        }
        mount = stack.enter_context(mounted(tmp_path_factory.mktemp("edu"), *bdfs.values()))
        yield {name: Edu(mount.device(bdf) / "bar0", CASES[name]) for name, bdf in bdfs.items()}


@pytest.fixture(params=list(CASES))
def edu(edus: dict[str, Edu], request: pytest.FixtureRequest) -> Edu:
    return edus[request.param]


def test_the_layout_is_the_drivers_normalised(edu: Edu) -> None:
    assert layout_rows(edu.bar0) == list(edu.case.rows)


def test_registers_read_and_write(edu: Edu) -> None:
    assert read(edu.bar0, 0, 4) == word(IDENTITY)
    write(edu.bar0, LIVENESS, word(0x12345678))
    assert read(edu.bar0, LIVENESS, 4) == word(0xFFFFFFFF ^ 0x12345678)


def test_one_and_two_bytes_are_one_access(edu: Edu) -> None:
    write(edu.bar0, LIVENESS, word(0))
    for offset, count in ((4, 1), (5, 1), (4, 2), (6, 2)):
        assert read(edu.bar0, offset, count) == bytes(count)


def test_eight_bytes_are_one_access_in_a_window_and_two_in_a_gap(edu: Edu) -> None:
    write(edu.bar0, LIVENESS, word(0x12345678))
    both = word(IDENTITY) + word(0xFFFFFFFF ^ 0x12345678)
    assert read(edu.bar0, 0, 8) == (b"\xff" * 8 if edu.registers_in_window else both)

    write(edu.bar0, 0, word(0) + word(0x0F0F0F0F))
    written = 0x12345678 if edu.registers_in_window else 0x0F0F0F0F
    assert read(edu.bar0, LIVENESS, 4) == word(0xFFFFFFFF ^ written)


def test_longer_and_misaligned_requests_are_cut_at_words(edu: Edu) -> None:
    write(edu.bar0, LIVENESS, word(0x12345678))
    words = [read(edu.bar0, offset, 4) for offset in range(0, 0x40, 4)]
    assert read(edu.bar0, 0, 0x40) == b"".join(words)
    # Two bytes, then a word: the head reads as zeros, which no 4-byte access would give.
    assert read(edu.bar0, 2, 6) == bytes(2) + words[1]
