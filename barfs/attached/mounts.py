# SPDX-License-Identifier: MIT
"""Finds the barfs mounts of this machine, and reads the description that each gives of itself.

Rule 1: a mount may hang, and any user may mount anything: every query has a deadline, and every
        answer is checked.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

from barfs.errors import BarfsError, UsageError
from barfs.host.mountinfo import mounts
from barfs.layout import Layout
from barfs.pci import Bdf, region_index
from barfs.text import dump_json, unicode
from barfs.text.system_errors import reason

FSTYPE = "fuse.barfs"

ANSWER_TIME = 2.0
"""Seconds that a mount gets to answer."""

_LONGEST_INFO = 1 << 24


class MountError(BarfsError):
    """A mount cannot be made, found or removed."""


def barfs_mounts() -> list[Path]:
    """The mount points of barfs, newest first."""
    found = [entry.mountpoint for entry in mounts() if entry.fstype == FSTYPE]
    return found[::-1]


def device_number(mountpoint: Path) -> str | None:
    """The device number (`0:52`) of the barfs file system that is mounted there, if any."""
    found = [entry for entry in mounts() if entry.mountpoint == mountpoint]
    return found[-1].device if found and found[-1].fstype == FSTYPE else None


def owner_of(mountpoint: Path) -> tuple[int, int] | None:
    """The user and group that made the barfs mount there, if there is one."""
    found = [entry for entry in mounts() if entry.mountpoint == mountpoint]
    if not found or found[-1].fstype != FSTYPE:
        return None
    words = dict(word.partition("=")[::2] for word in found[-1].options.split(","))
    return int(words["user_id"]), int(words["group_id"])


def mountpoints_by_device(proc: Path = Path("/proc")) -> dict[str, Path]:
    """The mount points of all mounted devices, by BDF or source.

    A mount that does not answer this user (another user's, or root's) still names its first device
    in its source.
    """
    found: dict[str, Path] = {}
    for entry in mounts(proc):
        if entry.fstype == FSTYPE:
            info = MountInfo.read(entry.mountpoint)
            devices = info.devices if info else [_first_device(entry.source)]
            found |= dict.fromkeys(devices, entry.mountpoint)
    return found


def _first_device(source: str) -> str:
    """The BDF of a mount's first device if the source contains it, else the source."""
    text = re.sub(r"\+[0-9]+\Z", "", source)
    try:
        return str(Bdf.parse(re.sub("(?s)^/sys/.*/|^vfio-user:.*,bdf=", "", text)))
    except UsageError:
        return text


@dataclass(frozen=True, slots=True)
class MountInfo:
    """The description in a mount's hidden `.barfs`: its process, the sources of its devices by BDF,
    its trace file, the files that describe registers, by BDF, as `-o registers=` has them, the
    socket that hands out windows (`-o map`), and the options that a client must know: whether only
    single accesses are permitted, and the seconds that one may take.

    JSON strings are Unicode. For a name that is not, `bytes` maps the string in its place to the
    name's bytes in hexadecimal."""

    pid: int
    devices: dict[str, str]
    trace: str | None = None
    registers: dict[str, list[str]] = field(default_factory=dict)
    map: str | None = None
    guard: bool = False
    timeout: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"timeout {self.timeout}")

    def to_text(self) -> str:
        described = itertools.chain.from_iterable(self.registers.values())
        texts = [*self.devices.values(), *filter(None, [self.trace, self.map]), *described]
        pairs = [(unicode(text), os.fsencode(text)) for text in texts]
        exact = {text: data.hex() for text, data in pairs if text.encode() != data}
        return dump_json(dataclasses.asdict(self) | ({"bytes": exact} if exact else {}))

    @classmethod
    def read(cls, mountpoint: Path) -> "MountInfo | None":
        """None if the mount does not answer this user within `ANSWER_TIME`."""
        found: list[MountInfo | None] = []
        # A read from a mount whose process is stopped may never return, so a thread does it.
        asking = threading.Thread(target=lambda: found.append(cls._ask(mountpoint)), daemon=True)
        asking.start()
        asking.join(ANSWER_TIME)
        return found[0] if found else None

    @classmethod
    def _ask(cls, mountpoint: Path) -> "MountInfo | None":
        with contextlib.suppress(OSError, UsageError), (mountpoint / ".barfs").open("rb") as file:
            return cls.from_text(file.read(_LONGEST_INFO))
        return None

    @classmethod
    def from_text(cls, text: bytes) -> "MountInfo":
        """The inverse of `to_text`. Raises UsageError for any other text."""
        try:
            data = json.loads(text)
            exact = data.get("bytes", {})

            def decoded(text: str) -> str:
                name = bytes.fromhex(exact[text]) if text in exact else text.encode()
                if b"\0" in name:
                    raise ValueError(f"{text!r} contains a NUL")
                return os.fsdecode(name)

            sources = data["devices"].items()
            devices = {str(Bdf.parse(bdf)): decoded(source) for bdf, source in sources}
            trace, socket = (
                None if data.get(name) is None else decoded(data[name]) for name in ("trace", "map")
            )
            described = data.get("registers", {}).items()
            registers = {str(Bdf.parse(bdf)): [*map(decoded, texts)] for bdf, texts in described}
            options = bool(data.get("guard", False)), float(data.get("timeout", 5.0))
            return cls(int(data["pid"]), devices, trace, registers, socket, *options)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError(f"invalid description of a mount: {error}") from None


def layouts_in(directory: Path) -> dict[str, Layout]:
    """The layouts of a mounted device, in the order of its regions. Raises MountError."""
    try:
        files = sorted(directory.glob("*.layout"), key=lambda file: region_index(file.stem))
        return {file.stem: Layout.from_text(os.fsdecode(file.read_bytes())) for file in files}
    except OSError as error:
        raise MountError(f"{directory} is mounted but cannot be read: {reason(error)}") from error


def find_device(name: str) -> Path | None:
    """The directory of a mounted device, by its BDF or the source it was opened from."""
    for mountpoint in barfs_mounts():
        info = MountInfo.read(mountpoint)
        for bdf, source in info.devices.items() if info else ():
            if name in (bdf, source):
                return mountpoint / "bus" / bdf
    return None
