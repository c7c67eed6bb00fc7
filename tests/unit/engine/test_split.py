# SPDX-License-Identifier: MIT
"""Every request is cut into accesses as barfs(7) says, over every kind of entry."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from barfs import engine
from barfs.errors import AccessDenied, BeyondEnd, InvalidAccess
from tests.support.engine_bench import PAGE, Access, Place, Recorder, call_table, memfd, split

SIZE = 256
widths = st.sampled_from([1, 2, 4, 8])
kinds = st.sampled_from(["memory", "fd", "call"])


@dataclass(frozen=True)
class Plan:
    """A region of `SIZE` bytes: where its entries end, and each one's max_width and kind."""

    ends: tuple[int, ...]
    max_widths: tuple[int, ...]
    kinds: tuple[str, ...]
    file_width: int

    @property
    def places(self) -> list[Place]:
        starts = (0, *self.ends[:-1])
        return [Place(*row) for row in zip(starts, self.ends, self.max_widths, strict=True)]


@st.composite
def plans(draw: st.DrawFn, kinds: st.SearchStrategy[str] = kinds) -> Plan:
    edges = draw(st.sets(st.integers(1, SIZE - 1), max_size=6))
    ends = (*sorted(edges), SIZE)

    def each(values: st.SearchStrategy[object]) -> tuple[object, ...]:
        return draw(st.tuples(*[values] * len(ends)))

    return Plan(ends, each(widths), each(kinds), draw(widths))  # type: ignore[arg-type]


class Bench:
    """A region whose bytes live in a memfd, whichever way each entry reaches them."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.mapping = engine.Mapping(fd, 0, PAGE)

    def table(self, plan: Plan) -> tuple[engine.Table, list[Access]]:
        accesses: list[Access] = []

        def read(offset: int, width: int) -> bytes:
            accesses.append(Access(offset, width))
            return os.pread(self.fd, width, offset)

        def write(offset: int, data: bytes) -> None:
            accesses.append(Access(offset, len(data)))
            os.pwrite(self.fd, data, offset)

        def target(kind: str, start: int) -> engine.Target:
            if kind == "memory":
                return engine.Memory(self.mapping, start)
            return engine.Descriptor(self.fd, 0) if kind == "fd" else engine.Call(read, write)

        entries = [
            engine.TableEntry(p.start, p.end, True, True, p.max_width, target(kind, p.start))
            for p, kind in zip(plan.places, plan.kinds, strict=True)
        ]
        return engine.Table(engine.InFlight(), SIZE, plan.file_width, entries), accesses


@pytest.fixture
def bench() -> Iterator[Bench]:
    with memfd(PAGE) as fd:
        yield Bench(fd)


offsets = st.integers(0, SIZE + 16)
counts = st.integers(0, 80) | st.sampled_from([1, 2, 4, 8])
one_bench = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(plan=plans(kinds=st.just("call")), offset=offsets, count=counts)
@one_bench
def test_a_read_becomes_the_accesses_of_the_rule(
    bench: Bench, plan: Plan, offset: int, count: int
) -> None:
    table, accesses = bench.table(plan)
    table.read(offset, count)
    assert accesses == split(plan.places, plan.file_width, offset, count)


@given(plan=plans(kinds=st.just("call")), offset=st.integers(0, SIZE - 1), count=counts)
@one_bench
def test_accesses_are_aligned_and_cover_the_request_once_in_order(
    bench: Bench, plan: Plan, offset: int, count: int
) -> None:
    table, accesses = bench.table(plan)
    table.write(offset, bytes(count))
    assert all(access.offset % access.width == 0 for access in accesses)
    edges = [offset, *(access.end for access in accesses)]
    assert [access.offset for access in accesses] == edges[:-1]
    assert edges[-1] == min(offset + count, SIZE)


@given(plan=plans(), offset=offsets, count=counts, content=st.binary(min_size=SIZE, max_size=SIZE))
@one_bench
def test_reads_give_the_bytes_of_the_device_over_all_kinds(
    bench: Bench, plan: Plan, offset: int, count: int, content: bytes
) -> None:
    os.pwrite(bench.fd, content, 0)
    table, _ = bench.table(plan)
    assert table.read(offset, count) == content[offset : offset + count]
    buffer = bytearray(b"\xee" * (count + 3))
    done = table.read_into(offset, memoryview(buffer)[1 : count + 1])
    assert done == len(content[offset : offset + count])
    assert buffer == b"\xee" + content[offset : offset + count].ljust(count, b"\xee") + b"\xee\xee"


@given(plan=plans(), offset=st.integers(0, SIZE - 1), data=st.binary(max_size=80))
@one_bench
def test_writes_change_those_bytes_and_no_others(
    bench: Bench, plan: Plan, offset: int, data: bytes
) -> None:
    before = bytes(range(SIZE))
    os.pwrite(bench.fd, before, 0)
    table, _ = bench.table(plan)
    done = table.write(offset, data)
    written = data[: SIZE - offset]
    assert done == len(written)
    after = before[:offset] + written + before[offset + done :]
    assert os.pread(bench.fd, SIZE, 0) == after


@given(plan=plans(), offset=offsets, width=widths, value=st.integers(0, 2**64 - 1))
@one_bench
def test_load_and_store_are_one_access_or_none(
    bench: Bench, plan: Plan, offset: int, width: int, value: int
) -> None:
    before = os.pread(bench.fd, SIZE, 0)
    table, accesses = bench.table(plan)
    value &= (1 << 8 * width) - 1
    fits = offset % width == 0 and any(
        place.start <= offset and offset + width <= place.end and width <= place.max_width
        for place in plan.places
    )
    if not fits:
        refusal = BeyondEnd if offset >= table.size else InvalidAccess
        with pytest.raises(refusal):
            table.load(offset, width)
        with pytest.raises(refusal):
            table.store(offset, width, value)
        assert not accesses
        assert os.pread(bench.fd, SIZE, 0) == before
        return
    table.store(offset, width, value)
    assert table.load(offset, width) == value
    if width == 4:
        assert table.load32(offset) == value
    assert os.pread(bench.fd, width, offset) == value.to_bytes(width, "little")
    assert all(access == Access(offset, width) for access in accesses)


def test_only_the_end_shortens_a_request() -> None:
    recorder = Recorder(bytearray(range(10)))
    table = call_table(recorder)
    assert table.read(8, 8) == b"\x08\x09"
    assert recorder.accesses == [Access(8, 2)]  # what is left is aligned, and 2 bytes long
    assert table.read(10, 1) == b""
    assert table.read(1 << 62, 1) == b""
    assert table.write(9, b"ab") == 1
    for offset in (10, 11, 1 << 62):
        with pytest.raises(BeyondEnd):
            table.write(offset, b"a")
    assert table.write(10, b"") == 0


@pytest.mark.parametrize("offset", [0, 2, 4, 14])
@pytest.mark.parametrize("count", range(10))
def test_a_port_takes_one_aligned_access_inside_or_refuses(offset: int, count: int) -> None:
    recorder = Recorder(bytearray(range(16)))
    table = call_table(recorder, port=True)
    if count in (1, 2, 4) and offset % count == 0 and offset + count <= 16:
        assert table.read(offset, count) == bytes(range(offset, offset + count))
        assert table.write(offset, bytes(count)) == count
        assert recorder.accesses == [Access(offset, count)] * 2
        return
    with pytest.raises(InvalidAccess):
        table.read(offset, count)
    with pytest.raises(InvalidAccess):
        table.write(offset, bytes(count))
    assert not recorder.accesses


def test_a_port_has_no_end_of_file() -> None:
    table = call_table(Recorder(bytearray(6)), port=True)
    for offset, count in [(6, 1), (8, 4), (4, 4)]:
        with pytest.raises(InvalidAccess):
            table.read(offset, count)
        with pytest.raises(InvalidAccess):
            table.write(offset, bytes(count))
    with pytest.raises(InvalidAccess):
        table.load(0, 8)
    with pytest.raises(InvalidAccess):
        table.read(0, 1 << 60)


def test_permission_ends_a_request_where_it_ends() -> None:
    recorder = Recorder(bytearray(range(16)))
    entries = [
        engine.TableEntry(0, 4, True, False, 4, recorder.target()),
        engine.TableEntry(4, 8, True, True, 4, recorder.target()),
        engine.TableEntry(8, 12, False, True, 4, recorder.target()),
        engine.TableEntry(12, 16, True, True, 4, engine.Refused()),
    ]
    table = engine.Table(engine.InFlight(), 16, 4, entries)
    assert table.read(0, 16) == bytes(range(8))
    assert table.write(4, bytes(12)) == 8
    for offset in (8, 12):
        with pytest.raises(AccessDenied):
            table.read(offset, 4)
        with pytest.raises(AccessDenied):
            table.load32(offset)
    for offset in (0, 12):
        with pytest.raises(AccessDenied):
            table.write(offset, bytes(8))
        with pytest.raises(AccessDenied):
            table.store(offset, 4, 0)


class TestRefusedTables:
    def table(self, *edges: tuple[int, int], size: int = 16) -> None:
        entries = [engine.TableEntry(*edge, True, True, 4, engine.Refused()) for edge in edges]
        engine.Table(engine.InFlight(), size, 4, entries)

    def test_entries_cover_the_region(self) -> None:
        self.table((0, 8), (8, 16))
        with pytest.raises(ValueError, match=r"0x4\.\.0x10 overlaps what ends at 0x8"):
            self.table((0, 8), (4, 16))
        with pytest.raises(ValueError, match="leaves a gap after what ends at 0x4"):
            self.table((0, 4), (8, 16))
        with pytest.raises(ValueError, match="the ranges end at 0x8, not at 0x10"):
            self.table((0, 8))
        with pytest.raises(ValueError, match="end at 0x0"):
            self.table()
        with pytest.raises(ValueError, match=r"0x0\.\.0x0 is empty"):
            self.table((0, 0))

    def test_memory_lies_in_its_mapping(self) -> None:
        with memfd(PAGE) as fd:
            mapping = engine.Mapping(fd, 0, PAGE, writable=False)
            engine.TableEntry(0, PAGE, True, False, 8, engine.Memory(mapping))
            with pytest.raises(ValueError, match="not inside its mapping"):
                engine.TableEntry(0, PAGE + 1, True, False, 8, engine.Memory(mapping))
            with pytest.raises(ValueError, match="aligned differently"):
                engine.TableEntry(0, 16, True, False, 8, engine.Memory(mapping, 4))
            with pytest.raises(ValueError, match="does not permit"):
                engine.TableEntry(0, PAGE, True, True, 8, engine.Memory(mapping))

    def test_widths_are_powers_of_two(self) -> None:
        with pytest.raises(ValueError, match="max_width must be 1, 2, 4 or 8, not 3"):
            engine.TableEntry(0, 4, True, True, 3, engine.Refused())
        with pytest.raises(ValueError, match="width must be 1, 2, 4 or 8, not 16"):
            engine.Table(engine.InFlight(), 4, 16, [])
        table = call_table(Recorder(bytearray(16)))
        for width in (0, 3, 16):
            with pytest.raises(InvalidAccess):
                table.load(0, width)
        for value, width in [(256, 1), (-1, 4), (1 << 64, 8)]:
            with pytest.raises(ValueError, match="does not fit"):
                table.store(0, width, value)
