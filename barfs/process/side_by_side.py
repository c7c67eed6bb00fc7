# SPDX-License-Identifier: MIT
"""Tasks that mostly wait (for a device's reset, for a server's answer), run side by side.

Rule 1: all or none. After an error no further task begins; once those that run are done, what the
        tasks made is undone. The error is that of the first failed task in order, as if they had
        run one after the other.
Rule 2: a signal does not wait for a task that hangs. Such a task is abandoned: its thread undoes
        what the task makes, unless the process ends before.
Rule 3: where threads are scarce (the user's limit, a control group's), fewer do the work, or none.
"""

import contextlib
import functools
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

MOST_THREADS = 32

T = TypeVar("T")


def side_by_side(tasks: Sequence[Callable[[], T]], undo: Callable[[T], object]) -> list[T]:
    """Run tasks in up to `MOST_THREADS` threads; returns their results, in the order of `tasks`.

    `undo` takes the result of a task back. A single task runs in the calling thread.
    """
    if len(tasks) <= 1:
        return [task() for task in tasks]
    work = _Work(tasks, undo)
    try:
        work.start()
        work.wait()
    except BaseException:
        with contextlib.suppress(Exception):  # what came first is told
            undo_all(work.abandon(), undo)
        raise
    if work.errors:
        with contextlib.suppress(Exception):
            undo_all(list(work.results.values()), undo)
        raise work.errors[min(work.errors)]
    return [work.results[number] for number in range(len(tasks))]


def undo_all(results: Sequence[T], undo: Callable[[T], object]) -> None:
    """Undo each, side by side. Raises the first error in order, after all were tried."""

    def attempt(result: T) -> Exception | None:
        try:
            undo(result)
        except Exception as error:
            return error
        return None

    tasks = [functools.partial(attempt, result) for result in results]
    for error in side_by_side(tasks, lambda _error: None):
        if error is not None:
            raise error


class _Work(Generic[T]):
    """Tasks that threads take in order. `results` and `errors` are by the number of the task."""

    def __init__(self, tasks: Sequence[Callable[[], T]], undo: Callable[[T], object]) -> None:
        self.results: dict[int, T] = {}
        self.errors: dict[int, BaseException] = {}
        self._tasks = tasks
        self._undo = undo
        self._begun = 0
        self._abandoned = False
        self._lock = threading.Lock()
        # An exception of a signal handler leaves a queue as it was, but not a thread's join.
        self._left: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._threads = 0

    def start(self) -> None:
        with contextlib.suppress(RuntimeError):  # no more threads
            for _ in range(min(len(self._tasks), MOST_THREADS)):
                threading.Thread(target=self._run, name="barfs-task", daemon=True).start()
                self._threads += 1
        if not self._threads:
            self._threads += 1
            self._run()

    def wait(self) -> None:
        """Wait until the threads have left."""
        for _ in range(self._threads):
            self._left.get()

    def abandon(self) -> list[T]:
        """Begin no further task, and leave to the threads what is not done; returns what is."""
        with self._lock:
            self._abandoned = True
            return list(self.results.values())

    def _run(self) -> None:
        while (number := self._take()) is not None:
            try:
                result = self._tasks[number]()
            except BaseException as error:
                with self._lock:
                    self.errors[number] = error
            else:
                if not self._hand_over(number, result):
                    self._undo(result)
        self._left.put(None)

    def _take(self) -> int | None:
        with self._lock:
            if self.errors or self._abandoned or self._begun == len(self._tasks):
                return None
            self._begun += 1
            return self._begun - 1

    def _hand_over(self, number: int, result: T) -> bool:
        with self._lock:
            if not self._abandoned:
                self.results[number] = result
            return not self._abandoned
