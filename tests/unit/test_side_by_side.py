# SPDX-License-Identifier: MIT
"""Tasks side by side: all or none, in order, and none that outlives a signal."""

import os
import signal
import threading
from collections.abc import Callable
from functools import partial

import pytest

from barfs.process.side_by_side import MOST_THREADS, side_by_side, undo_all
from tests.support import DEADLINE, wait_until


def kept(_result: object) -> None:
    raise AssertionError("nothing is undone")


def test_results_are_in_the_order_of_the_tasks() -> None:
    # Each waits for the next one, so the last is done first.
    done = [threading.Event() for _ in range(9)]

    def task(number: int) -> int:
        assert number == 8 or done[number + 1].wait(DEADLINE)
        done[number].set()
        return number

    assert side_by_side([partial(task, number) for number in range(9)], kept) == [*range(9)]


def test_threads_are_bounded() -> None:
    full = threading.Barrier(MOST_THREADS, timeout=DEADLINE)
    lock = threading.Lock()
    running, most = 0, 0

    def task() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        full.wait()
        with lock:
            running -= 1

    side_by_side([task] * (2 * MOST_THREADS), kept)
    assert most == MOST_THREADS


def test_one_task_runs_in_its_caller() -> None:
    assert side_by_side([threading.current_thread], kept) == [threading.current_thread()]
    assert side_by_side([], kept) == []


def test_the_first_error_in_order_is_raised_and_the_others_results_are_undone() -> None:
    failed = threading.Event()
    begun: list[int] = []
    undone: list[int] = []

    def task(number: int) -> int:
        begun.append(number)
        if number == 5:
            failed.set()
            raise ValueError("five")
        assert failed.wait(DEADLINE)
        if number == 2:
            raise ValueError("two")
        return number

    tasks = [partial(task, number) for number in range(10 * MOST_THREADS)]
    with pytest.raises(ValueError, match="two"):
        side_by_side(tasks, undone.append)
    # The threads that were busy when the first error came, and nothing after them.
    assert len(begun) <= 2 * MOST_THREADS
    assert sorted([*undone, 2, 5]) == sorted(begun)


def test_all_are_undone_though_some_cannot_be() -> None:
    undone: list[int] = []

    def undo(number: int) -> None:
        undone.append(number)
        if number % 2:
            raise ValueError(f"number {number}")

    with pytest.raises(ValueError, match="number 1"):
        undo_all(range(6), undo)
    assert sorted(undone) == [*range(6)]


def interrupting(begun: Callable[[], bool]) -> threading.Thread:
    def interrupt() -> None:
        wait_until(begun, "the tasks")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    return thread


def test_a_signal_does_not_wait_for_a_task_that_hangs() -> None:
    release = threading.Event()
    made: list[int] = []
    undone: list[int] = []

    def task(number: int) -> int:
        if number == 1:
            assert release.wait(DEADLINE)
        made.append(number)
        return number

    thread = interrupting(lambda: sorted(made) == [0, 2, 3])
    with pytest.raises(KeyboardInterrupt):
        side_by_side([partial(task, number) for number in range(4)], undone.append)
    thread.join()
    assert sorted(undone) == [0, 2, 3]
    release.set()
    wait_until(lambda: 1 in undone, "the thread of the task that hung")
    assert sorted(undone) == [0, 1, 2, 3]


@pytest.mark.parametrize("possible", [0, 1, 3])
def test_tasks_run_with_few_threads_and_with_none(
    monkeypatch: pytest.MonkeyPatch, possible: int
) -> None:
    start, left = threading.Thread.start, possible

    def limited(thread: threading.Thread) -> None:
        nonlocal left
        if not left:
            raise RuntimeError("can't start new thread")
        left -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    assert side_by_side([partial(int, number) for number in range(8)], kept) == [*range(8)]
    with pytest.raises(ZeroDivisionError):
        side_by_side([lambda: 1, lambda: 1 // 0, lambda: 2], int)
