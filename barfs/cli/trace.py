# SPDX-License-Identifier: MIT
"""The command `trace`: the accesses to a mount, as they happen."""

import argparse
import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from barfs.attached.mounts import MountError, MountInfo, barfs_mounts
from barfs.cli.edge import put, tell
from barfs.cli.help import explain
from barfs.cli.operands import is_name, ranges_of
from barfs.errors import BarfsError, UsageError
from barfs.fuse.mounted_registers import mounted_registers
from barfs.ranges import Range, parse_range
from barfs.registers.sightings import Sightings
from barfs.text.system_errors import reason

_PAUSE = 0.05
_FIRST_LINE = "# barfs trace v"
_LINE = re.compile(
    r"[0-9.]+ (?P<pid>\S+) (?P<device>\S+) (?P<region>\S+) (?P<direction>[rw]) "
    r"(?P<offset>0x[0-9a-f]{1,16}) (?P<width>[0-9]{1,3}) (?P<value>\S+) "
)


def add_trace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "place", metavar="PLACE", type=Path, help="a mount, or a device or a region's file in it"
    )
    parser.add_argument(
        "range",
        metavar="RANGE",
        nargs="?",
        help="what to show, as for barfs md; of a device also REGION.NAME (default: all)",
    )
    explain(
        parser,
        "barfs trace /mnt/bar",
        "barfs trace /mnt/bar/bus/0000:01:00.0/bar0 0x100-0x13f",
        "barfs trace /mnt/bar/bus/0000:01:00.0 'dma.chan*.ctrl'",
        details="Needs a mount with -o trace=FILE. Continues in the new file when the old one "
        "reaches trace-limit=, and ends when the mount ends. Behind an access to registers that "
        "are known by name, shows the name, and the fields: as they were read, or those that a "
        "write changes, since the value was last seen. Makes accesses of its own, which it does "
        "not show, where a device has to tell where its registers are.",
    )
    parser.set_defaults(run=_trace)


@dataclass(frozen=True, slots=True)
class _Filter:
    """The lines to show. A field of None matches all."""

    device: str | None
    spans: Sequence[tuple[str | None, Range | None]]

    def shows(self, line: str, access: "re.Match[str] | None") -> bool:
        if access is None:  # the first line of a file, or a note that lines are missing
            return not line.startswith(_FIRST_LINE)
        if self.device not in (None, access["device"]) or access["pid"] == str(os.getpid()):
            return False
        start = int(access["offset"], 16)
        end = start + int(access["width"])
        return any(
            region in (None, access["region"])
            and (span is None or (span.start < end and start < span.end))
            for region, span in self.spans
        )


class _Names:
    """What the registers that accesses go to are called, and their fields."""

    def __init__(self, mountpoint: Path) -> None:
        self._bus = mountpoint / "bus"
        self._known: dict[tuple[str, str], Sightings | None] = {}

    def of(self, access: "re.Match[str]") -> str:
        place = access["device"], access["region"]
        if place not in self._known:
            self._known[place] = self._find(*place)
        sightings = self._known[place]
        width, value = int(access["width"]), access["value"]
        if sightings is None:
            return ""
        word = int(value, 16) if re.fullmatch("0x[0-9a-f]{1,16}", value) else None
        if word is not None and word >> 8 * width:
            return ""
        return sightings.tell(
            int(access["offset"], 16), width, word, written=access["direction"] == "w"
        )

    def _find(self, device: str, region: str) -> Sightings | None:
        try:
            # No file stays open: it would keep the mount from being unmounted.
            with mounted_registers(self._bus / device) as registers:
                if region not in registers.sources:
                    return None
                return Sightings(registers.map(region))
        except BarfsError as error:
            tell(f"barfs: registers of {device} have no names here: {error}")
            return None


def _trace(choice: argparse.Namespace) -> int:
    mountpoint, words = _split(choice.place)
    device, region = (*words, None, None)[:2]
    named = choice.range is not None and is_name(choice.range)
    span = None if choice.range is None or named else parse_range(choice.range, default_size=1)
    info = MountInfo.read(mountpoint)
    if info is None:
        raise MountError(f"the mount on {mountpoint} does not answer")
    if info.trace is None:
        raise UsageError(f"{mountpoint} is mounted without -o trace=FILE")
    if device is not None and device not in info.devices:
        raise UsageError(f"{mountpoint} has no device {device}")
    spans: Sequence[tuple[str | None, Range | None]] = [(region, span)]
    if named:
        device = device or _only(info)
        with mounted_registers(mountpoint / "bus" / device) as registers:
            spans = ranges_of(registers, region, choice.range)
    wanted, names = _Filter(device, spans), _Names(mountpoint)
    try:
        with contextlib.closing(_Follower(Path(info.trace))) as follower:
            for line in follower.lines(lambda: mountpoint in barfs_mounts()):
                access = _LINE.match(line)
                if wanted.shows(line, access):
                    put(f"{line}  {names.of(access) if access else ''}".rstrip())
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise MountError(f"{info.trace}: {reason(error)}") from error
    return 0


def _only(info: MountInfo) -> str:
    if len(info.devices) != 1:
        raise UsageError(
            "PLACE must be a device's directory for RANGE to be a name, not a mount of "
            f"{len(info.devices)} devices"
        )
    return next(iter(info.devices))


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
