# SPDX-License-Identifier: MIT
"""The processes that still have a device to which a mount gave them the descriptor.

They are those that asked the mount, and their descendants, which inherit descriptors and mappings.
Nothing in /proc tells two VFIO devices that were opened through their groups apart: all of them are
`anon_inode:[vfio-device]`. So other processes with such a file are not named.

Rule 1: reading only. A process that this user may not look into counts as one that holds it.
"""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from barfs.host.sysfs import read_bytes

_PROC = Path("/proc")
_DELETED = " (deleted)"
_PARENT, _STARTED = 1, 19
"""Fields of /proc/PID/stat, counted from the one after the name (proc_pid_stat(5))."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process: a number may be used again, but not with the same time of start."""

    pid: int
    parent: int
    started: int
    name: str

    @classmethod
    def find(cls, pid: int, proc: Path = _PROC) -> "Process | None":
        """None if it has ended."""
        start, _parenthesis, rest = read_bytes(proc / str(pid) / "stat").rpartition(b")")
        fields = rest.split()
        if len(fields) <= _STARTED:
            return None
        name = os.fsdecode(start.partition(b"(")[2])
        return cls(pid, int(fields[_PARENT]), int(fields[_STARTED]), name)

    def __str__(self) -> str:
        return f"{self.pid} ({self.name})"


def still_holding(file: str, clients: Iterable[Process], proc: Path = _PROC) -> list[Process]:
    """The clients, and processes below them, that have `file` open or mapped.

    `file` is the target of a descriptor's link in /proc. The node of a character device goes when
    the kernel wants the device back, so it may be marked as deleted or not.
    """
    numbers = filter(str.isdecimal, os.listdir(proc))
    found = {pid: process for pid in map(int, numbers) if (process := Process.find(pid, proc))}
    kept = {client.pid for client in clients if _is_alive(client, found)}
    size = -1
    while len(kept) != size:
        size = len(kept)
        kept |= {process.pid for process in found.values() if process.parent in kept}
    return [found[pid] for pid in sorted(kept) if _has(proc / str(pid), file)]


def _is_alive(client: Process, found: dict[int, Process]) -> bool:
    return client.pid in found and found[client.pid].started == client.started


def _has(process: Path, file: str) -> bool:
    name = os.fsencode(file.removesuffix(_DELETED))
    ends = (b" " + name, b" " + name + os.fsencode(_DELETED))
    try:
        maps = (process / "maps").read_bytes()
        if any(line.endswith(ends) for line in maps.split(b"\n")):
            return True
        links = os.listdir(process / "fd")
    except FileNotFoundError:  # it has ended
        return False
    except OSError:
        return True
    for link in links:
        with contextlib.suppress(OSError):
            if os.readlink(process / "fd" / link).removesuffix(_DELETED) == os.fsdecode(name):
                return True
    return False
