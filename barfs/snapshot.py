# SPDX-License-Identifier: MIT
"""A whole device, read once: through the mount that holds it, or opened for it.

Rule 1: every byte is read at most once. What cannot be read is a hole with its reason, and one bad
        register does not cost the rest.
Rule 2: a device that is gone or does not answer ends it.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from barfs import native
from barfs.attach import DeviceName, open_unasked
from barfs.device import Device
from barfs.dump import Hole
from barfs.errors import AccessError, BarfsError
from barfs.fusermount import MountError, find_device
from barfs.layout import REASON_POLICY, Layout
from barfs.pci import region_index

_CHUNK = 1 << 16
_FATAL = (errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ENOTCONN)

Span = tuple[int, int]
Progress = Callable[[str, int, int], object]
"""Told the region, the bytes of it that are done, and its size."""


class SnapshotError(BarfsError):
    """A device that did not live to be read to the end."""


class Source(Protocol):
    """A device that can be looked at. `layouts` are in the order of the regions."""

    name: str
    layouts: dict[str, Layout]

    def read(self, region: str, offset: int, count: int) -> bytes:
        """As `pread` of the region's file. Raises OSError."""


class _Mounted:
    """A device's directory in a mount."""

    def __init__(self, directory: Path, files: contextlib.ExitStack) -> None:
        self.name = directory.name
        self._directory = directory
        self._files = files
        self._fds: dict[str, int] = {}
        texts = sorted(directory.glob("*.layout"), key=lambda file: region_index(file.stem))
        self.layouts = {file.stem: Layout.from_text(file.read_text()) for file in texts}

    def read(self, region: str, offset: int, count: int) -> bytes:
        if region not in self._fds:
            fd = os.open(self._directory / region, os.O_RDONLY | os.O_CLOEXEC)
            self._fds[region] = fd
            self._files.callback(os.close, fd)
        return os.pread(self._fds[region], count, offset)


class _Opened:
    """A device that was opened for it."""

    def __init__(self, device: Device) -> None:
        self.name = str(device.bdf)
        self._device = device
        self.layouts = {name: device[name].layout for name in device}

    def read(self, region: str, offset: int, count: int) -> bytes:
        try:
            return self._device[region].read(offset, count)
        except AccessError as error:
            raise OSError(native.errno_of(error), str(error)) from error


@contextlib.contextmanager
def source_of(name: DeviceName, opened: Callable[[str], object]) -> Iterator[Source]:
    """The device in its mount, or else opened, of which `opened` is told (`DeviceName.opened`).

    Raises MountError, DeviceError.
    """
    directory = find_device(name.source)
    if directory is None:
        with open_unasked(name, opened) as device:
            yield _Opened(device)
        return
    with contextlib.ExitStack() as files:
        try:
            source = _Mounted(directory, files)
        except OSError as error:
            raise MountError(
                f"{directory} is mounted but cannot be read: {error.strerror}"
            ) from error
        yield source


@dataclass(frozen=True, slots=True)
class Skip:
    """What is not to be read: a region, or a range of it (bytes, `end` exclusive)."""

    region: str
    span: Span | None = None


class RegionReader:
    """The bytes of one region, in order; `holes` is complete when they have all come.

    What was not read comes as zeros.
    """

    def __init__(self, source: Source, layout: Layout, skips: Sequence[Skip] = ()) -> None:
        self._source = source
        self._layout = layout
        self._skips = [skip for skip in skips if skip.region == layout.region]
        self._singly = False
        self.holes: list[Hole] = []

    def chunks(self) -> Iterator[bytes]:
        """Raises SnapshotError when the device is gone or does not answer."""
        for start, end, reason in self._ranges():
            if reason is not None:
                self._hole(start, end, reason)
                yield from _zeros(end - start)
            else:
                yield from self._read(start, end)

    def _ranges(self) -> Iterator[tuple[int, int, str | None]]:
        """The region in pieces, each with the reason why it is not read."""
        spans = [skip.span or (0, self._layout.size) for skip in self._skips]
        for segment in self._layout.segments:
            inside = (edge for span in spans for edge in span)
            edges = {edge for edge in inside if segment.start < edge < segment.end}
            position = segment.start
            for edge in (*sorted(edges), segment.end):
                reason = None
                if not segment.readable:
                    reason = "policy" if segment.reason == REASON_POLICY else "not-readable"
                elif any(start <= position < end for start, end in spans):
                    reason = "skipped"
                yield position, edge, reason
                position = edge

    def _read(self, start: int, end: int) -> Iterator[bytes]:
        place = next(part for part in self._layout.segments if start < part.end)
        width = min(self._layout.width, place.width)
        position = start
        while position < end:
            count = min(end - position, _CHUNK)
            if self._singly:
                count = _single(position, end, width)
            try:
                data = self._source.read(self._layout.region, position, count)
                reason = "short-read"
            except OSError as error:
                if error.errno == errno.EINVAL and not self._singly:
                    self._singly = True  # I/O ports, or -o guard
                    continue
                if error.errno in _FATAL:
                    raise SnapshotError(
                        f"{self._source.name}: {self._layout.region}+{position:#x}: "
                        f"{os.strerror(error.errno or 0)}"
                    ) from error
                data, reason = b"", errno.errorcode.get(error.errno or 0, "EIO")
            if not data:
                bad = min(position - position % width + width, end)
                self._hole(position, bad, reason)
                data = bytes(bad - position)
            position += len(data)
            yield data

    def _hole(self, start: int, end: int, reason: str) -> None:
        last = self.holes[-1] if self.holes else None
        if last and (last.end, last.reason) == (start, reason):
            self.holes[-1] = Hole(last.start, end, reason)
        else:
            self.holes.append(Hole(start, end, reason))


def _single(position: int, end: int, width: int) -> int:
    """The widest single access at a position."""
    while position % width or position + width > end:
        width //= 2
    return width


def _zeros(count: int) -> Iterator[bytes]:
    for start in range(0, count, _CHUNK):
        yield bytes(min(_CHUNK, count - start))
