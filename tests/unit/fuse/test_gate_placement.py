# SPDX-License-Identifier: MIT
"""Where the gate's reader may run: beside its client, within what was left to it."""

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator

import pytest

from tests.support import require
from tests.unit.fuse.gate_rig import REGION, Kernel, gated

MOVES = 256
"""Requests between two looks at the client."""


@pytest.fixture
def cpus() -> list[int]:
    found = sorted(os.sched_getaffinity(0))
    require("cpus", len(found) > 1, "one CPU")
    return found


@contextlib.contextmanager
def client(cpu: int) -> Iterator[int]:
    """A process that ran on this CPU last, and waits."""
    command = ["taskset", "-c", str(cpu), "sh", "-c", "echo; read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid


def reader() -> int:
    (thread,) = (each for each in threading.enumerate() if each.name == "gate-reader")
    assert thread.native_id is not None
    return thread.native_id


def ask(kernel: Kernel, *clients: int) -> set[int]:
    """Requests up to two looks; returns where the reader may run after them. A client that was not
    there before makes for a look."""
    for number in range(2 * MOVES):
        kernel.client = clients[number % len(clients)]
        assert kernel.read(REGION, 0, 4)[0] == 0
    return os.sched_getaffinity(reader())


def test_the_reader_follows_its_client(cpus: list[int]) -> None:
    with gated() as kernel:
        assert os.sched_getaffinity(reader()) == set(cpus)
        for cpu in cpus[:2]:
            with client(cpu) as pid:
                assert ask(kernel, pid) == {cpu}
        assert os.sched_getaffinity(0) == set(cpus), "only the reader moves"


def test_clients_on_one_cpu_and_on_two(cpus: list[int]) -> None:
    first, second = cpus[:2]
    with gated() as kernel, client(first) as a, client(first) as b, client(second) as c:
        assert ask(kernel, a, b) == {first}
        assert ask(kernel, a, c) == set(cpus)
        assert ask(kernel, c) == {second}


def test_a_client_that_hardly_asks(cpus: list[int]) -> None:
    first, second = cpus[:2]
    with gated() as kernel, client(first) as a, client(second) as b:
        assert ask(kernel, *[a] * 15, b) == {first}


def test_many_clients(cpus: list[int]) -> None:
    with gated() as kernel, contextlib.ExitStack() as stack:
        pids = [stack.enter_context(client(cpus[0])) for _ in range(5)]
        assert ask(kernel, pids[0]) == {cpus[0]}
        assert ask(kernel, *pids) == set(cpus)


def test_a_client_that_is_not_seen(cpus: list[int]) -> None:
    with gated() as kernel:
        assert ask(kernel, 0) == set(cpus)
        with client(cpus[0]) as gone:
            pass
        assert ask(kernel, gone) == set(cpus)


def test_what_the_user_set_stays(cpus: list[int]) -> None:
    first, second = cpus[:2]
    with client(first) as a, client(second) as b:
        os.sched_setaffinity(0, {first})
        try:
            with gated() as kernel:
                assert ask(kernel, b) == {first}
        finally:
            os.sched_setaffinity(0, cpus)
        with gated() as kernel:
            assert ask(kernel, a) == {first}
            os.sched_setaffinity(reader(), {second})
            assert ask(kernel, a) == {second}
            os.sched_setaffinity(reader(), cpus)
            assert ask(kernel, a) == {first}


def test_what_the_user_sets_for_all_threads_stays(cpus: list[int]) -> None:
    """Even where the reader is already: taskset -ap."""
    first, second = cpus[:2]
    with gated() as kernel, client(first) as a, client(second) as b:
        assert ask(kernel, a) == {first}
        os.sched_setaffinity(os.getpid(), {first})
        try:
            assert ask(kernel, b) == {first}
        finally:
            os.sched_setaffinity(os.getpid(), cpus)
        assert ask(kernel, a, b) == set(cpus)
