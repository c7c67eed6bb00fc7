# SPDX-License-Identifier: MIT
"""The campaigns' tools: software devices in this process, and a client in C."""

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from barfs.emulated.demo import demo_device
from barfs.emulated.device import SoftwareDevice
from tests.support import DEADLINE, ended
from tests.support.raw import running

BAR2 = 2
WINDOW, GAP, DELAY, FAULT = 0x1000, 0x4000, 0x2C, 0x28
"""Places in bar0 of the demo device."""


@contextlib.contextmanager
def software(folder: Path, device: SoftwareDevice, name: str = "software") -> Iterator[str]:
    """Serve a device from a thread of this process; gives the name to mount it by."""
    socket = folder / f"{name}.sock"
    with contextlib.closing(device), running(socket, device):
        yield f"vfio-user:{socket}"


@dataclass(frozen=True)
class Memory:
    """Where the memory of a region is: `start..end` of a descriptor."""

    fd: int
    start: int
    end: int

    @classmethod
    def of(cls, device: SoftwareDevice, region: int) -> "Memory":
        fd, info = device.region_fd(region), device.region_info(region)
        assert fd is not None
        return cls(fd, info.offset, info.offset + info.size)


@dataclass(frozen=True)
class Client:
    """`client.c`, which documents its modes at its top."""

    program: Path

    def start(self, *arguments: object, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.program), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )

    def finish(self, process: subprocess.Popen[str], timeout: float = DEADLINE) -> dict[str, Any]:
        """The figures that a client reports."""
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        assert process.returncode == 0, f"{process.args!r}: {process.returncode}"
        found: dict[str, Any] = json.loads(output)
        return found

    def run(
        self, *arguments: object, pass_fds: tuple[int, ...] = (), timeout: float = DEADLINE
    ) -> dict[str, Any]:
        return self.finish(self.start(*arguments, pass_fds=pass_fds), timeout)

    @contextlib.contextmanager
    def working(self, *arguments: object) -> Iterator[subprocess.Popen[str]]:
        """A client that is killed in the end if it still works."""
        with self.start(*arguments) as process:
            try:
                yield process
            finally:
                process.kill()
                ended(process)


def is_in_request(task: Path) -> bool:
    """Whether a thread (`/proc/PID/task/TID`) waits for a mount's answer."""
    try:
        return (task / "wchan").read_text() == "request_wait_answer"
    except OSError:  # it has ended
        return False


MUTE = 0x8000
"""Where in bar0 of the demo device a `Mute` fits."""


class Mute:
    """Registers that can be told to be silent. They answer the accesses of that time late, and
    with a value that is not theirs."""

    SIZE = 0x1000
    LATE = 0xBAD0BAD0

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._speaking = threading.Event()
        self._speaking.set()
        self.asked = threading.Event()
        self.late = 0
        self.written: list[tuple[int, int]] = []

    @staticmethod
    def value(offset: int) -> int:
        return 0x51000000 + offset

    def silence(self) -> None:
        self.asked.clear()
        self._speaking.clear()

    def speak(self) -> None:
        self._speaking.set()

    def read(self, offset: int, width: int) -> int:
        if self._speaking.is_set():
            return self.value(offset)
        self.asked.set()
        while not self._speaking.wait(0.1) and not self._stopping.is_set():
            continue
        self.late += 1
        return self.LATE & ((1 << 8 * width) - 1)

    def write(self, offset: int, width: int, value: int) -> None:
        self.written.append((offset, value))

    def reset(self) -> None:
        pass


def mute_device() -> tuple[SoftwareDevice, Mute]:
    """A demo device with a `Mute` in it."""
    device = demo_device()
    register = Mute(device.stopping)
    device.attach(0, MUTE, MUTE + Mute.SIZE, register)
    return device, register


def rss(pid: int | str = "self") -> int:
    """The memory that a process uses, in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


@dataclass(frozen=True)
class Held:
    """The resources of a process: descriptors, threads, bytes of memory."""

    fds: int
    threads: int
    rss: int

    @classmethod
    def by(cls, pid: int) -> "Held":
        process = Path(f"/proc/{pid}")
        return cls(
            len(os.listdir(process / "fd")),
            len(os.listdir(process / "task")),
            rss(pid),
        )
