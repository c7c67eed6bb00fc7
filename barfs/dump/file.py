# SPDX-License-Identifier: MIT
"""The file of a dump: the bytes of a device's regions, and the ranges that were not read.

A ZIP archive. For each region it has the layout under `REGION.layout`, as in the device's directory
of a mount, and bytes under the region's name. `dump.json` tells which device they are of, and where
they belong:

    {"format": "barfs dump v2", "device": "0000:01:00.0",
     "regions": {"bar0": {"stored": [[0, 65536]], "fills": [],
                          "holes": [{"start": 256, "end": 320, "reason": "policy"}]},
                 "bar2": {"stored": [[0, 1048576]], "fills": [[1048576, 8589934592, 255]],
                          "holes": []}}}

A region is kept in blocks of 1 MiB (the last may be shorter). `stored` are the ranges, start and
end, whose bytes are in the archive, one after the other; `fills` those in which every byte has the
value that comes third; all other bytes are 0. So a region of up to 1 MiB that is not all one value
is in the archive as it is. `holes` are what was not read; it counts as zeros. Ranges are in order.
Reasons are `policy`, `not-readable`, `skipped`, `side-effects` (of a register, by its description),
`short-read`, or the errno of the access.

Further keys and members may be there. `"known": ["bar0", "config"]` are the regions whose registers
barfs knew by name without a file. For a region that a file described, `REGION.registers` has the
names and the places of its registers (`barfs.registers.portable`).

In format v1, which is still read, `regions` has the list of holes only, and all bytes of a region
are in the archive, with zeros for what was not read.

Rule 1: a dump appears under its name whole or not at all.
Rule 2: a range that was not read, or is all one value, costs nothing to write or to read.
Rule 3: a dump from elsewhere may hold anything: sizes are those of its layouts, whatever else it
        says, and reading it takes no more memory than a dump of barfs needs.
"""

import contextlib
import functools
import io
import itertools
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from barfs.errors import UsageError
from barfs.layout import Layout, LayoutError
from barfs.pci import CONFIG_SIZE, ConfigSpace, region_index
from barfs.process.output import Output, OutputError, saving
from barfs.ranges import Range, align_down, merge
from barfs.registers.access import DeviceRegisters
from barfs.registers.model import Block
from barfs.registers.places import RegisterMap
from barfs.registers.portable import from_json, to_json
from barfs.registers.shipped import Ids, shipped_maps
from barfs.text.system_errors import reason

FORMAT = "barfs dump v2"
_FORMAT_1 = "barfs dump v1"
BLOCK = 1 << 20

_INDEX = "dump.json"
_MOST_TEXT = 1 << 24
_MOST_NAMES = 1 << 25
_MOST_AT_ONCE = 1 << 21
_MOST_HOLES = 1 << 17
_MOST_REGIONS = 256
_LARGEST = 1 << 63
_LONGEST_ERROR = 400
_REASON = re.compile(r"[!-~]{1,64}")
_DATE = (1980, 1, 1, 0, 0, 0)
"""Of every member: the same contents are the same file, and ZIP knows no date before this one."""


class DumpError(UsageError):
    """A file that is not a dump, or cannot be read."""


@dataclass(frozen=True, slots=True)
class Hole(Range):
    """A range of a region that was not read, and why."""

    reason: str


Piece = tuple[int, bytes]
"""An offset in the region, a multiple of BLOCK, and up to BLOCK bytes."""


@functools.lru_cache(maxsize=8)
def filled(value: int, count: int) -> bytes:
    """Bytes of one value: for blocks the same object, so that comparing two costs nothing."""
    return bytes((value,)) * count


@dataclass(frozen=True, slots=True)
class _Run(Range):
    """A range of whole blocks: each byte has the value, or is stored (None)."""

    value: int | None


class DumpWriter:
    """A dump in the making, see `new_dump`."""

    def __init__(self, path: Path, output: Output) -> None:
        self._path = path
        self._zip = zipfile.ZipFile(output, "w")
        self._device = ""
        self._regions: dict[str, dict[str, Any]] = {}
        self._known: list[str] = []
        self._holes = 0

    def add(
        self, layout: Layout, pieces: Iterable[tuple[int, bytes]], holes: Sequence[Hole]
    ) -> None:
        """Store a region. `pieces` are the bytes that were read, with their offsets, in order;
        `holes` may grow while they come. Raises OutputError."""
        runs: list[_Run] = []
        with self._told():
            self._put(f"{layout.region}.layout", layout.to_text())
            with self._zip.open(_member(layout.region), "w", force_zip64=True) as member:
                for start, block in _blocks_of(pieces, layout.size):
                    value = block[0] if block == filled(block[0], len(block)) else None
                    if value is None:
                        member.write(block)
                    runs[-1:] = merge((*runs[-1:], _Run(start, start + len(block), value)))
                    self._check(layout.region, len(holes))
        self._check(layout.region, len(holes))
        self._holes += len(holes)
        self._device = layout.device
        self._regions[layout.region] = {
            "stored": [[run.start, run.end] for run in runs if run.value is None],
            "fills": [[run.start, run.end, run.value] for run in runs if run.value],
            "holes": [asdict(hole) for hole in holes],
        }

    def name(self, registers: DeviceRegisters, region: str) -> None:
        """Note what the registers of a region are called. Raises OutputError."""
        if region not in {named.region for named in registers.named}:
            self._known.append(region)
            return
        place = registers.map(region).root
        assert isinstance(place.node, Block)
        text = to_json(replace(place.node, offset=place.offset))
        if len(text) <= _MOST_NAMES:
            with self._told():
                self._put(f"{region}.registers", text)

    def _check(self, region: str, holes: int) -> None:
        if self._holes + holes > _MOST_HOLES:
            raise OutputError(
                f"{self._path}: more than {_MOST_HOLES} ranges cannot be read, the last ones in "
                f"{region}; leave it out with --skip {region}"
            )

    def finish(self) -> None:
        """Raises OutputError."""
        index = {
            "format": FORMAT,
            "device": self._device,
            "regions": self._regions,
            "known": self._known,
        }
        with self._told():
            self._put(_INDEX, json.dumps(index) + "\n")
            self._zip.close()

    def abandon(self) -> None:
        """Drop the dump; only while the file that it writes to is open."""
        with contextlib.suppress(OSError, ValueError):
            self._zip.close()

    def _put(self, name: str, text: str) -> None:
        self._zip.writestr(_member(name), text)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self._path}: {reason(error)}") from error


@contextlib.contextmanager
def new_dump(path: Path) -> Iterator[DumpWriter]:
    """Write a dump, which is kept when the block ends well. Raises UsageError, OutputError."""
    with saving(path) as output:
        writer = DumpWriter(path, output)
        try:
            yield writer
            writer.finish()
        finally:
            writer.abandon()


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _DATE)
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def _blocks_of(pieces: Iterable[tuple[int, bytes]], size: int) -> Iterator[Piece]:
    """The whole blocks that pieces touch, which are in order; with zeros between the pieces."""
    start, parts, end = 0, [b""], 0
    for at, data in pieces:
        taken = 0
        while taken < len(data):
            offset = at + taken
            if offset >= start + BLOCK:
                if end > start:
                    yield start, b"".join((*parts, bytes(min(start + BLOCK, size) - end)))
                start = end = align_down(offset, BLOCK)
                parts = []
            part = data[taken : taken + start + BLOCK - offset]
            parts += (bytes(offset - end), part)
            end = offset + len(part)
            taken += len(part)
    if end > start:
        yield start, b"".join((*parts, bytes(min(start + BLOCK, size) - end)))


class _Bounded(io.FileIO):
    """A file that never reads much at once, as of the directory of an archive."""

    def read(self, size: int | None = -1, /) -> bytes:
        most = _MOST_AT_ONCE + 1
        data = super().read(most if size is None or size < 0 else min(size, most)) or b""
        if len(data) > _MOST_AT_ONCE:
            raise zipfile.BadZipFile("its directory is too long")
        return data


_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    NotImplementedError,
)
"""The exceptions of zipfile for a file that is not an archive, or a damaged one."""

_MADE_UP = (KeyError, TypeError, AttributeError, RecursionError)
"""Further exceptions that contents of another program may cause."""


class Dump:
    """A dump that was read, of `device`: `layouts` and `holes` by region. Raises DumpError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text_left = _MOST_TEXT
        self.layouts: dict[str, Layout] = {}
        self.holes: dict[str, list[Hole]] = {}
        self._runs: dict[str, list[_Run]] = {}
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(_Bounded(path))
            except OSError as error:
                raise DumpError(f"{path}: {reason(error)}") from error
            try:
                self._zip = stack.enter_context(zipfile.ZipFile(file))
            except _DAMAGED:
                raise DumpError(f"{path} is not a dump of barfs") from None
            try:
                self._read_index()
            except (*_DAMAGED, *_MADE_UP, UsageError, LayoutError) as error:
                raise DumpError(
                    f"{path} is not a dump of barfs: {error}"[:_LONGEST_ERROR]
                ) from None
            self._stack = stack.pop_all()

    def _read_index(self) -> None:
        index = json.loads(self._text(_INDEX))
        if index["format"] not in (FORMAT, _FORMAT_1):
            raise ValueError(f"its format is {index['format']!r}")
        self.device = str(index["device"])
        self._known = set(map(str, index.get("known", ())))
        regions = index["regions"].items()
        if len(regions) > _MOST_REGIONS:
            raise ValueError(f"it has {len(regions)} regions")
        for region, facts in regions:
            region_index(region)
            layout = Layout.from_text(self._text(f"{region}.layout"))
            if layout.region != region or layout.size >= _LARGEST:
                raise ValueError(f"the layout of {region} is none")
            if index["format"] == _FORMAT_1:
                runs, holes = [_Run(0, layout.size, None)], facts
            else:
                runs, holes = _runs_from(facts, layout.size), facts["holes"]
            self.layouts[region] = layout
            self.holes[region] = _holes_from(holes, layout.size)
            self._runs[region] = runs

    def blocks(self, region: str) -> Iterator[Piece]:
        """The blocks of a region that are not all zeros, in order. Raises DumpError."""
        try:
            with self._zip.open(self._info(region)) as member:
                for run in self._runs[region]:
                    for start in range(run.start, run.end, BLOCK):
                        count = min(BLOCK, run.end - start)
                        if run.value is not None:
                            yield start, filled(run.value, count)
                            continue
                        data = member.read(count)
                        if len(data) < count:
                            raise DumpError(f"{self._path}: {region} is cut short")
                        if data != filled(0, count):
                            yield start, data
        except (*_DAMAGED, KeyError) as error:
            raise DumpError(f"{self._path}: {region} cannot be read: {error}") from None

    def registers(self, region: str) -> RegisterMap | None:
        """The registers of a region by name, where the dump tells them. Raises DumpError."""
        if region in self._known:
            return self._shipped(region)
        try:
            with self._zip.open(self._info(f"{region}.registers")) as member:
                data = member.read(_MOST_NAMES + 1)
            if len(data) > _MOST_NAMES:
                raise ValueError(f"more than {_MOST_NAMES} bytes")
            return RegisterMap(from_json(data.decode()), str(self._path))
        except KeyError:
            return None
        except _DAMAGED as error:
            message = f"{self._path}: the names of {region} cannot be read: {error}"
            raise DumpError(message[:_LONGEST_ERROR]) from None

    def _shipped(self, region: str) -> RegisterMap | None:
        """What barfs knows of a device with these contents."""
        contents = functools.cache(lambda name: self.head(name, BLOCK))

        def read(name: str, offset: int, width: int) -> int:
            return int.from_bytes(contents(name)[offset : offset + width], "little")

        config = ConfigSpace(self.head("config", CONFIG_SIZE) if "config" in self.layouts else b"")
        sizes = {name: layout.size for name, layout in self.layouts.items()}
        found = shipped_maps(Ids.of(config), sizes, read).get(region)
        return None if found is None else found.load()

    def head(self, region: str, most: int) -> bytes:
        """The first bytes of a region, at most a block of them. Raises DumpError."""
        count = min(most, self.layouts[region].size)
        start, data = next(self.blocks(region), (0, b""))
        return data[:count].ljust(count, b"\0") if start == 0 else bytes(count)

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _info(self, name: str) -> zipfile.ZipInfo:
        """A member that can be read with little memory: a dictionary of LZMA may have 4 GiB."""
        info = self._zip.getinfo(name)
        if info.flag_bits & 1 or info.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise ValueError(f"{name} is not packed as barfs does it")
        return info

    def _text(self, name: str) -> str:
        with self._zip.open(self._info(name)) as member:
            data = member.read(self._text_left + 1)
        self._text_left -= len(data)
        if self._text_left < 0:
            raise ValueError(f"its texts have more than {_MOST_TEXT} bytes")
        return data.decode()


def _ranges_from(items: Any, size: int, count: int) -> Iterator[tuple[int, ...]]:
    """Lists of a start, an end and what follows, `count` numbers together, in order. Raises
    ValueError, TypeError."""
    before = 0
    for item in items:
        if type(item) is not list or [type(number) for number in item] != [int] * count:
            raise ValueError("a range is not made of numbers")
        if not before <= item[0] < item[1] <= size:
            raise ValueError(f"there is no range {item[0]:#x}-{item[1]:#x} there")
        before = item[1]
        yield tuple(item)


def _runs_from(facts: Any, size: int) -> list[_Run]:
    """The ranges of a region that are not zeros. Raises ValueError, TypeError, KeyError."""
    runs = [_Run(start, end, None) for start, end in _ranges_from(facts["stored"], size, 2)]
    for start, end, value in _ranges_from(facts["fills"], size, 3):
        if not 0 < value < 256:
            raise ValueError(f"{value} is no byte to fill with")
        runs.append(_Run(start, end, value))
    runs.sort(key=lambda run: run.start)
    for run, following in itertools.pairwise([*runs, _Run(size, size, None)]):
        if run.start % BLOCK or (run.end % BLOCK and run.end != size) or run.end > following.start:
            raise ValueError(f"{run.start:#x}-{run.end:#x} are no blocks")
    return runs


def _holes_from(items: Any, size: int) -> list[Hole]:
    """Raises ValueError, TypeError, KeyError."""
    ranges = _ranges_from([[item["start"], item["end"]] for item in items], size, 2)
    reasons = [item["reason"] for item in items]
    if not all(_REASON.fullmatch(why) for why in reasons):
        raise ValueError("a hole has no reason")
    return [Hole(start, end, why) for (start, end), why in zip(ranges, reasons, strict=True)]
