# SPDX-License-Identifier: MIT
"""Whatever a mount does when its end is asked for, it ends, in time and without a trace."""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from barfs.attached.mounts import MountInfo
from barfs.fuse.fusermount import GRACE, unmount_command
from barfs.host.mountinfo import mounts
from tests.campaign.conftest import Campaign
from tests.campaign.rig import GAP, MUTE, WINDOW, Client, Mute, mute_device, software
from tests.support import Mounted, barfs, ended, is_mounted, mounted, wait_until
from tests.support.leftovers import processes
from tests.support.raw import RawClient, connection

WAYS = ("SIGTERM", "barfs umount", "fusermount3 -u")
LIMITS = {"idle": 1.0, "busy": 1.0, "hung": GRACE + 2.0}
"""Seconds. A hung access gets the whole grace period; what comes then is the process's exit."""

START = 1.0
"""Seconds that the command `barfs umount`, itself a Python, may take to come to its point."""


def at_work(
    client: Client, state: str, mount: Mounted, register: Mute
) -> list[subprocess.Popen[str]]:
    """Clients that make a mount busy, or wait in it."""
    region = mount.device("ffff:00:00.0") / "bar0"
    if state == "idle":
        return []
    if state == "hung":
        register.silence()
        waiting = client.start("waiters", 3, region, MUTE)
        assert register.asked.wait(10)
        return [waiting]
    readers = [client.start("reader", 0, 60, 1, region, place) for place in (WINDOW, GAP)]
    readers.append(client.start("reader", 0, 60, 1, mount.device("ffff:00:01.0") / "bar0", 0))
    for reader in readers:
        wait_until(partial(has_waited, reader.pid), "the readers")
    return readers


def has_waited(pid: int) -> bool:
    """Whether a process has gone to sleep more often than to load its program."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) > 10


def leave(clients: list[subprocess.Popen[str]]) -> None:
    while clients:
        process = clients.pop()
        process.kill()
        process.communicate()


def ask_for_the_end(way: str, mount: Mounted, clients: list[subprocess.Popen[str]]) -> float:
    """Returns when it was asked for, by the clock that is monotonic.

    A process that scans all mounts may keep one busy for a moment, so this asks again.
    """
    if way == "SIGTERM":
        start = time.monotonic()
        mount.process.terminate()
        return start
    if way == "barfs umount":
        # It refuses as long as files are open.
        leave(clients)
        start = time.monotonic()
        wait_until(lambda: barfs("umount", mount.path).returncode == 0, "umount", 10)
        return start
    # Lazily, it is asked for while they are open, and is due when they are closed.
    command = unmount_command(mount.path, lazy=bool(clients))
    wait_until(lambda: subprocess.run(command, check=False).returncode == 0, "the unmount", 10)
    start = time.monotonic()
    leave(clients)
    return start


def told(found: dict[str, Any]) -> bool:
    """Whether every read that the end met was answered, with an error."""
    return all([found["error"]] if "error" in found else [row[0] for row in found["results"]])


def end_once(folder: Path, state: str, way: str, client: Client) -> float:
    """Make a mount, end it, look for what is left; returns the seconds that it took to be gone."""
    folder.mkdir()
    device, register = mute_device()
    # A client that waits for an access cannot end before it does; only SIGTERM need not wait.
    timeout = 60 if way == "SIGTERM" else 2
    with (
        software(folder, device) as name,
        mounted(folder, name, "demo", options=f"timeout={timeout}") as mount,
    ):
        clients = at_work(client, state, mount, register)
        try:
            start = ask_for_the_end(way, mount, clients)
            assert ended(mount.process) == 0
            took = time.monotonic() - start
            assert not is_mounted(mount.path)
            while clients:  # those that are still alive got an error
                assert told(client.finish(clients.pop()))
        finally:
            leave(clients)
        wait_until(lambda: not processes(str(mount.path)), f"{processes(str(mount.path))}", 1)
        register.speak()
        # Its connection is closed: the server has time for the next.
        with connection(Path(name.removeprefix("vfio-user:"))) as sock:
            RawClient(sock)
    return took


@pytest.mark.parametrize("state", LIMITS)
def test_the_end(tmp_path: Path, campaign: Campaign, client: Client, state: str) -> None:
    times = campaign.size(2, 20)
    rounds = [(way, tmp_path / f"{way.split()[0]}-{n}") for way in WAYS for n in range(times)]
    # Those that hang do nothing meanwhile but wait.
    with ThreadPoolExecutor(4 if state == "hung" else 1) as pool:
        ends = [pool.submit(end_once, folder, state, way, client) for way, folder in rounds]
    took = [end.result() for end in ends]
    by_way = ", ".join(
        f"{way} {max(took[index * times : (index + 1) * times]):.2f} s"
        for index, way in enumerate(WAYS)
    )
    campaign.report(
        "SIGTERM and unmount always end it",
        f"{state}: {len(took)} of {len(rounds)} ended and left nothing; longest {by_way}",
    )
    for (way, _folder), seconds in zip(rounds, took, strict=True):
        assert seconds < LIMITS[state] + (START if way == "barfs umount" else 0), way


# ---- kill -9 ------------------------------------------------------------------------------------


@contextlib.contextmanager
def killed_daemon(path: Path) -> Iterator[None]:
    """A mount in the background, which is killed when its use is over."""
    result = barfs("mount", "demo", path)
    assert (result.returncode, result.stderr) == (0, "")
    info = MountInfo.read(path)
    assert info is not None
    process = os.pidfd_open(info.pid)
    try:
        yield
    finally:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        poll = select.poll()
        poll.register(process, select.POLLIN)
        gone = poll.poll(10_000)
        os.close(process)
    assert gone


def mounts_on(path: Path) -> int:
    return sum(entry.mountpoint == path for entry in mounts())


def test_kill_9_is_recoverable(tmp_path: Path, campaign: Campaign, client: Client) -> None:
    cycles = campaign.size(4, 100)
    path = tmp_path / "mnt"
    path.mkdir()
    recovered = 0
    for cycle in range(cycles):
        with contextlib.ExitStack() as stack:
            # Half of the kills hit a client that reads, and half of the mounts come so soon after
            # that the dead one's helper has not cleared it away; it must leave the new one alone.
            with killed_daemon(path):
                region = path / "bus/ffff:00:00.0/bar0"
                with region.open("rb", buffering=0) as file:
                    assert file.read(4) == b"barf"
                assert mounts_on(path) == 1
                recovered += 1
                if cycle % 4 < 2:
                    stack.enter_context(client.working("reader", 0, 60, 1, region, GAP))
            if cycle % 2:
                wait_until(lambda: not is_mounted(path), "the helper to unmount", 5)
    wait_until(lambda: not is_mounted(path), "the helper to unmount", 5)
    assert list(path.iterdir()) == []
    assert recovered == cycles
    campaign.report(
        "kill -9 is recoverable", f"{recovered} of {cycles} kills and mounts again, no stale mount"
    )
