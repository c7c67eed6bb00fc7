# SPDX-License-Identifier: MIT
"""What a policy denies and the guard refuses is never touched, and changes nothing beside it."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from barfs import engine
from barfs.errors import BeyondEnd, InvalidAccess, PolicyDenied
from barfs.ranges import Range
from tests.support.engine_bench import Access, Recorder, call_table

SIZE = 64


@st.composite
def denied_ranges(draw: st.DrawFn) -> list[Range]:
    edges = sorted(draw(st.sets(st.integers(0, SIZE), max_size=8)))
    return [Range(*pair) for pair in zip(edges[::2], edges[1::2], strict=False)]


def bench(
    width: int = 4, max_width: int = 8, denied: list[Range] | None = None
) -> tuple[engine.Table, Recorder]:
    recorder = Recorder(bytearray(range(SIZE)))
    table = call_table(recorder, width=width, max_width=max_width)
    if denied is not None:
        table.deny(denied, [])
    return table, recorder


@given(
    denied_ranges(),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, SIZE - 1),
    st.integers(1, SIZE),
)
@example([Range(57, 58)], 1, 1, 56, 9)
def test_requests_end_before_what_is_denied(
    denied: list[Range], width: int, max_width: int, offset: int, count: int
) -> None:
    table, recorder = bench(width, max_width, denied)
    free, unrestricted = bench(width, max_width)
    expected = free.read(offset, count)
    try:
        data = table.read(offset, count)
    except PolicyDenied:
        data = b""
    touched = {byte for access in recorder.accesses for byte in range(access.offset, access.end)}
    assert not any(part.start <= byte < part.end for byte in touched for part in denied)
    assert recorder.accesses == unrestricted.accesses[: len(recorder.accesses)]
    assert data == expected[: len(data)]
    first = min((max(part.start, offset) for part in denied if part.end > offset), default=SIZE)
    clipped = len(expected)  # what a request across the end amounts to
    own = clipped in (1, 2, 4, 8) and offset % clipped == 0
    assert len(data) > min(first, offset + clipped) - offset - (clipped if own else width)


def test_an_access_is_denied_whole() -> None:
    table, recorder = bench(denied=[Range(4, 5)])
    for offset, count in ((0, 8), (4, 4), (4, 1)):
        with pytest.raises(PolicyDenied, match=r"bar0\+.*the policy does not permit it"):
            table.read(offset, count)
    with pytest.raises(PolicyDenied):
        table.load(0, 8)
    assert table.load(5, 1) == 5
    assert table.load(0, 4) == 0x03020100
    assert recorder.accesses == [Access(5, 1), Access(0, 4)]


def test_reading_and_writing_are_denied_apart() -> None:
    table, recorder = bench()
    table.deny([Range(0, 4)], [Range(0, 8)])
    with pytest.raises(PolicyDenied):
        table.store(4, 4, 1)
    with pytest.raises(PolicyDenied):
        table.write(0, b"1234")
    assert table.read(4, 4) == bytes(range(4, 8))
    assert table.write(8, b"1234") == 4
    assert recorder.accesses == [Access(4, 4), Access(8, 4)]


@pytest.mark.parametrize(("offset", "count"), [(0, 3), (0, 16), (2, 4), (4, 8), (1, 2), (60, 5)])
def test_the_guard_refuses_what_is_not_one_access(offset: int, count: int) -> None:
    recorder = Recorder(bytearray(SIZE))
    entry = engine.TableEntry(0, SIZE, True, True, 8, recorder.target())
    table = engine.Table(engine.InFlight(), SIZE, 4, [entry], guard_reads=True, guard_writes=True)
    with pytest.raises(InvalidAccess):
        table.read(offset, count)
    with pytest.raises(InvalidAccess):
        table.write(offset, bytes(count))
    assert recorder.accesses == []


PLACES = [(0, 16, 4), (16, 32, 8), (32, 35, 2), (35, 64, 8)]
"""Start, end, and the widest access."""


def uneven_table(recorder: Recorder, *, guard: bool = False, port: bool = False) -> engine.Table:
    entries = [
        engine.TableEntry(start, end, True, True, width, recorder.target())
        for start, end, width in PLACES
    ]
    return engine.Table(
        engine.InFlight(), SIZE, 4, entries, guard_reads=guard, guard_writes=guard, port=port
    )


@given(st.integers(0, SIZE + 2), st.integers(0, SIZE), st.booleans())
@example(0, 8, False)
@example(34, 2, False)
@example(56, 16, False)
def test_what_the_guard_lets_through_is_one_access(offset: int, count: int, port: bool) -> None:
    """Of its place; without the guard the same requests are cut into more."""
    recorder, free = (Recorder(bytearray(SIZE)) for _ in range(2))
    table = uneven_table(recorder, guard=not port, port=port)
    uneven_table(free).read(offset, count)
    one = len(free.accesses) == 1 and count in (1, 2, 4, 8) and offset % count == 0
    if port:
        one = one and count <= 4 and offset + count <= SIZE
    for access in (lambda: table.read(offset, count), lambda: table.write(offset, bytes(count))):
        recorder.accesses.clear()
        if one:
            access()
            assert recorder.accesses == free.accesses
        elif not port and (count == 0 or (offset >= SIZE and count in (1, 2, 4, 8))):
            continue
        else:
            with pytest.raises(InvalidAccess):
                access()
            assert recorder.accesses == []


@pytest.mark.parametrize(("offset", "most"), [(0, 4), (8, 4), (32, 2), (48, 0)])
def test_a_width_that_is_refused_names_the_one_that_is_taken(offset: int, most: int) -> None:
    table = uneven_table(Recorder(bytearray(SIZE)))
    if not most:
        assert table.load(offset, 8) == 0
        return
    with pytest.raises(InvalidAccess, match=f"this place takes {most} bytes at most"):
        table.load(offset, 8)
    with pytest.raises(InvalidAccess, match=f"this place takes {most} bytes at most"):
        table.store(offset, 8, 0)


def test_the_guard_lets_single_accesses_through() -> None:
    recorder = Recorder(bytearray(SIZE))
    entry = engine.TableEntry(0, SIZE, True, True, 8, recorder.target())
    table = engine.Table(engine.InFlight(), SIZE, 4, [entry], guard_reads=True)
    for width in (1, 2, 4, 8):
        assert len(table.read(8, width)) == width
    assert table.read(SIZE, 4) == b""
    assert table.write(0, bytes(16)) == 16  # guard_writes is its own
    assert recorder.accesses[:4] == [Access(8, width) for width in (1, 2, 4, 8)]
    with pytest.raises(BeyondEnd):
        table.write(SIZE, bytes(4))
