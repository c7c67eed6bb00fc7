# SPDX-License-Identifier: MIT
"""The command `trace`: the accesses to a mount, as they happen."""

import argparse
import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from barfs.attached.mounts import MountError, MountInfo, barfs_mounts
from barfs.cli.help import explain
from barfs.errors import UsageError
from barfs.ranges import Range, parse_range
from barfs.text import printable
from barfs.text.system_errors import reason

_PAUSE = 0.05
_FIRST_LINE = "# barfs trace v"
_LINE = re.compile(r"[0-9.]+ \S+ (?P<device>\S+) (?P<region>\S+) [rw] (?P<offset>0x[0-9a-f]+) ")


def add_trace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "place", metavar="PLACE", type=Path, help="a mount, or a device or a region's file in it"
    )
    parser.add_argument(
        "range", metavar="RANGE", nargs="?", help="offsets to show, as for barfs md (default: all)"
    )
    explain(
        parser,
        "barfs trace /mnt/bar",
        "barfs trace /mnt/bar/bus/0000:01:00.0/bar0 0x100-0x13f",
        details="Needs a mount with -o trace=FILE. Continues in the new file when the old one "
        "reaches trace-limit=, and ends when the mount ends.",
    )
    parser.set_defaults(run=_trace)


@dataclass(frozen=True, slots=True)
class _Filter:
    """The lines to show. A field of None matches all."""

    device: str | None
    region: str | None
    span: Range | None = None

    def shows(self, line: str) -> bool:
        match = _LINE.match(line)
        if match is None:  # the first line of a file, or a note that lines are missing
            return not line.startswith(_FIRST_LINE)
        return (
            self.device in (None, match["device"])
            and self.region in (None, match["region"])
            and (self.span is None or self.span.start <= int(match["offset"], 16) < self.span.end)
        )


def _trace(choice: argparse.Namespace) -> int:
    span = None if choice.range is None else parse_range(choice.range, default_size=1)
    mountpoint, words = _split(choice.place)
    device, region = (*words, None, None)[:2]
    info = MountInfo.read(mountpoint)
    if info is None:
        raise MountError(f"the mount on {mountpoint} does not answer")
    if info.trace is None:
        raise UsageError(f"{mountpoint} is mounted without -o trace=FILE")
    if device is not None and device not in info.devices:
        raise UsageError(f"{mountpoint} has no device {device}")
    wanted = _Filter(device, region, span)
    try:
        with contextlib.closing(_Follower(Path(info.trace))) as follower:
            for line in follower.lines(lambda: mountpoint in barfs_mounts()):
                if wanted.shows(line):
                    sys.stdout.write(f"{printable(line)}\n")
                    sys.stdout.flush()
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise MountError(f"{info.trace}: {reason(error)}") from error
    return 0


def _split(place: Path) -> tuple[Path, tuple[str, ...]]:
    """The mount that contains a path, and the names of the device and the region below `bus`."""
    place = Path(os.path.realpath(place))
    for mountpoint in barfs_mounts():
        if place.is_relative_to(mountpoint):
            return mountpoint, place.relative_to(mountpoint).parts[1:]
    raise UsageError(f"{place} is not in a barfs mount; mount -t fuse.barfs lists them")


class _Follower:
    """Reads whole lines as they are appended to a file, and to those that replace it when it has
    reached its limit."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._path = Path(os.path.realpath(path))
        self._older = Path(f"{self._path}.1")
        self._file = self._path.open("rb")
        self._file.seek(0, os.SEEK_END)
        self._rest = b""

    def close(self) -> None:
        self._file.close()

    def lines(self, lives: Callable[[], bool]) -> Iterator[str]:
        """Yield lines until `lives` returns False and all is read. Raises OSError."""
        while True:
            living = lives()
            yield from self._added()
            while (following := self._following()) is not None:
                # The last lines were written before the move. A slow reader may be a file behind.
                yield from self._added()
                if following == self._older:
                    yield "# lines may be missing here: the trace was moved faster than it was read"
                self._go_on_in(following)
                yield from self._added()
            if not living:
                return
            time.sleep(_PAUSE)

    def _added(self) -> Iterator[str]:
        while text := self._file.readline():
            self._rest += text
            if self._rest.endswith(b"\n"):
                yield os.fsdecode(self._rest[:-1])
                self._rest = b""

    def _following(self) -> Path | None:
        """The file to read after the open one: the older one, if both were moved since."""
        own = os.fstat(self._file.fileno())
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(own, self._path.stat()):
                return None
            if own.st_nlink == 0 and self._older.exists():
                return self._older
            return self._path
        return None

    def _go_on_in(self, path: Path) -> None:
        self._file.close()
        self._file = path.open("rb")
        self._rest = b""
