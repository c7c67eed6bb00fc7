# SPDX-License-Identifier: MIT
"""The file of a dump: what a device's regions held, and what was not read.

A ZIP archive. For each region it has the bytes under the region's name and its layout under
`REGION.layout`, as in the device's directory of a mount; what was not read is zeros there.
`dump.json` says whose they are, and lists the holes:

    {"format": "barfs dump v1", "device": "0000:01:00.0",
     "regions": {"bar0": [{"start": 256, "end": 320, "reason": "policy"}], "config": []}}

Reasons are `policy`, `not-readable`, `skipped`, `short-read`, or the errno of the access.

Rule 1: a dump appears under its name whole or not at all.
Rule 2: a dump from elsewhere may be anything: sizes are those of its layouts, whatever it holds.
"""

import contextlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from barfs.errors import UsageError
from barfs.layout import Layout, LayoutError
from barfs.native import Owner, keep_from_children

FORMAT = "barfs dump v1"
_INDEX = "dump.json"
_CHUNK = 1 << 16
_LONGEST_TEXT = 1 << 24


class DumpError(UsageError):
    """A file that is no dump, or cannot be read or written."""


@dataclass(frozen=True, slots=True)
class Hole:
    """A range of a region, in bytes, `end` exclusive, that was not read, and why."""

    start: int
    end: int
    reason: str


class DumpWriter:
    """A dump in the making; `with` keeps it when all went well. Raises DumpError.

    A child of the process that makes it neither writes, keeps nor removes it.
    """

    def __init__(self, path: Path, device: str) -> None:
        self._path = path
        self._device = device
        self._regions: dict[str, list[dict[str, Any]]] = {}
        try:
            fd, self._temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        except OSError as error:
            raise DumpError(f"{path}: {error.strerror}") from error
        self._file = os.fdopen(fd, "wb")
        self._owner = Owner()
        keep_from_children(self)
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_DEFLATED)

    def descriptors(self) -> list[int]:
        return [] if self._file.closed else [self._file.fileno()]

    def add(self, layout: Layout, chunks: Iterable[bytes], holes: Sequence[Hole]) -> None:
        """Store a region; `holes` is looked at once the chunks have all come."""
        try:
            self._zip.writestr(f"{layout.region}.layout", layout.to_text())
            with self._zip.open(layout.region, "w", force_zip64=True) as member:
                for chunk in chunks:
                    member.write(chunk)
        except OSError as error:
            raise DumpError(f"{self._path}: {error.strerror}") from error
        self._regions[layout.region] = [asdict(hole) for hole in holes]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._owner.is_here:
            return
        try:
            if kind is None:
                index = {"format": FORMAT, "device": self._device, "regions": self._regions}
                self._zip.writestr(_INDEX, json.dumps(index, indent=1) + "\n")
                self._close()
                os.rename(self._temporary, self._path)
            else:
                with contextlib.suppress(OSError):
                    self._close()
        except OSError as failed:
            raise DumpError(f"{self._path}: {failed.strerror}") from failed
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)

    def _close(self) -> None:
        with self._file:
            self._zip.close()


class Dump:
    """A dump that was read: `layouts` and `holes` by region. Raises DumpError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except OSError as error:
            raise DumpError(f"{path}: {error.strerror}") from error
        except zipfile.BadZipFile:
            raise DumpError(f"{path} is not a dump of barfs") from None
        try:
            index = json.loads(self._text(_INDEX))
            if index["format"] != FORMAT:
                raise ValueError(f"its format is {index['format']!r}")
            self.device = str(index["device"])
            self.layouts: dict[str, Layout] = {}
            self.holes: dict[str, list[Hole]] = {}
            for region, holes in index["regions"].items():
                self.layouts[region] = Layout.from_text(self._text(f"{region}.layout"))
                self.holes[region] = [
                    Hole(int(hole["start"]), int(hole["end"]), str(hole["reason"]))
                    for hole in holes
                ]
        except (ValueError, KeyError, TypeError, AttributeError, LayoutError) as error:
            self.close()
            raise DumpError(f"{path} is not a dump of barfs: {error}") from None

    def chunks(self, region: str, size: int = _CHUNK) -> Iterator[bytes]:
        """The bytes of a region in pieces of `size`, the last one shorter. Raises DumpError."""
        left = self.layouts[region].size
        try:
            with self._zip.open(region) as member:
                while left:
                    chunk = member.read(min(size, left))
                    if not chunk:
                        raise DumpError(f"{self._path}: {region} is cut short")
                    left -= len(chunk)
                    yield chunk
        except (KeyError, OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DumpError(f"{self._path}: {region} cannot be read: {error}") from None

    def close(self) -> None:
        self._zip.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _text(self, name: str) -> str:
        try:
            with self._zip.open(name) as member:
                return member.read(_LONGEST_TEXT).decode()
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise ValueError(error) from None


@dataclass(frozen=True, slots=True)
class Change:
    """A register that differs: `width` bytes at `offset` of `region`."""

    region: str
    offset: int
    width: int
    before: int
    after: int


def changes(before: Dump, after: Dump) -> Iterator[Change]:
    """The registers that differ, where both dumps have them, in the width of the first's file."""
    for region, layout in before.layouts.items():
        if region not in after.layouts:
            continue
        width = layout.width
        holes = [*before.holes[region], *after.holes[region]]
        position = 0
        pairs = zip(before.chunks(region), after.chunks(region), strict=False)
        for old, new in pairs:
            for at in range(0, min(len(old), len(new)), width) if old != new else ():
                words = old[at : at + width], new[at : at + width]
                offset = position + at
                if words[0] != words[1] and not any(
                    hole.start < offset + width and offset < hole.end for hole in holes
                ):
                    values = (int.from_bytes(word, "little") for word in words)
                    yield Change(region, offset, width, *values)
            position += len(old)
