# SPDX-License-Identifier: MIT
"""Requests that take long: interrupted, late, stopped, and each answered exactly once."""

import errno
import os
import threading
import time
from collections.abc import Iterator

import pytest

from barfs import engine
from barfs.engine.extension import lib
from tests.unit.fuse.gate_rig import (
    GAP,
    GUARDED,
    PATIENCE,
    READ,
    REGION,
    SLOW,
    TRANSFER,
    Kernel,
    gated,
)

LONG = 4096
"""A read of so many bytes is not a short one."""


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with gated() as found:
        yield found


def replies(kernel: Kernel, count: int) -> dict[int, tuple[int, bytes]]:
    """So many replies, and none twice."""
    found: dict[int, tuple[int, bytes]] = {}
    for _ in range(count):
        unique, error, data = kernel.reply()
        assert unique not in found
        found[unique] = (error, data)
    return found


def finish(kernel: Kernel) -> None:
    """After everything was let go and the lanes are idle, there is nothing more to come."""
    kernel.held.let_go()
    for count in (4, LONG):
        assert kernel.read(SLOW, 0, count)[0] == 0
    kernel.assert_silent()


def test_a_long_read_does_not_hold_up_short_ones(kernel: Kernel) -> None:
    long = kernel.send_read(SLOW, 0, LONG)
    kernel.held.wait_for_access()
    assert kernel.read(REGION, 0, 4)[0] == 0
    assert kernel.read(REGION, GAP, 4)[0] == 0
    short = kernel.send_read(SLOW, 8, 4)
    kernel.held.wait_for_access()  # beside the other, which is still in its first access
    assert kernel.held.calls == [("r", 0), ("r", 8)]
    kernel.held.let_go()
    assert replies(kernel, 2)[short] == (0, (8).to_bytes(4, "little"))
    assert len(kernel.held.calls) == LONG // 4 + 1
    assert long


def test_an_interrupt_of_what_runs(kernel: Kernel) -> None:
    unique = kernel.send_read(SLOW, 0, LONG)
    kernel.held.wait_for_access()
    kernel.interrupt(unique)
    kernel.sync()
    kernel.held.let_go(1)
    assert kernel.reply() == (unique, 0, bytes(4)), "what was done is told"
    assert kernel.held.calls == [("r", 0)]
    finish(kernel)


def test_an_interrupt_of_what_waits(kernel: Kernel) -> None:
    first = kernel.send_read(SLOW, 0, 4)
    kernel.held.wait_for_access()
    second = kernel.send_read(SLOW, 4, 4)
    third = kernel.send_read(SLOW, 8, 4)
    kernel.interrupt(second)
    assert kernel.reply() == (second, errno.EINTR, b"")
    kernel.interrupt(second)
    kernel.held.let_go()
    assert set(replies(kernel, 2)) == {first, third}
    assert kernel.held.calls == [("r", 0), ("r", 8)]
    finish(kernel)


def test_an_interrupt_of_what_is_not_here(kernel: Kernel) -> None:
    done = kernel.send_read(REGION, 0, 4)
    assert kernel.reply()[0] == done
    for unique in (done, 0, 12345, (1 << 64) - 1):
        kernel.interrupt(unique)
    kernel.sync()
    finish(kernel)


def test_a_request_is_late_by_its_own_clock() -> None:
    timeout = 0.6
    with gated(timeout) as kernel:
        sent = {}
        start = time.monotonic()
        for number in range(12):
            sent[kernel.send_read(SLOW, 4 * number, 4)] = time.monotonic()
            if number == 5:
                late = threading.Event()
                late.wait(timeout / 2)  # the second half arrives when the first is half done
        for _ in range(12):
            unique, error, _ = kernel.reply()
            waited = time.monotonic() - sent.pop(unique)
            assert error == errno.ETIMEDOUT
            assert timeout - 0.01 <= waited <= timeout + 0.5
        assert time.monotonic() - start >= timeout
        kernel.assert_silent()
        kernel.held.let_go()
        assert kernel.read(SLOW, 0, 4)[0] == 0
        kernel.assert_silent()
        assert len(kernel.held.calls) == 2, "the one that hung, and the last"


TIMEOUT = 0.6
PACE = TIMEOUT / 3
"""Seconds for an access of a device that is slow and sound."""

SOME = 320
"""A read of so many bytes is a long one, of 80 accesses."""


def progress(kernel: Kernel, accesses: int) -> float:
    """Let so many accesses of a transfer take their time; returns when the last one ended."""
    for _ in range(accesses):
        kernel.held.wait_for_access()
        time.sleep(PACE)
        kernel.held.let_go(1)
    kernel.held.wait_for_access()
    return time.monotonic()


def test_what_progresses_is_not_late_nor_is_what_waits_behind_it() -> None:
    with gated(TIMEOUT) as kernel:
        sent = [kernel.send_read(SLOW, 0, SOME) for _ in range(3)]
        start = time.monotonic()
        progress(kernel, 8)
        assert time.monotonic() - start > 2 * TIMEOUT
        kernel.held.let_go()
        found = replies(kernel, 3)
        assert [found[unique][0] for unique in sent] == [0, 0, 0]
        assert len(kernel.held.calls) == 3 * SOME // 4


def test_a_queue_of_slow_accesses_is_not_late() -> None:
    with gated(TIMEOUT) as kernel:
        sent = {kernel.send_read(SLOW, 4 * number, 4): 4 * number for number in range(9)}
        progress(kernel, 8)
        kernel.held.let_go(1)
        assert replies(kernel, 9) == {
            unique: (0, offset.to_bytes(4, "little")) for unique, offset in sent.items()
        }


def test_a_device_that_hangs_after_it_progressed() -> None:
    """All that wait are given up in time after the last access, and a later one after its own."""
    with gated(TIMEOUT) as kernel:
        sent = [kernel.send_read(SLOW, 0, SOME) for _ in range(3)]
        since = dict.fromkeys(sent, progress(kernel, 5))
        time.sleep(TIMEOUT / 2)
        since[kernel.send_read(SLOW, 0, SOME)] = time.monotonic()
        for _ in range(4):
            unique, error, _ = kernel.reply()
            assert error == errno.ETIMEDOUT
            assert TIMEOUT - 0.01 <= time.monotonic() - since.pop(unique) <= TIMEOUT + 0.5
        kernel.assert_silent()
        finish(kernel)


def test_a_hang_is_not_cured_by_another_lane() -> None:
    with gated(TIMEOUT) as kernel:
        kernel.held.hangs_at = LONG
        long = kernel.send_read(SLOW, 0, SOME)
        start = time.monotonic()
        short = {kernel.send_read(SLOW, offset, 4) for offset in (LONG, LONG + 4)}
        threading.Thread(target=progress, args=(kernel, 8)).start()
        for _ in range(2):
            unique, error, _ = kernel.reply()
            assert error == errno.ETIMEDOUT
            assert TIMEOUT - 0.01 <= time.monotonic() - start <= TIMEOUT + 0.5
            short.remove(unique)
        kernel.held.let_go()
        assert kernel.reply()[:2] == (long, 0)


def test_who_waits_for_its_turn_is_not_late_until_nothing_is_answered() -> None:
    with gated(TIMEOUT, engine.Turns()) as kernel:
        kernel.held.hangs_at = LONG  # its turn does not come
        long = kernel.send_read(SLOW, 0, SOME)
        short = {kernel.send_read(SLOW, offset, 4) for offset in (LONG, LONG + 4)}
        progress(kernel, 8)
        kernel.assert_silent()
        kernel.held.let_go()
        assert kernel.reply()[:2] == (long, 0)
        last = time.monotonic()
        for _ in range(2):
            unique, error, _ = kernel.reply()
            assert error == errno.ETIMEDOUT
            assert TIMEOUT - 0.1 <= time.monotonic() - last <= TIMEOUT + 0.5
            short.remove(unique)


def test_what_the_device_gave_up_by_itself_is_no_progress() -> None:
    """Those behind it that came at the same time are late with it."""
    with gated(TIMEOUT) as kernel:
        kernel.held.gives_up_after = TIMEOUT + 0.1
        start = time.monotonic()
        sent = {kernel.send_read(SLOW, 4 * number, 4) for number in range(20)}
        assert replies(kernel, 20) == dict.fromkeys(sent, (errno.ETIMEDOUT, b""))
        assert time.monotonic() - start < TIMEOUT + 0.5
        assert len(kernel.held.calls) == 1


def test_what_is_refused_does_not_wait_for_the_device(kernel: Kernel) -> None:
    sent = [kernel.send_read(SLOW, 0, count) for count in (4, LONG)]
    for _ in sent:
        kernel.held.wait_for_access()
    for count in (8, 12, LONG):
        assert kernel.read(GUARDED, 0, count) == (errno.EINVAL, b"")
    kernel.held.let_go()
    assert set(replies(kernel, 2)) == set(sent)
    assert kernel.read(GUARDED, 0, 4)[0] == 0


def test_an_interrupt_of_what_waits_behind_progress() -> None:
    with gated(TIMEOUT) as kernel:
        first, second = (kernel.send_read(SLOW, 0, SOME) for _ in range(2))
        progress(kernel, 5)
        kernel.interrupt(second)
        assert kernel.reply() == (second, errno.EINTR, b"")
        kernel.interrupt(first)
        kernel.sync()
        kernel.held.let_go(1)
        unique, error, data = kernel.reply()
        assert (unique, error, len(data)) == (first, 0, 24)


def test_a_late_answer_is_nobody_else_s() -> None:
    with gated(0.5) as kernel:
        first = kernel.send_read(SLOW, 4, 4)
        assert kernel.reply() == (first, errno.ETIMEDOUT, b"")
        second = kernel.send_read(SLOW, 8, 4)
        kernel.held.let_go(2)
        assert kernel.reply() == (second, 0, (8).to_bytes(4, "little"))
        kernel.assert_silent()


def test_two_hundred_at_once(kernel: Kernel) -> None:
    sent = {kernel.send_read(SLOW, 4 * number, 4): 4 * number for number in range(200)}
    kernel.held.wait_for_access()
    assert kernel.read(REGION, 0, 4)[0] == 0
    kernel.held.let_go()
    assert replies(kernel, 200) == {
        unique: (0, offset.to_bytes(4, "little")) for unique, offset in sent.items()
    }
    finish(kernel)


def test_a_stop_answers_each_once(kernel: Kernel) -> None:
    running = kernel.send_read(SLOW, 0, LONG)
    kernel.held.wait_for_access()
    short = kernel.send_read(SLOW, 4, 4)
    kernel.held.wait_for_access()
    waiting = [kernel.send_read(SLOW, 0, count) for count in (4, LONG, 4, LONG)]
    kernel.sync()
    stopping = threading.Thread(target=lambda: kernel.gate.stop(PATIENCE))
    stopping.start()
    assert replies(kernel, 4) == dict.fromkeys(waiting, (errno.ENODEV, b""))
    kernel.held.let_go()
    found = replies(kernel, 2)
    assert found == {running: (0, bytes(4)), short: (0, (4).to_bytes(4, "little"))}
    stopping.join()
    kernel.assert_silent()
    assert len(kernel.held.calls) == 2


def test_a_stop_that_an_access_outlasts(kernel: Kernel) -> None:
    """It has been answered; its coming back is not told: the descriptor may be another's."""
    unique = kernel.send_read(SLOW, 0, 4)
    kernel.held.wait_for_access()
    assert not kernel.gate.stop(0.3)
    assert kernel.reply() == (unique, errno.ENODEV, b"")
    kernel.held.let_go()
    assert kernel.gate.stop(PATIENCE)
    kernel.assert_silent()


def test_a_removal_ends_what_waits_and_what_runs(kernel: Kernel) -> None:
    running = kernel.send_read(SLOW, 0, LONG)
    kernel.held.wait_for_access()
    waiting = kernel.send_read(SLOW, 0, LONG)
    kernel.sync()
    kernel.in_flight.close()
    kernel.device.remove()
    assert kernel.reply() == (waiting, errno.ENODEV, b"")
    kernel.held.let_go()
    assert kernel.reply() == (running, 0, bytes(4))
    assert kernel.read(SLOW, 0, LONG) == (errno.ENODEV, b"")
    assert len(kernel.held.calls) == 1


def test_a_thread_that_cannot_be_made(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert kernel.read(SLOW, 0, 4) == (errno.ENOMEM, b"")
    assert "no more processes and threads can be started" in caplog.text
    kernel.held.let_go()
    assert kernel.read(SLOW, 0, 4)[0] == 0


def test_a_lane_that_never_ran_is_freed(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped while its thread is still being made."""
    asked, go_on = threading.Event(), threading.Event()
    start = threading.Thread.start

    def start_late(thread: threading.Thread) -> None:
        asked.set()
        assert go_on.wait(PATIENCE)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_late)
    first = kernel.send_read(SLOW, 0, 4)
    assert asked.wait(PATIENCE)
    second = kernel.send_read(SLOW, 0, LONG)  # its lane's turn does not come any more
    kernel.sync()
    lib.barfs_gate_stop(kernel.gate._gate, int(PATIENCE * 1e9))
    go_on.set()
    assert replies(kernel, 2) == dict.fromkeys((first, second), (errno.ENODEV, b""))
    assert kernel.held.calls == []


def test_a_huge_count_of_a_slow_region(kernel: Kernel) -> None:
    kernel.held.let_go()
    body = TRANSFER.pack(0, 0, 0xFFFFFFFF, 2, 0, 0, 0)
    error, data = kernel.ask(READ, SLOW, body)
    assert error == 0
    assert len(data) == 2 * os.sysconf("SC_PAGESIZE")
