# SPDX-License-Identifier: MIT
"""Widths that a place does not take never reach the device: other accesses do, or none."""

import itertools
import os
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from barfs import engine
from barfs.errors import InvalidAccess, PolicyDenied
from barfs.ranges import Range
from tests.support.engine_bench import PAGE, Access, Place, Recorder, memfd, split

SIZE = 64
WIDTHS = (1, 2, 4, 8)
SETS = [found for size in range(1, 5) for found in itertools.combinations(WIDTHS, size)]


@dataclass(frozen=True)
class Plan:
    places: tuple[Place, ...]
    file_width: int


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    edges = sorted(draw(st.sets(st.integers(1, SIZE - 1), max_size=4)))
    places = tuple(
        Place(start, end, draw(st.sampled_from(WIDTHS)), draw(st.sampled_from(SETS)))
        for start, end in itertools.pairwise([0, *edges, SIZE])
    )
    return Plan(places, draw(st.sampled_from(WIDTHS)))


def table_of(plan: Plan, recorder: Recorder, *, guard: bool = False) -> engine.Table:
    entries = [
        engine.TableEntry(
            place.start,
            place.end,
            True,
            True,
            place.max_width,
            recorder.target(),
            place.allowed,
        )
        for place in plan.places
    ]
    return engine.Table(
        engine.InFlight(), SIZE, plan.file_width, entries, guard_reads=guard, guard_writes=guard
    )


def whole(allowed: tuple[int, ...], file_width: int = 4) -> Plan:
    return Plan((Place(0, SIZE, 8, allowed),), file_width)


@given(plans(), st.integers(0, SIZE - 1), st.integers(1, SIZE), st.booleans())
@example(whole((4,)), 0, 8, False)
@example(whole((8,)), 8, 4, False)
@example(whole((1, 8)), 0, 12, False)
@example(Plan((Place(0, SIZE, 4, (8,)),), 4), 0, 8, False)
def test_a_request_is_made_of_allowed_accesses_or_touches_nothing(
    plan: Plan, offset: int, count: int, writes: bool
) -> None:
    recorder = Recorder(bytearray(range(SIZE)))
    table = table_of(plan, recorder)
    try:
        expected = split(list(plan.places), plan.file_width, offset, count)
    except ValueError:
        expected = []
    end = min(offset + count, SIZE)
    try:
        if writes:
            assert table.write(offset, bytes(count)) == end - offset
        else:
            assert table.read(offset, count) == bytes(range(offset, end))
    except InvalidAccess:
        assert recorder.accesses == []
        assert expected == []
        return
    assert recorder.accesses == expected
    for access in recorder.accesses:
        (place,) = (one for one in plan.places if one.start <= access.offset < one.end)
        assert access.width in place.allowed
        assert access.width <= place.max_width
        assert access.offset % access.width == 0
        assert access.end <= place.end
    edges = [offset, *(access.end for access in recorder.accesses)]
    assert [access.offset for access in recorder.accesses] == edges[:-1]
    assert edges[-1] == end


@given(plans(), st.integers(0, SIZE - 1), st.sampled_from(WIDTHS))
def test_a_single_access_has_an_allowed_width_or_is_refused(
    plan: Plan, offset: int, width: int
) -> None:
    recorder = Recorder(bytearray(SIZE))
    table, guarded = (table_of(plan, recorder, guard=guard) for guard in (False, True))
    fits = offset % width == 0 and any(
        place.start <= offset and offset + width <= place.end
        for place in plan.places
        if width in place.allowed and width <= place.max_width
    )
    accesses = (
        lambda: table.load(offset, width),
        lambda: table.store(offset, width, 0),
        lambda: guarded.read(offset, width),
        lambda: guarded.write(offset, bytes(width)),
    )
    for access in accesses:
        recorder.accesses.clear()
        if fits:
            access()
            assert recorder.accesses == [Access(offset, width)]
            continue
        if offset + width > SIZE and offset % width == 0:
            continue  # clipped at the end
        with pytest.raises(InvalidAccess):
            access()
        assert recorder.accesses == []


@given(
    plans(),
    st.integers(0, SIZE - 1),
    st.integers(1, 8),
    st.integers(0, SIZE - 1),
    st.integers(1, SIZE),
)
def test_beside_what_is_denied_accesses_are_as_without_it(
    plan: Plan, start: int, size: int, offset: int, count: int
) -> None:
    denied = Range(start, min(start + size, SIZE))
    recorder, free = (Recorder(bytearray(SIZE)) for _ in range(2))
    table = table_of(plan, recorder)
    table.deny([denied], [])
    try:
        table_of(plan, free).read(offset, count)
    except InvalidAccess:
        with pytest.raises(InvalidAccess):
            table.read(offset, count)
    else:
        try:
            table.read(offset, count)
        except PolicyDenied:
            assert free.accesses[0].offset < denied.end
    assert recorder.accesses == free.accesses[: len(recorder.accesses)]
    assert not any(Range(one.offset, one.end).overlap(denied).size for one in recorder.accesses)


@pytest.mark.parametrize("allowed", SETS)
def test_windows_and_descriptors_follow_the_same_rule(allowed: tuple[int, ...]) -> None:
    """The bytes are right; `test_widths` of the mount sees what reaches a device."""
    content = os.urandom(PAGE)
    with memfd(PAGE, content) as fd:
        mapping = engine.Mapping(fd, 0, PAGE)
        for target in (engine.Memory(mapping), engine.Descriptor(fd, 0)):
            entry = engine.TableEntry(0, PAGE, True, True, 8, target, allowed)
            table = engine.Table(engine.InFlight(), PAGE, 4, [entry])
            narrowest = allowed[0]
            assert table.read(8, 64) == content[8:72]
            assert table.read(0, narrowest) == content[:narrowest]
            for offset, count in ((narrowest // 2, narrowest), (0, narrowest // 2)):
                if count and narrowest > 1:
                    with pytest.raises(InvalidAccess, match="this place takes accesses of"):
                        table.read(offset, count)
        mapping.close()


def test_the_error_names_what_is_taken() -> None:
    table = table_of(whole((2, 4)), Recorder(bytearray(SIZE)))
    with pytest.raises(InvalidAccess, match="this place takes accesses of 2 or 4 bytes only"):
        table.load(0, 1)
    none = table_of(Plan((Place(0, SIZE, 4, (8,)),), 4), Recorder(bytearray(SIZE)))
    with pytest.raises(InvalidAccess, match="at most 4 bytes, which are not allowed"):
        none.read(0, 8)


@pytest.mark.parametrize("allowed", [(), (3,), (4, 16)])
def test_a_set_is_of_widths(allowed: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="allowed must be some of 1, 2, 4 and 8"):
        engine.TableEntry(0, 8, True, True, 8, engine.Refused(), allowed)
