# SPDX-License-Identifier: MIT
"""Signals that end a process: raised once, at a moment that leaves nothing half done."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import pytest

from barfs import engine
from barfs.engine import table
from barfs.host.binding import Binder
from barfs.host.steps import Owner, Step
from barfs.process.signals import Ended, Held, ended_by_signals, heard, too_late
from barfs.vfio_user.channel import Channel
from tests.support.peer import Peer, connect, data
from tests.unit.fake_machine import BDF, OTHER, FakeKernel, FakeMachine

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def own_handlers() -> Iterator[None]:
    """Whatever is left of them."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    with own_handlers():
        yield


def send(number: int = signal.SIGTERM) -> None:
    signal.raise_signal(number)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_an_exit_code(number: signal.Signals) -> None:
    with pytest.raises(SystemExit) as caught, ended_by_signals():
        send(number)
    assert caught.value.code == 128 + number


def ends(work: Callable[[], object]) -> bool:
    """Whether a signal ends it."""
    try:
        with own_handlers(), ended_by_signals():
            work()
    except Ended:
        return True
    return False


def test_a_held_signal_waits() -> None:
    steps = []

    def work() -> None:
        with Held():
            with Held():
                send()
                steps.append("inner")
            steps.append("outer")
        steps.append("after")

    assert ends(work)
    assert steps == ["inner", "outer"]


def test_a_released_part_hears_one_signal() -> None:
    steps = []

    def work() -> None:
        with Held() as hold:
            try:
                with hold.released():
                    send()
                    steps.append("it goes on")
            finally:
                send()
                steps.append("undone")

    assert ends(work)
    assert steps == ["undone"]


def test_a_released_part_hears_what_came_before() -> None:
    steps = []

    def work() -> None:
        with Held() as hold:
            send()
            with hold.released():
                steps.append("it begins")

    assert ends(work)
    assert not steps


def test_after_the_first_the_rest_is_ignored() -> None:
    signals: list[int] = []
    with heard(signals.append):
        send()
        send(signal.SIGHUP)
    send()
    assert signals == [signal.SIGTERM, signal.SIGHUP]


def test_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    with heard(lambda _number: None):
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_what_was_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals: list[int] = []
    with heard(signals.append):
        send(signal.SIGHUP)
    assert not signals
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_too_late() -> None:
    with ended_by_signals():
        too_late()
        send()


class InterruptedKernel(FakeKernel):
    """Its user interrupts it at one step, and once more while it takes that back."""

    def __init__(self, fake: FakeMachine, at: int) -> None:
        super().__init__(fake)
        self._at = at

    def run(self, step: Step) -> None:
        super().run(step)
        if len(self.ran) in (self._at, self._at + 1):
            send(signal.SIGINT)


def interrupted(fake: FakeMachine, at: int, work: Callable[[Binder], None]) -> bool:
    return ends(lambda: work(Binder(fake.machine, InterruptedKernel(fake, at))))


def test_an_interrupted_bind_is_undone(fake: FakeMachine) -> None:
    for bdf in (BDF, OTHER):
        fake.add(bdf, "nvme")
    at = 1
    while interrupted(fake, at, lambda binder: binder.bind([BDF, OTHER], "vfio-pci", Owner(0))):
        for bdf in (BDF, OTHER):
            found = fake.machine.driver(bdf), fake.machine.override(bdf)
            assert found == ("nvme", None), at
        assert not list(fake.machine.run.glob("*")), at
        at += 1
    assert at > 6
    assert fake.machine.driver(BDF) == "vfio-pci"


def test_an_interrupted_unbind_is_undone(fake: FakeMachine) -> None:
    fake.add(BDF, "nvme")
    Binder(fake.machine, FakeKernel(fake)).bind([BDF], "vfio-pci", Owner())
    memory = (fake.machine.run / f"{BDF}.json").read_text()
    at = 1
    while interrupted(fake, at, lambda binder: binder.unbind([BDF])):
        assert fake.machine.driver(BDF) == "vfio-pci", at
        assert (fake.machine.run / f"{BDF}.json").read_text() == memory, at
        at += 1
    assert at > 2
    assert fake.machine.driver(BDF) == "nvme"


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, Ended(signal.SIGTERM)])
def test_an_interrupted_request_leaves_the_connection_usable(
    monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    """Wherever the exception of a signal comes: here, when the lock has just been taken."""
    enter = Channel._enter

    def interrupted_enter(self: Channel) -> tuple[bool, float]:
        enter(self)
        raise interruption

    with Peer(data(b"abcd")) as peer, contextlib.closing(connect(peer)) as client:
        with monkeypatch.context() as patch:
            patch.setattr(Channel, "_enter", interrupted_enter)
            with pytest.raises((KeyboardInterrupt, Ended)):
                client.read(0, 0, 4)
        assert in_thread(lambda: client.read(0, 0, 4)) == b"abcd"


def in_thread(work: Callable[[], bytes]) -> bytes:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(10)


def test_an_access_that_is_interrupted_at_its_entry(capfd: pytest.CaptureFixture[str]) -> None:
    """Where no `try` has begun: what cffi would print, and forget."""
    entry = table._barfs_call.__code__

    def interrupt(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code is entry:
            sys.setprofile(None)
            send()

    call = engine.Call(lambda _offset, width: bytes(width), lambda _offset, _data: None)
    entry_of_calls = engine.TableEntry(0, 4096, True, True, 8, call)
    accesses = engine.Table(engine.InFlight(), 4096, 8, [entry_of_calls])
    sys.setprofile(interrupt)
    try:
        assert ends(lambda: accesses.load32(4))
    finally:
        sys.setprofile(None)
    assert capfd.readouterr().err == ""
