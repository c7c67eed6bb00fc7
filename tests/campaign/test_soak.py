# SPDX-License-Identifier: MIT
"""A mount in which something goes wrong all the time, next to a device that knows nothing of it.

Each device of the mount has its own trouble, and a thread that makes it; one reader in C measures
the healthy one from the beginning to the end.
"""

import contextlib
import errno
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from barfs.emulated.demo import demo_device
from tests.campaign.conftest import Campaign
from tests.campaign.rig import (
    BAR2,
    DELAY,
    FAULT,
    GAP,
    WINDOW,
    Client,
    Memory,
    is_in_request,
    software,
)
from tests.support import Served, ended, mounted, served, wait_until

TIMEOUT = 0.5
PARTS = 10
MORTALS = 3
ID = b"barf"
PATTERN = b"\xa5"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


def error_of(action: Callable[[], object]) -> int:
    """The errno that it ends with; 0 where it works."""
    try:
        action()
    except OSError as error:
        return error.errno or -1
    return 0


def is_gone(fd: int, place: int) -> bool:
    return error_of(lambda: os.pread(fd, 4, place)) == errno.ENODEV


@dataclass
class Trouble:
    """Makes trouble until the end; `done` counts what was made, `problems` what went wrong."""

    end: float
    client: Client
    done: Counter[str] = field(default_factory=Counter)
    problems: list[BaseException] = field(default_factory=list)
    _random: random.Random = field(default_factory=lambda: random.Random(1))

    def keep_on(self, make: Callable[[], None]) -> None:
        """Make one trouble after the other, with a little peace between them."""
        try:
            while time.monotonic() < self.end and not self.problems:
                make()
                time.sleep(self._random.uniform(0.002, 0.02))  # or the machine measures itself
        except BaseException as problem:
            self.problems.append(problem)

    def lose_memory(self, device: Path, memory: Memory) -> None:
        """Take memory away, from some page on, under reads and writes."""
        size = memory.end - memory.start
        kept = self._random.randrange(0, size, 4096)
        count = self._random.choice((4, 64, 4096, 65536, size))
        start = self._random.randrange(0, size - count + 1, 4)
        with opened(device / "bar2") as fd:
            assert os.pwrite(fd, PATTERN * count, start) == count
            os.ftruncate(memory.fd, memory.start + kept)
            try:
                found = os.pread(fd, count, start) if start < kept else b""
                assert found == PATTERN * min(count, max(0, kept - start))
                if start + count > kept:
                    lost = max(start, kept)
                    assert error_of(lambda: os.pread(fd, 4, lost)) == errno.EIO
                    assert error_of(lambda: os.pwrite(fd, PATTERN * 4, lost)) == errno.EIO
                    self.done["faults"] += 2
            finally:
                os.ftruncate(memory.fd, memory.end)
            assert os.pread(fd, 4, size - 4) in (bytes(4), PATTERN * 4)
        self.done["truncations"] += 1

    def hang(self, device: Path) -> None:
        """Let the device take longer than it may, and go on with it afterwards."""
        with opened(device / "bar0") as fd:
            os.pwrite(fd, int(1500 * TIMEOUT).to_bytes(4, "little"), DELAY)
            assert error_of(lambda: os.pread(fd, 4, DELAY)) == errno.ETIMEDOUT
            os.pread(fd, 4, WINDOW)
            wait_until(lambda: error_of(lambda: os.pread(fd, 4, 0)) == 0, "the device's return", 5)
            assert os.pread(fd, 4, 0) == ID
        self.done["time-outs"] += 1

    def kill_clients(self, device: Path) -> None:
        """Kill a process whose reads wait for the device."""
        milliseconds = int(500 * TIMEOUT)
        with opened(device / "bar0") as fd:
            os.pwrite(fd, milliseconds.to_bytes(4, "little"), DELAY)
            with self.client.working("waiters", 4, device / "bar0", DELAY) as process:
                tasks = Path(f"/proc/{process.pid}/task")
                wait_until(lambda: sum(map(is_in_request, tasks.iterdir())) == 4, "its reads", 10)
            os.pwrite(fd, bytes(4), DELAY)
            assert os.pread(fd, 4, 0) == ID
        self.done["killed clients"] += 1

    def refuse(self, device: Path) -> None:
        """Let a register refuse to be read."""
        with opened(device / "bar0") as fd:
            os.pwrite(fd, b"\1\0\0\0", FAULT)
            assert error_of(lambda: os.pread(fd, 4, FAULT)) == errno.EIO
            os.pwrite(fd, bytes(4), FAULT)
            assert os.pread(fd, 4, FAULT) == bytes(4)
        self.done["refusals"] += 1

    def kill_peer(self, device: Path, peer: Served) -> None:
        """Kill a device's server, whose device is lost then."""
        with opened(device / "bar0") as fd:
            assert os.pread(fd, 4, GAP) != b""
            peer.process.kill()
            ended(peer.process)
            peer.socket.unlink(missing_ok=True)
            for place in (0, WINDOW):
                wait_until(partial(is_gone, fd, place), "ENODEV", 10)
        assert error_of(lambda: os.close(os.open(device / "bar2", os.O_RDONLY))) == errno.ENXIO
        self.done["killed peers"] += 1

    def look_around(self, mountpoint: Path) -> None:
        """Read what is there to be read, ask for what is not."""
        for device in (mountpoint / "bus").iterdir():
            assert (device / "vendor").read_text() == "0x1234\n"
            assert (device / "bar0.layout").read_text().startswith("# barfs layout")
            assert error_of((device / "nothing").stat) == errno.ENOENT
            names = os.listdir(device)
            with contextlib.suppress(OSError):  # one that is lost
                os.close(os.open(device / self._random.choice(names), os.O_RDONLY))
            self.done["looks"] += 1


def test_a_soak(tmp_path: Path, campaign: Campaign, client: Client) -> None:
    seconds = campaign.size(10, 60 * campaign.soak_minutes)
    truncated = demo_device(sealed=False)
    memory = Memory.of(truncated, BAR2)
    with contextlib.ExitStack() as stack:
        names = ["demo", stack.enter_context(software(tmp_path, truncated, "truncated"))]
        for name in ("hanging", "slow", "refusing"):
            names.append(stack.enter_context(software(tmp_path, demo_device(), name)))
        peers = [stack.enter_context(served(tmp_path, name=f"mortal{n}")) for n in range(MORTALS)]
        names += [peer.name for peer in peers]
        mount = stack.enter_context(mounted(tmp_path, *names, options=f"timeout={TIMEOUT}"))
        healthy, losing, hanging, slow, refusing, *mortals = (
            mount.device(f"ffff:00:{number:02x}.0") for number in range(len(names))
        )
        reader = stack.enter_context(
            client.working("reader", 200, seconds, PARTS, healthy / "bar0", 0, WINDOW)
        )
        start = time.monotonic()
        trouble = Trouble(start + seconds, client)
        deaths = [start + seconds * (n + 1) / (MORTALS + 1) for n in range(MORTALS)]

        def let_die() -> None:
            if deaths and time.monotonic() > deaths[0]:
                deaths.pop(0)
                trouble.kill_peer(mortals.pop(), peers.pop())

        makers: list[Callable[[], None]] = [
            lambda: trouble.lose_memory(losing, memory),
            lambda: trouble.hang(hanging),
            lambda: trouble.kill_clients(slow),
            lambda: trouble.refuse(refusing),
            lambda: trouble.look_around(mount.path),
            let_die,
        ]
        threads = [threading.Thread(target=trouble.keep_on, args=(make,)) for make in makers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if trouble.problems:
            raise trouble.problems[0]
        found = client.finish(reader)
        assert mount.process.poll() is None
    assert found["error"] == 0
    assert not deaths
    assert min(trouble.done.values()) > 0
    made = ", ".join(f"{count} {what}" for what, count in sorted(trouble.done.items()))
    campaign.report(f"a soak of {seconds} s", f"0 deaths; {made}")
    reads = sum(part["reads"] for part in found["parts"])
    for figure in ("p50", "p99"):
        tenths = [part[f"{figure}_us"] for part in found["parts"]]
        campaign.report(
            f"{figure} of {reads} healthy reads",
            f"by tenths of the soak {' '.join(f'{tenth:.0f}' for tenth in tenths)} us: "
            f"{100 * (tenths[-1] / tenths[0] - 1):+.0f} %",
        )
