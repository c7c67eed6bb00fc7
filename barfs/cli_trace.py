# SPDX-License-Identifier: MIT
"""The command `trace`: the accesses of a mount, as they happen."""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from barfs.cli_help import explain
from barfs.errors import UsageError
from barfs.fusermount import MountError, MountInfo, barfs_mounts
from barfs.ranges import parse_range
from barfs.surroundings import reason

_PAUSE = 0.05
_LINE = re.compile(r"[0-9.]+ \S+ (?P<device>\S+) (?P<region>\S+) [rw] (?P<offset>0x[0-9a-f]+) ")


def add_trace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "place", metavar="PLACE", type=Path, help="the mount, or a device or a region's file in it"
    )
    parser.add_argument(
        "range", metavar="RANGE", nargs="?", help="of offsets, as for barfs md; default: all"
    )
    explain(
        parser,
        "barfs trace /mnt/bar",
        "barfs trace /mnt/bar/bus/0000:01:00.0/bar0 0x100-0x13f",
        details="The mount was made with -o trace=FILE. Ends when the mount does.",
    )
    parser.set_defaults(run=_trace)


@dataclass(frozen=True, slots=True)
class _Filter:
    """Which lines to show: None of a field lets all through; `end` is exclusive."""

    device: str | None
    region: str | None
    start: int = 0
    end: int | None = None

    def shows(self, line: str) -> bool:
        match = _LINE.match(line)
        if match is None:  # a line that says that others are missing
            return True
        return (
            self.device in (None, match["device"])
            and self.region in (None, match["region"])
            and self.start <= int(match["offset"], 16)
            and (self.end is None or int(match["offset"], 16) < self.end)
        )


def _trace(choice: argparse.Namespace) -> int:
    span = (0, None) if choice.range is None else parse_range(choice.range, default_size=1)
    mountpoint, words = _split(choice.place)
    device, region = (*words, None, None)[:2]
    info = MountInfo.read(mountpoint)
    if info is None:
        raise MountError(f"{mountpoint} does not answer")
    if info.trace is None:
        raise UsageError(f"{mountpoint} is mounted without -o trace=FILE")
    if device is not None and device not in info.devices:
        raise UsageError(f"{choice.place}: there is no such device in {mountpoint}")
    wanted = _Filter(device, region, *span)
    try:
        with open(info.trace) as file:
            file.seek(0, os.SEEK_END)
            for line in _follow(file, lambda: mountpoint in barfs_mounts()):
                if wanted.shows(line):
                    sys.stdout.write(line)
                    sys.stdout.flush()
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise MountError(f"{info.trace}: {reason(error)}") from error
    return 0


def _split(place: Path) -> tuple[Path, tuple[str, ...]]:
    """The mount that a path is in, and the names of a device and a region behind `bus`."""
    place = Path(os.path.realpath(place))
    for mountpoint in barfs_mounts():
        if place.is_relative_to(mountpoint):
            return mountpoint, place.relative_to(mountpoint).parts[1:]
    raise UsageError(f"{place} is not in a mount of barfs; mount -t fuse.barfs lists them")


def _follow(file: TextIO, lives: Callable[[], bool]) -> Iterator[str]:
    """The whole lines that are added to a file, until it does not live any more and all is read."""
    rest = ""
    while True:
        living = lives()
        while text := file.readline():
            rest += text
            if rest.endswith("\n"):
                yield rest
                rest = ""
        if not living:
            return
        time.sleep(_PAUSE)
