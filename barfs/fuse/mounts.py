# SPDX-License-Identifier: MIT
"""Finding the mounts of barfs on this machine, and what each says of itself.

Rule 1: a mount may hang, and any user may mount anything: a question has a deadline, and an answer
        is checked.
"""

import contextlib
import dataclasses
import json
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from barfs.errors import BarfsError, UsageError
from barfs.host.mountinfo import mounts
from barfs.layout import Layout
from barfs.pci import Bdf, region_index
from barfs.text import dump_json, unicode
from barfs.text.system_errors import reason

FSTYPE = "fuse.barfs"

ANSWER_TIME = 2.0
"""Seconds in which a mount that lives has said what it is."""

_LONGEST_INFO = 1 << 24


class MountError(BarfsError):
    """A mount that cannot be made, found or undone."""


def barfs_mounts() -> list[Path]:
    """The mount points of barfs on this machine, newest first."""
    found = [entry.mountpoint for entry in mounts() if entry.fstype == FSTYPE]
    return found[::-1]


def device_number(mountpoint: Path) -> str | None:
    """The number of barfs's file system that is mounted there (`0:52`), None where none is."""
    found = [entry for entry in mounts() if entry.mountpoint == mountpoint]
    return found[-1].device if found and found[-1].fstype == FSTYPE else None


def mountpoints_by_device(proc: Path = Path("/proc")) -> dict[str, Path]:
    """The mount points of the devices that barfs has mounted, by BDF or source.

    A mount that does not answer this user (another user's, root's included) still shows its first
    device, in its source.
    """
    found: dict[str, Path] = {}
    for entry in mounts(proc):
        if entry.fstype == FSTYPE:
            info = MountInfo.read(entry.mountpoint)
            devices = info.devices if info else [_first_device(entry.source)]
            found |= dict.fromkeys(devices, entry.mountpoint)
    return found


def _first_device(source: str) -> str:
    """The BDF of a mount's first device, where its source has it; else the source."""
    text = re.sub(r"\+[0-9]+\Z", "", source)
    try:
        return str(Bdf.parse(re.sub("(?s)^/sys/.*/|^vfio-user:.*,bdf=", "", text)))
    except UsageError:
        return text


@dataclass(frozen=True, slots=True)
class MountInfo:
    """What a mount says of itself in its hidden `.barfs`: its process, the sources of its devices
    by BDF, and the file of its trace.

    As JSON, names have to be Unicode; `bytes` has the bytes of those that are not, in hexadecimal,
    by what is in the place of each."""

    pid: int
    devices: dict[str, str]
    trace: str | None = None

    def to_text(self) -> str:
        texts = [*self.devices.values(), *filter(None, [self.trace])]
        pairs = [(unicode(text), os.fsencode(text)) for text in texts]
        exact = {text: data.hex() for text, data in pairs if text.encode() != data}
        return dump_json(dataclasses.asdict(self) | ({"bytes": exact} if exact else {}))

    @classmethod
    def read(cls, mountpoint: Path) -> "MountInfo | None":
        """None where the mount does not answer within `ANSWER_TIME`, or not to this user."""
        found: list[MountInfo | None] = []
        # Whoever asks a mount whose process is stopped may wait for ever; let a thread do it.
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
        """Read what `to_text` wrote. Raises UsageError: any user may mount anything."""
        try:
            data = json.loads(text)
            exact = data.get("bytes", {})

            def decoded(text: str) -> str:
                name = bytes.fromhex(exact[text]) if text in exact else text.encode()
                if b"\0" in name:
                    raise ValueError(f"{text!r} is no name")
                return os.fsdecode(name)

            sources = data["devices"].items()
            devices = {str(Bdf.parse(bdf)): decoded(source) for bdf, source in sources}
            trace = None if data["trace"] is None else decoded(data["trace"])
            return cls(int(data["pid"]), devices, trace)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError(f"not the description of a mount: {error}") from None


def layouts_in(directory: Path) -> dict[str, Layout]:
    """The layouts of a mounted device, in the order of its regions. Raises MountError."""
    try:
        files = sorted(directory.glob("*.layout"), key=lambda file: region_index(file.stem))
        return {file.stem: Layout.from_text(os.fsdecode(file.read_bytes())) for file in files}
    except OSError as error:
        raise MountError(f"{directory} is mounted but cannot be read: {reason(error)}") from error


def find_device(name: str) -> Path | None:
    """The directory of a device in a mount of barfs, by BDF or by the source it was opened with."""
    for mountpoint in barfs_mounts():
        info = MountInfo.read(mountpoint)
        for bdf, source in info.devices.items() if info else ():
            if name in (bdf, source):
                return mountpoint / "bus" / bdf
    return None
