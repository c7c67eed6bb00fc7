# SPDX-License-Identifier: MIT
"""Mappings and reservations: where they are, what they permit, and that none is left behind."""

import gc
import os
import weakref
from collections.abc import Iterator

import pytest

from barfs import engine
from tests.support.engine_bench import PAGE, memfd


@pytest.fixture
def fd() -> Iterator[int]:
    with memfd(4 * PAGE) as fd:
        for page in range(4):
            os.pwrite(fd, bytes([page]), page * PAGE)
        yield fd


def maps(address: int, size: int) -> list[tuple[int, int, str]]:
    """What the kernel has in `[address, address + size)`: start, end and permissions of each."""
    found = []
    with open("/proc/self/maps") as lines:
        for line in lines:
            edges, permissions = line.split()[:2]
            start, end = (int(edge, 16) for edge in edges.split("-"))
            if start < address + size and address < end:
                found.append((max(start, address), min(end, address + size), permissions))
    return found


def first_byte(mapping: engine.Mapping) -> int:
    entry = engine.TableEntry(0, mapping.size, True, False, 8, engine.Memory(mapping))
    return engine.Table(engine.InFlight(), mapping.size, 4, [entry]).load(0, 1)


@pytest.mark.parametrize(
    ("readable", "writable", "expected"),
    [(True, True, "rw-s"), (True, False, "r--s"), (False, True, "-w-s"), (False, False, "---s")],
)
def test_a_mapping_has_the_protection_asked_for(
    fd: int, readable: bool, writable: bool, expected: str
) -> None:
    mapping = engine.Mapping(fd, 2 * PAGE, PAGE, readable, writable)
    start, end = mapping.address, mapping.address + PAGE
    assert maps(start, PAGE) == [(start, end, expected)]
    mapping.close()
    assert maps(start, PAGE) == []
    mapping.close()


def test_what_the_kernel_refuses_is_an_oserror(fd: int) -> None:
    with pytest.raises(OSError, match="mmap of 0x1000 bytes"):
        engine.Mapping(fd, 1, PAGE)
    with pytest.raises(OSError, match="Bad file descriptor"):
        engine.Mapping(1 << 20, 0, PAGE)
    for size in (0, -PAGE, PAGE + 1):
        with pytest.raises(ValueError, match="not whole pages"):
            engine.Mapping(fd, 0, size)


def test_windows_stand_at_their_offsets_in_a_reservation(fd: int) -> None:
    reservation = engine.Reservation(3 * PAGE + 1)
    assert reservation.size == 4 * PAGE
    base = reservation.address
    window = engine.Mapping(fd, PAGE, PAGE, within=reservation, at=2 * PAGE)
    assert window.address == base + 2 * PAGE
    assert first_byte(window) == 1
    assert [row[2] for row in maps(base, 4 * PAGE)] == ["---p", "rw-s", "---p"]
    with pytest.raises(RuntimeError, match="still open"):
        reservation.close()
    window.close()
    assert [row[2] for row in maps(base, 4 * PAGE)] in (["---p"], ["---p"] * 2, ["---p"] * 3)
    reservation.close()
    assert maps(base, 4 * PAGE) == []
    reservation.close()
    with pytest.raises(ValueError, match="not inside the reservation"):
        engine.Mapping(fd, 0, PAGE, within=reservation)


def test_a_window_cannot_leave_its_reservation(fd: int) -> None:
    reservation = engine.Reservation(2 * PAGE)
    for at in (-PAGE, 2 * PAGE, 1 << 40):
        with pytest.raises(ValueError, match="not inside the reservation"):
            engine.Mapping(fd, 0, PAGE, within=reservation, at=at)
    with pytest.raises(ValueError, match="not whole pages"):
        engine.Mapping(fd, 0, PAGE, within=reservation, at=8)
    reservation.close()


def test_a_mapping_lives_as_long_as_a_table_that_needs_it(fd: int) -> None:
    mapping = engine.Mapping(fd, 3 * PAGE, PAGE)
    address = mapping.address
    entry = engine.TableEntry(0, PAGE, True, True, 8, engine.Memory(mapping))
    table = engine.Table(engine.InFlight(), PAGE, 4, [entry])
    gone = weakref.ref(mapping)
    del mapping, entry
    gc.collect()
    assert table.load(0, 1) == 3
    del table
    gc.collect()
    assert gone() is None
    assert maps(address, PAGE) == []


def test_nothing_is_left_behind(fd: int) -> None:
    def count() -> int:
        with open("/proc/self/maps") as lines:
            return sum("barfs-test" in line for line in lines)

    before = count()
    for _ in range(200):
        reservation = engine.Reservation(8 * PAGE)
        mappings = [
            engine.Mapping(fd, 0, PAGE, within=reservation, at=at * PAGE) for at in (0, 2, 5)
        ]
        assert first_byte(mappings[2]) == 0
        gc.collect(0)
    del reservation, mappings
    gc.collect()
    assert count() == before
