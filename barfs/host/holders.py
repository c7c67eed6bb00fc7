# SPDX-License-Identifier: MIT
"""The other mounts that keep a file system alive after it was unmounted in one place.

They are bind mounts, and the copies that a new mount namespace gets: that of a container, of a
service with a private /tmp, of `unshare -m`. The file system ends with its last mount.

Rule 1: reading only; what this user may not see is left out.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from barfs.host.mountinfo import MountEntry, mounts, read_mounts
from barfs.host.sysfs import read_bytes, read_text
from barfs.text import shell_word

_MOST_NAMED = 4


@dataclass(slots=True)
class _Namespace:
    """A mount namespace with the file system: its mount points there, and the processes in it."""

    mountpoints: list[Path]
    pids: list[str] = field(default_factory=list)


def holders(device: str, proc: Path = Path("/proc")) -> list[str]:
    """The mounts of the file system with this device number (`0:52`), each with its remedy."""
    found = [f"at {path} (umount {shell_word(path)})" for path in _places(mounts(proc), device)]
    for namespace in _other_namespaces(device, proc):
        path, first = namespace.mountpoints[0], namespace.pids[0]
        named = [f"{pid} ({read_text(proc / pid / 'comm')})" for pid in namespace.pids]
        if len(named) > _MOST_NAMED:
            named[_MOST_NAMED:] = [f"{len(named) - _MOST_NAMED} more"]
        plural = "es" if len(named) > 1 else ""
        found.append(
            f"at {path} in the mount namespace of process{plural} {', '.join(named)} "
            f"(end {'them' if plural else 'it'}, or as root: "
            f"nsenter -t {first} -m umount {shell_word(path)})"
        )
    return found


def _places(entries: Iterator[MountEntry], device: str) -> list[Path]:
    return [entry.mountpoint for entry in entries if entry.device == device]


def _other_namespaces(device: str, proc: Path) -> list[_Namespace]:
    """The namespaces of other processes, told apart by number or, where it is hidden, by mounts."""
    own = _identity(proc / "self"), read_bytes(proc / "self/mountinfo")
    found: dict[bytes, _Namespace] = {}
    for pid in sorted(filter(str.isdecimal, os.listdir(proc)), key=int):
        identity = _identity(proc / pid)
        if identity in own:
            continue
        if identity not in found:
            text = read_bytes(proc / pid / "mountinfo")
            found[identity] = _Namespace(_places(read_mounts(text), device))
        found[identity].pids.append(pid)
    return [namespace for namespace in found.values() if namespace.mountpoints]


def _identity(process: Path) -> bytes:
    with contextlib.suppress(OSError):
        return os.fsencode(os.readlink(process / "ns/mnt"))
    return read_bytes(process / "mountinfo")
