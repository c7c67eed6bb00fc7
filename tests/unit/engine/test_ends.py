# SPDX-License-Identifier: MIT
"""How transfers end early: failing accesses, closing, stop, deadline; and the way errors travel."""

import errno
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from barfs import engine, errors
from barfs.errors import (
    ACCESS_ERRORS,
    AccessDenied,
    AccessError,
    AccessTimeout,
    BeyondEnd,
    BusFault,
    DeviceGone,
    ForkedAccess,
    Interrupted,
    InvalidAccess,
    PolicyDenied,
    access_error,
)
from tests.support.engine_bench import (
    PAGE,
    Access,
    Recorder,
    call_table,
    memfd,
    memory_table,
    outcome,
)


def fd_table(fd: int, size: int, fd_offset: int = 0) -> engine.Table:
    entry = engine.TableEntry(0, size, True, True, 4, engine.Descriptor(fd, fd_offset))
    return engine.Table(engine.InFlight(), size, 4, [entry], name="bar1")


class TestCalls:
    def test_bytes_done_are_a_short_count(self) -> None:
        recorder = Recorder(bytearray(range(32)), fail_at=8, error=BusFault("asleep"))
        table = call_table(recorder)
        assert table.read(0, 32) == bytes(range(8))
        assert table.write(4, b"abcdefgh") == 4
        assert recorder.accesses == [Access(0, 4), Access(4, 4), Access(4, 4)]

    @pytest.mark.parametrize("kind", [BusFault, DeviceGone, AccessTimeout, AccessDenied])
    def test_the_caller_gets_the_error_that_was_raised(self, kind: type[AccessError]) -> None:
        error = kind("a reason", region="bar7", offset=3, width=1)
        table = call_table(Recorder(bytearray(32), error=error))
        for attempt in (
            lambda: table.read(0, 32),
            lambda: table.write(0, b"1234"),
            lambda: table.load(8, 2),
            lambda: table.load(8, 8),
            lambda: table.load32(8),
            lambda: table.store(8, 2, 1),
        ):
            with pytest.raises(kind) as raised:
                attempt()
            assert raised.value is error

    def test_an_error_behind_a_short_count_is_not_kept(self) -> None:
        failing = Recorder(bytearray(8), fail_at=4, error=BusFault("old"))
        other = Recorder(bytearray(8), error=None)
        assert len(call_table(failing, max_width=4).read(0, 8)) == 4
        with pytest.raises(InvalidAccess) as raised:
            call_table(other).load(1, 2)
        assert outcome(raised.value) == (InvalidAccess, "bar0", 1, 2)

    def test_a_bug_is_logged_and_is_a_fault(self, caplog: pytest.LogCaptureFixture) -> None:
        table = call_table(Recorder(bytearray(8), error=ZeroDivisionError("oops")))
        with caplog.at_level(logging.ERROR), pytest.raises(BusFault) as raised:
            table.read(0, 4)
        assert outcome(raised.value) == (BusFault, "bar0", 0, 4)
        assert "ZeroDivisionError: oops" in caplog.text

    def test_an_answer_of_the_wrong_length_is_a_fault(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        call = engine.Call(lambda offset, width: b"toolong"[: width + 1], lambda offset, data: None)
        entry = engine.TableEntry(0, 4, True, True, 4, call)
        table = engine.Table(engine.InFlight(), 4, 4, [entry])
        with pytest.raises(BusFault):
            table.read(0, 4)
        assert ", 4) returned 5 bytes" in caplog.text

    @pytest.mark.parametrize("fail_at", [0, 4])
    def test_keyboard_interrupt_reaches_the_caller(self, fail_at: int) -> None:
        recorder = Recorder(bytearray(8), fail_at=fail_at, error=KeyboardInterrupt())
        table = call_table(recorder, max_width=4)
        with pytest.raises(KeyboardInterrupt):
            table.read(0, 8)

    def test_a_call_may_use_another_table(self) -> None:
        with memfd(PAGE, b"inner!!!") as fd, memory_table(fd, PAGE) as inner:
            call = engine.Call(inner.read, inner.write)
            entries = [
                engine.TableEntry(0, 8, True, True, 4, call),
                engine.TableEntry(8, PAGE, True, True, 4, engine.Memory(mapping_of(inner), 8)),
            ]
            outer = engine.Table(inner.in_flight, PAGE, 4, entries)
            assert outer.read(0, 16) == b"inner!!!" + bytes(8)
            os.ftruncate(fd, 0)
            with pytest.raises(BusFault):
                outer.read(0, 16)


class TestDescriptors:
    def test_the_segment_begins_at_its_fd_offset(self) -> None:
        with memfd(64, bytes(range(64))) as fd:
            table = fd_table(fd, 16, fd_offset=32)
            assert table.read(3, 4) == bytes([35, 36, 37, 38])
            table.store(4, 4, 0)
            assert os.pread(fd, 6, 35) == bytes([35, 0, 0, 0, 0, 40])

    def test_a_file_that_ends_early_is_a_fault(self) -> None:
        with memfd(6, b"abcdef") as fd:
            table = fd_table(fd, 16)
            assert table.read(0, 16) == b"abcd"  # not "abcdef": 2 bytes of an access are none
            with pytest.raises(BusFault):
                table.read(8, 4)

    def test_errors_of_the_fd_are_faults(self) -> None:
        read_end, write_end = os.pipe()
        try:
            with pytest.raises(BusFault):  # ESPIPE
                fd_table(read_end, 16).read(0, 4)
        finally:
            os.close(read_end)
            os.close(write_end)


class TestClosing:
    def test_a_closed_device_is_gone(self) -> None:
        recorder = Recorder(bytearray(8))
        table = call_table(recorder)
        assert not table.in_flight.drained
        table.in_flight.close()
        table.in_flight.close()
        assert table.in_flight.drained
        for attempt in (lambda: table.read(0, 4), lambda: table.load32(0)):
            with pytest.raises(DeviceGone):
                attempt()
        with pytest.raises(DeviceGone):
            table.write(0, b"1")
        assert not recorder.accesses
        assert table.in_flight.inside == 0

    def test_drain_waits_for_those_inside(self) -> None:
        with stuck_reader() as (table, release, result):
            assert table.in_flight.inside == 1
            assert not table.in_flight.drain(0.02)
            assert not table.in_flight.drained
            with pytest.raises(DeviceGone):
                table.read(0, 4)
            threading.Timer(0.05, release.set).start()
            assert table.in_flight.drain(10)
            assert table.in_flight.inside == 0
        assert result == [bytes(4)]

    def test_a_mapping_stays_while_somebody_may_be_inside(self) -> None:
        with memfd(PAGE) as fd, memory_table(fd, PAGE) as table:
            mapping = mapping_of(table)
            with pytest.raises(RuntimeError, match="drain what is in flight"):
                mapping.close()
            assert table.read(0, 4) == bytes(4)
            assert table.in_flight.drain(1)
            mapping.close()
            mapping.close()
            assert not mapping.is_open
            with pytest.raises(DeviceGone):
                table.read(0, 4)

    def test_drain_sees_everyone_of_a_crowd(self) -> None:
        with memfd(64 * PAGE) as fd:
            for _ in range(50):
                in_flight = engine.InFlight()
                mapping = engine.Mapping(fd, 0, 64 * PAGE)
                whole = engine.TableEntry(0, 64 * PAGE, True, True, 8, engine.Memory(mapping))
                table = engine.Table(in_flight, 64 * PAGE, 1, [whole])
                threads = [threading.Thread(target=read_until_gone, args=(table,)) for _ in "1234"]
                for thread in threads:
                    thread.start()
                while in_flight.inside < 2:
                    time.sleep(0)
                assert in_flight.drain(10)
                mapping.close()  # a reader still inside would die of SIGSEGV
                for thread in threads:
                    thread.join()


class TestEarlyEnds:
    def test_stop_before_the_first_access(self) -> None:
        recorder = Recorder(bytearray(8))
        control = engine.Control()
        control.stop()
        with pytest.raises(Interrupted):
            call_table(recorder).read(0, 8, control=control)
        assert not recorder.accesses

    def test_stop_between_accesses_is_a_short_count(self) -> None:
        control = engine.Control()

        def read(offset: int, width: int) -> bytes:
            if offset == 8:
                control.stop()
            return bytes(width)

        call = engine.Call(read, lambda offset, data: None)
        table = engine.Table(
            engine.InFlight(), 64, 4, [engine.TableEntry(0, 64, True, True, 4, call)]
        )
        assert len(table.read(0, 64, control=control)) == 12

    def test_stop_ends_a_long_memory_transfer(self) -> None:
        size = 64 << 20  # a fraction of a second of bytes, one by one
        with memfd(size) as fd, memory_table(fd, size, width=1) as table:
            control = engine.Control()
            done: list[int] = []
            buffer = bytearray(size)
            thread = threading.Thread(
                target=lambda: done.append(table.read_into(0, buffer, control=control))
            )
            thread.start()
            while table.in_flight.inside == 0:
                time.sleep(0)
            time.sleep(0.01)
            control.stop()
            thread.join()
            assert 0 < done[0] < size

    def test_a_close_ends_a_long_transfer_after_its_access(self) -> None:
        in_flight = engine.InFlight()

        def read(offset: int, width: int) -> bytes:
            if offset == 8:
                in_flight.close()
            return bytes(width)

        call = engine.Call(read, lambda offset, data: None)
        table = engine.Table(in_flight, 64, 4, [engine.TableEntry(0, 64, True, True, 4, call)])
        assert len(table.read(0, 64)) == 12
        assert in_flight.drained

    @pytest.mark.parametrize("width", [1, 4])
    def test_a_transfer_of_memory_takes_as_long_as_it_takes(self, width: int) -> None:
        size = 64 << 20
        with memfd(size) as fd, memory_table(fd, size, width=width, timeout=0.01) as table:
            start = time.monotonic()
            assert table.read_into(0, bytearray(size)) == size
            assert time.monotonic() - start > 0.01

    def test_only_an_access_that_takes_too_long_ends_a_transfer(self) -> None:
        waits = dict.fromkeys(range(0, 64, 4), 0.05) | {40: 0.3}

        def read(offset: int, width: int) -> bytes:
            time.sleep(waits[offset])
            return bytes(width)

        call = engine.Call(read, lambda offset, data: None)
        entry = engine.TableEntry(0, 64, True, True, 4, call)
        table = engine.Table(engine.InFlight(), 64, 4, [entry], timeout=0.2)
        assert len(table.read(0, 40)) == 40, "0.5 s, in accesses of 0.05 s"
        assert len(table.read(32, 32)) == 12, "its late answer is one, and the last"
        assert len(table.read(40, 4)) == 4


class TestErrnos:
    @pytest.mark.parametrize(
        ("kind", "number"),
        [
            (BusFault, errno.EIO),
            (DeviceGone, errno.ENODEV),
            (AccessTimeout, errno.ETIMEDOUT),
            (InvalidAccess, errno.EINVAL),
            (AccessDenied, errno.EACCES),
            (PolicyDenied, errno.EPERM),
            (BeyondEnd, errno.EFBIG),
            (Interrupted, errno.EINTR),
            (ForkedAccess, errno.ECHILD),
        ],
    )
    def test_there_and_back(self, kind: type[AccessError], number: int) -> None:
        assert kind().errno == number
        error = access_error(number, region="bar0", offset=0x10, width=4)
        assert outcome(error) == (kind, "bar0", 0x10, 4)

    def test_every_class_of_the_package_can_come_back(self) -> None:
        kinds = {
            kind
            for kind in vars(errors).values()
            if isinstance(kind, type) and issubclass(kind, AccessError)
        }
        assert set(ACCESS_ERRORS) == kinds - {AccessError}
        assert len({kind.errno for kind in ACCESS_ERRORS}) == len(ACCESS_ERRORS)

    def test_what_no_class_has_is_a_fault(self) -> None:
        class Child(DeviceGone):
            pass

        assert Child().errno == errno.ENODEV
        assert AccessError().errno == errno.EIO
        error = access_error(errno.ENOSPC, region="bar0", offset=0, width=4)
        assert isinstance(error, BusFault)
        assert "ENOSPC" in str(error)

    def test_only_the_classes_that_were_asked_for(self) -> None:
        error = access_error(
            errno.EPERM, "it says no", region="bar0", offset=0, width=4, among=(DeviceGone,)
        )
        assert type(error) is BusFault
        assert str(error).endswith(": it says no")


def mapping_of(table: engine.Table) -> engine.Mapping:
    target = table.entries[0].target
    assert isinstance(target, engine.Memory)
    return target.mapping


@contextmanager
def stuck_reader() -> Iterator[tuple[engine.Table, threading.Event, list[bytes]]]:
    """A table with a thread inside, which `release` lets out."""
    inside, release = threading.Event(), threading.Event()

    def read(offset: int, width: int) -> bytes:
        inside.set()
        assert release.wait(10)
        return bytes(width)

    call = engine.Call(read, lambda offset, data: None)
    entry = engine.TableEntry(0, 4, True, True, 4, call)
    table = engine.Table(engine.InFlight(), 4, 4, [entry])
    result: list[bytes] = []
    thread = threading.Thread(target=lambda: result.append(table.read(0, 4)))
    thread.start()
    assert inside.wait(10)
    yield table, release, result
    release.set()
    thread.join()


def read_until_gone(table: engine.Table) -> None:
    buffer = bytearray(table.size)
    with suppress(DeviceGone):
        while True:
            table.read_into(0, buffer)
