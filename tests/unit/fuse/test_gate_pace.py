# SPDX-License-Identifier: MIT
"""A device that is slow, through its window and through its descriptor, beside one that is not."""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from barfs import engine
from tests.support import require, require_fuse
from tests.support.slow_file import SlowFile, slow_file
from tests.support.userfault import PAGE, Fault, Userfault, userfault
from tests.unit.fuse.gate_rig import GAP, PATIENCE, REGION, Kernel, gated

OTHER = 20
"""The node of the slow device's region: a window, or a descriptor of the same memory."""

PAGES = 8
SIZE = PAGES * PAGE
SLOW = 0.05
"""Seconds that an access takes, far more than the reader's budget."""


@dataclass(frozen=True, slots=True)
class Rig:
    kernel: Kernel
    faults: Userfault | SlowFile

    def send(self, page: int, before: int = 0, count: int = 4) -> int:
        return self.kernel.send_read(OTHER, page * PAGE - before, count)

    def wait(self, page: int) -> str:
        """Wait for an access of the page; returns the name of the thread that makes it."""
        fault = self.faults.wait()
        assert fault.page == page
        return _name(fault)

    def fill_late(self, page: int) -> None:
        time.sleep(SLOW)
        self.faults.fill(page)

    def read_slowly(self, page: int) -> str:
        """A 4-byte read whose one access is slow; returns the thread that made it."""
        unique = self.send(page)
        name = self.wait(page)
        self.fill_late(page)
        assert self.kernel.reply() == (unique, 0, bytes([page + 1]) * 4)
        return name

    def read_quickly(self, page: int) -> None:
        assert self.kernel.read(OTHER, page * PAGE, 4) == (0, bytes([page + 1]) * 4)

    def read_slowly_after_quick(self, page: int) -> str:
        """As `read_slowly`, once the device looks quick, unless the machine has been busy."""
        for _ in range(100):
            self.read_quickly(page - 1)
        return self.read_slowly(page)

    def assert_others_go_on(self) -> None:
        for offset in (0, GAP):
            assert self.kernel.read(REGION, offset, 4) == (0, bytes(4))


def _name(fault: Fault) -> str:
    (name,) = (each.name for each in threading.enumerate() if each.native_id == fault.thread)
    return name


@pytest.fixture(autouse=True)
def root() -> None:
    require("root", os.geteuid() == 0, "userfaultfd and mount need root")
    require_fuse()


@contextlib.contextmanager
def _window(_folder: Path) -> Iterator[tuple[Userfault, engine.Target]]:
    memory = os.memfd_create("slow")
    os.truncate(memory, SIZE)
    mapping = engine.Mapping(memory, 0, SIZE)
    with userfault(mapping.address, SIZE) as faults:
        yield faults, engine.Memory(mapping, 0)
    os.close(memory)


@contextlib.contextmanager
def _descriptor(folder: Path) -> Iterator[tuple[SlowFile, engine.Target]]:
    with slow_file(SIZE, folder / "slow") as file:
        yield file, engine.Descriptor(file.fd, 0)


@contextlib.contextmanager
def rigged(kind: str, folder: Path, timeout: float = 60.0) -> Iterator[Rig]:
    in_flight = engine.InFlight()
    with (
        (_window if kind == "window" else _descriptor)(folder) as (faults, target),
        gated() as kernel,
    ):
        segment = engine.TableEntry(0, SIZE, True, True, 8, target)
        table = engine.Table(in_flight, SIZE, 4, [segment], timeout=timeout)
        kernel.gate.add_device("0000:02:00.0", {OTHER: (table, True, True)})
        try:
            yield Rig(kernel, faults)
        finally:
            for page in range(PAGES):
                with contextlib.suppress(FileExistsError):
                    faults.fill(page)
    assert in_flight.drain(PATIENCE)


@pytest.fixture(params=["window", "descriptor"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def rig(kind: str, tmp_path: Path) -> Iterator[Rig]:
    with rigged(kind, tmp_path) as found:
        yield found


def begin(rig: Rig, count: int) -> int:
    """A read of `count` bytes from 4 before page 1, whose first access was slow: the reader made
    that one, and the second is under way."""
    unique = rig.send(1, 4, count)
    assert rig.wait(0) == "gate-reader"
    rig.fill_late(0)
    assert rig.wait(1) == "gate-lane"
    return unique


def test_the_rest_of_a_slow_request_goes_on_in_a_lane(rig: Rig) -> None:
    unique = begin(rig, 256)
    rig.assert_others_go_on()
    rig.faults.fill(1)
    assert rig.kernel.reply() == (unique, 0, b"\1" * 4 + b"\2" * 252)
    rig.kernel.assert_silent()


def test_a_write_goes_on_where_it_stopped(rig: Rig) -> None:
    body = bytes(range(12))
    unique = rig.kernel.send_write(OTHER, PAGE - 4, body)
    assert rig.wait(0) == "gate-reader"
    rig.fill_late(0)
    assert rig.wait(1) == "gate-lane"
    rig.faults.fill(1)
    assert rig.kernel.reply() == (unique, 0, (12).to_bytes(8, "little"))
    assert rig.kernel.read(OTHER, PAGE - 8, 24) == (0, b"\1" * 4 + body + b"\2" * 8)


def test_an_interrupt_ends_it_after_the_access_that_runs(rig: Rig) -> None:
    unique = begin(rig, 256)
    rig.kernel.interrupt(unique)
    rig.kernel.sync()
    rig.faults.fill(1)
    assert rig.kernel.reply() == (unique, 0, b"\1" * 4 + b"\2" * 4)


def test_what_is_done_is_told_at_the_deadline(kind: str, tmp_path: Path) -> None:
    with rigged(kind, tmp_path, timeout=0.4) as rig:
        unique = begin(rig, 256)
        assert rig.kernel.reply() == (unique, 0, b"\1" * 4)
        waiting = rig.send(2)
        assert rig.kernel.reply() == (waiting, errno.ETIMEDOUT, b"")
        rig.faults.fill(1)
        rig.kernel.sync()
        rig.kernel.assert_silent()


def test_what_is_done_is_told_when_the_device_leaves(rig: Rig) -> None:
    unique = rig.send(1, 4, 256)
    rig.wait(0)
    rig.kernel.device.remove()  # another's: this one goes on
    rig.fill_late(0)
    rig.wait(1)
    assert not rig.kernel.gate.stop(0.1)
    assert rig.kernel.reply() == (unique, 0, b"\1" * 4)
    rig.faults.fill(1)


def test_a_slow_device_is_in_its_lane_from_the_first_byte(rig: Rig) -> None:
    assert rig.read_slowly(0) == "gate-reader"
    unique = rig.send(1)
    assert rig.wait(1) == "gate-lane"
    rig.assert_others_go_on()
    rig.fill_late(1)
    assert rig.kernel.reply() == (unique, 0, b"\2" * 4)
    assert rig.read_slowly(2) == "gate-lane"


def test_a_single_access_does_not_wait_for_several(rig: Rig) -> None:
    unique = begin(rig, 256)
    single = rig.send(3)
    assert rig.wait(3) == "gate-lane"
    rig.faults.fill(3)
    assert rig.kernel.reply() == (single, 0, bytes([4]) * 4)
    rig.faults.fill(1)
    assert rig.kernel.reply() == (unique, 0, b"\1" * 4 + b"\2" * 252)


def test_a_fault_after_quick_memory_is_the_only_one(tmp_path: Path) -> None:
    with rigged("window", tmp_path) as rig:
        rig.faults.fill(0)
        unique = rig.send(1, PAGE // 2, PAGE)
        assert rig.wait(1) == "gate-reader"
        rig.fill_late(1)
        assert rig.kernel.reply() == (unique, 0, b"\1" * (PAGE // 2) + b"\2" * (PAGE // 2))


def test_a_device_that_is_quick_again(tmp_path: Path) -> None:
    with rigged("window", tmp_path) as rig:
        assert rig.read_slowly(0) == "gate-reader"
        assert "gate-reader" in (rig.read_slowly_after_quick(page) for page in range(1, PAGES))


def test_a_device_that_is_quick_and_slow_in_turns(tmp_path: Path) -> None:
    """It holds up the others twice, not each time."""
    with rigged("window", tmp_path) as rig:
        names = [rig.read_slowly(0), *map(rig.read_slowly_after_quick, range(1, PAGES))]
        assert names[0] == "gate-reader"
        assert names.count("gate-reader") <= 2
