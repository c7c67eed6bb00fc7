# SPDX-License-Identifier: MIT
"""The ranges of memory that a client offers, checked against sets of addresses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs.errors import PeerError
from barfs.vfio_user import wire
from barfs.vfio_user.dma import MOST_RANGES, DmaRanges

steps = st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(0, 12)), max_size=60)


@given(steps)
def test_ranges_are_told_apart(given_steps: list[tuple[bool, int, int]]) -> None:
    ranges = DmaRanges()
    expected: list[set[int]] = []
    for add, start, size in given_steps:
        asked = set(range(start, start + size))
        error: type[PeerError] | None = None
        if add and not asked:
            error = wire.BadRange
        elif add and any(asked & known for known in expected):
            error = wire.RangeExists
        elif not add and any(asked & known and not known <= asked for known in expected):
            error = wire.BadRange
        change = ranges.add if add else ranges.remove
        if error is not None:
            with pytest.raises(error):
                change(start, size)
        else:
            change(start, size)
            expected = [known for known in expected if not known & asked]
            if add:
                expected.append(asked)
    ranges.clear()
    ranges.add(0, 1 << 64)


def test_there_is_a_limit() -> None:
    ranges = DmaRanges()
    for number in range(MOST_RANGES):
        ranges.add(2 * number, 1)
    with pytest.raises(wire.TooManyRanges):
        ranges.add(1, 1)
    ranges.remove(0, 1)
    ranges.add(1, 1)
