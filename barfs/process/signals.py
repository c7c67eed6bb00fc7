# SPDX-License-Identifier: MIT
"""Ends a process on a signal, with everything that it made cleaned up.

Rule 1: SIGINT, SIGTERM and SIGHUP end a command through its `finally` clauses, so that it leaves
        nothing behind; its exit code is 128 plus the signal's number. A signal that was ignored
        when the command began (nohup(1), a shell's `&`) stays ignored.
Rule 2: `Held` delays signals between steps that belong together: a new resource is inside a `try`
        before the signal is raised. A context manager's own `__exit__` cannot do that: a signal may
        be raised at its entry, before its first statement.
Rule 3: no signal is lost. Python discards exceptions in `__del__`, in callbacks of weak references
        and in hooks after a fork; there the signal is sent again a little later.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end a process."""

_PAUSE = 0.01


class Ended(SystemExit):
    """Signal `number` has arrived."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        return f"ended by {signal.Signals(self.number).name}"


class _Hearing:
    """A handler that records whether it was called."""

    def __init__(self, hear: Callable[[int], object]) -> None:
        self._hear = hear
        self.called = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.called = True
        self._hear(number)


@contextlib.contextmanager
def heard(hear: Callable[[int], object]) -> Iterator[None]:
    """Call `hear` for each signal that would end the process. Only from the main thread.

    If a signal arrived, later ones are ignored afterwards: the rest of a burst must not kill a
    process that is ending.
    """
    hearing = _Hearing(hear)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    mine = [number for number in SIGNALS if before[number] not in (signal.SIG_IGN, None)]
    for number in mine:
        signal.signal(number, hearing)
    try:
        yield
    finally:
        for number in mine:
            after = signal.SIG_IGN if hearing.called else before[number]
            # A handler that was installed meanwhile, and not removed, stays.
            if signal.getsignal(number) is hearing:
                signal.signal(number, after)


def too_late() -> None:
    """The work of this process is done: ignore the signals that were heard."""
    for number in SIGNALS:
        if isinstance(signal.getsignal(number), _Hearing):
            signal.signal(number, signal.SIG_IGN)


class _Holding:
    """The state that `Held` and the handler share; one, because there is one main thread.

    `depth`: the number of `Held` blocks entered. `released`: whether signals are raised all the
    same, until the first one. `waiting`: a signal that arrived while they were held.
    """

    depth = 0
    released = False
    waiting = 0


def end(number: int) -> None:
    """Raise `Ended`, now or as soon as no signal is `Held`."""
    if _Holding.depth and not _Holding.released:
        _Holding.waiting = number
        return
    _Holding.released = False
    raise Ended(number)


class Held:
    """Delays `Ended`: a signal that arrives within the block is raised after it."""

    def __enter__(self) -> Self:
        _Holding.depth += 1
        return self

    def __exit__(self, *_exception: object) -> None:
        _Holding.depth -= 1
        number = _Holding.waiting
        if number and not _Holding.depth:
            _Holding.waiting = 0
            raise Ended(number)

    def released(self) -> "_Released":
        """Raise `Ended` in a part of the block, once; also for a signal that arrived before it."""
        return _Released()


class _Released:
    def __enter__(self) -> None:
        _Holding.released = True
        if number := _Holding.waiting:
            _Holding.waiting = 0
            end(number)

    def __exit__(self, *_exception: object) -> None:
        _Holding.released = False


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within the block, signals end this process by the rules above, if it is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = sys.unraisablehook

    def discarded(arguments: Any) -> None:
        error = arguments.exc_value
        if isinstance(error, Ended):
            _send_again(error.number)
        else:
            before(arguments)

    sys.unraisablehook = discarded
    try:
        with heard(end):
            yield
    finally:
        sys.unraisablehook = before


def _send_again(number: int) -> None:
    with contextlib.suppress(RuntimeError):  # the interpreter is shutting down
        again = threading.Timer(_PAUSE, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
