# SPDX-License-Identifier: MIT
"""How a process ends on a signal.

Rule 1: SIGINT, SIGTERM and SIGHUP end a command through its `finally` clauses, so that it leaves
        nothing behind; its exit code is 128 and the signal's number. A signal that was ignored when
        the command began (nohup(1), a shell's `&`) stays ignored.
Rule 2: between what must not come apart, a signal waits (`Held`): what was made is in a `try`
        before the signal is raised. That cannot be done by a context manager's own `__exit__`: a
        signal may be raised in it before it has begun.
Rule 3: no signal is lost. Python discards what is raised in `__del__`, in callbacks of weak
        references and in hooks after a fork; there the signal comes again a little later.
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
"""Those that end a process."""

_PAUSE = 0.01


class Ended(SystemExit):
    """A signal has come; `number` is which."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        return f"ended by {signal.Signals(self.number).name}"


class _Hearing:
    """A handler that knows whether it was called."""

    def __init__(self, hear: Callable[[int], object]) -> None:
        self._hear = hear
        self.called = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.called = True
        self._hear(number)


@contextlib.contextmanager
def heard(hear: Callable[[int], object]) -> Iterator[None]:
    """Call `hear` for each signal that would end the process. Only from the main thread.

    After the first, the rest of a burst is ignored in the end: it does not kill what has ended.
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
            # Who has taken the signal meanwhile, and not given it back, keeps it.
            if signal.getsignal(number) is hearing:
                signal.signal(number, after)


def too_late() -> None:
    """What this process was to do is done: ignore the signals that were heard."""
    for number in SIGNALS:
        if isinstance(signal.getsignal(number), _Hearing):
            signal.signal(number, signal.SIG_IGN)


class _Holding:
    """What `Held` and the handler have in common: there is one of it, as there is one main thread.

    `depth`: how many `Held` there are. `released`: whether signals are raised all the same, until
    the first. `waiting`: one that came while they were not.
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
    """While it is entered, `Ended` is not raised; after it, for a signal that came meanwhile."""

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
        """For a part of it: raise `Ended` there, once; also for a signal that came before."""
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
    """Within it, signals end this process as the rules above say. In another thread, nothing."""
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
    with contextlib.suppress(RuntimeError):  # Python ends already
        again = threading.Timer(_PAUSE, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
