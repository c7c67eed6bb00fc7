# SPDX-License-Identifier: MIT
"""The mounts of a process, from /proc/PID/mountinfo (proc_pid_mountinfo(5)).

Rule 1: reading only; the kernel's text is bytes, and a name may hold any of them.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class MountEntry:
    """A line of mountinfo: mount point, type, source, device number (`8:1`), and the options of
    the file system itself."""

    mountpoint: Path
    fstype: str
    source: str
    device: str
    options: str = ""


def mounts(proc: Path = Path("/proc")) -> Iterator[MountEntry]:
    """The mounts that this process sees, in the order of mounting."""
    return read_mounts((proc / "self/mountinfo").read_bytes())


def read_mounts(text: bytes) -> Iterator[MountEntry]:
    """The mounts in the text of a mountinfo, in its order; lines that are no mounts are skipped."""
    for line in text.split(b"\n"):
        before, separator, after = line.partition(b" - ")
        places, types = before.split(b" "), after.split(b" ")
        if not separator or len(places) < 5 or len(types) < 2:
            continue
        yield MountEntry(
            Path(unescape(places[4])),
            unescape(types[0]),
            unescape(types[1]),
            places[2].decode(),
            unescape(b" ".join(types[2:])),
        )


def unescape(field: bytes) -> str:
    """Decode a name in which the kernel wrote blanks, newlines and backslashes in octal."""
    return os.fsdecode(
        re.sub(rb"\\([0-3][0-7]{2})", lambda match: bytes([int(match[1], 8)]), field)
    )
