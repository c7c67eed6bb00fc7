# SPDX-License-Identifier: MIT
"""A whole device, read once: through the mount that holds it, or opened for it.

Rule 1: read every byte at most once. A range that cannot be read is a hole with its reason; the
        rest is read all the same.
Rule 2: a device that is gone or does not answer ends the capture.
Rule 3: a range that is not read costs nothing, however large it is. Where many registers in a row
        fail, try one of each page, and the longer they fail, the fewer; those between count as
        failed. Then search backwards for the first one that can be read again.
"""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from barfs.attached.mounts import find_device, layouts_in
from barfs.device import Device
from barfs.dump.file import Hole
from barfs.errors import AccessError, BarfsError
from barfs.fuse.mounted_registers import mounted_registers
from barfs.layout import REASON_POLICY, Layout, Segment
from barfs.opening import DeviceName, open_implicitly
from barfs.ranges import Range, align_down, align_up, clip, merge, overlay
from barfs.region import backing_of
from barfs.registers.access import DeviceRegisters
from barfs.registers.find import Choice
from barfs.widths import WIDTHS, Widths

SIDE_EFFECTS = "side-effects"
"""The reason of a hole where a register is whose read does something."""
_CHUNK = 1 << 16
_WIDEST = 8
_STEP = 1 << 12
_PATIENCE = 64
"""Registers in a row that fail before steps are made."""
_TRIES = 1024
_LONGEST_PACE = 1.0
"""So many registers, or seconds, with steps of one length; then they become twice as long."""
_FATAL = (errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ENOTCONN)

Piece = tuple[int, bytes]
"""An offset in a region, and the bytes from there."""


class SnapshotError(BarfsError):
    """A device that did not live to be read to the end."""


class Source(Protocol):
    """A device that can be read. `layouts` are in the order of the regions."""

    name: str
    layouts: dict[str, Layout]

    def read(self, region: str, offset: int, count: int) -> bytes:
        """As `pread` of the region's file. Raises OSError."""

    def zeros_end(self, region: str, segment: Segment, offset: int) -> int:
        """The end of the bytes, from an offset in a segment on, that are zeros without reading."""


class NamedSource(Source, Protocol):
    """A source whose registers have names."""

    registers: DeviceRegisters


class _Mounted:
    """A device's directory in a mount."""

    def __init__(self, directory: Path, files: contextlib.ExitStack, choice: Choice | None) -> None:
        self.name = directory.name
        self._directory = directory
        self._files = files
        self._fds: dict[str, int] = {}
        self.layouts = layouts_in(directory)
        self.registers = files.enter_context(mounted_registers(directory, choice))

    def read(self, region: str, offset: int, count: int) -> bytes:
        if region not in self._fds:
            fd = os.open(self._directory / region, os.O_RDONLY | os.O_CLOEXEC)
            self._fds[region] = fd
            self._files.callback(os.close, fd)
        return os.pread(self._fds[region], count, offset)

    def zeros_end(self, _region: str, _segment: Segment, offset: int) -> int:
        return offset


class _Opened:
    """A device that was opened for the capture."""

    def __init__(self, device: Device, files: contextlib.ExitStack) -> None:
        self.name = str(device.bdf)
        self._device = device
        self._files = files
        self._memory: dict[str, tuple[int, int] | None] = {}
        self.layouts = {name: device[name].layout for name in device}
        self.registers = device.registers

    def read(self, region: str, offset: int, count: int) -> bytes:
        try:
            return self._device[region].read(offset, count)
        except AccessError as error:
            raise OSError(error.errno, str(error)) from error

    def zeros_end(self, region: str, segment: Segment, offset: int) -> int:
        """Skip the holes of a software device's memory: reading them would allocate it."""
        if segment.access != "mmap":
            return offset
        if region not in self._memory:
            self._memory[region] = self._memory_of(region)
        memory = self._memory[region]
        if memory is None:
            return offset
        fd, start = memory
        try:
            data = os.lseek(fd, start + offset, os.SEEK_DATA) - start
        except OSError as error:
            return segment.end if error.errno == errno.ENXIO else offset
        return min(data, segment.end)

    def _memory_of(self, region: str) -> tuple[int, int] | None:
        """The file that a region's windows are mapped from, with a position of its own: that of the
        device's descriptor is the device's."""
        backing = backing_of(self._device[region])
        if backing is None or not stat.S_ISREG(os.fstat(backing[0]).st_mode):
            return None
        try:
            fd = os.open(f"/proc/self/fd/{backing[0]}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        self._files.callback(os.close, fd)
        if os.fstat(fd).st_size < backing[1] + self._device[region].size:
            return None  # nothing is mapped past its end
        return fd, backing[1]


@contextlib.contextmanager
def source_of(
    name: DeviceName, tell: Callable[[str], object], registers: Choice | None = None
) -> Iterator[NamedSource]:
    """The device in its mount, or else opened, which `tell` is told (`DeviceName.opening_notice`).

    `registers` are its descriptions, by default those of the mount, or those that are installed.
    Raises MountError, DeviceError, DescriptionError.
    """
    directory = find_device(name.source)
    if directory is None:
        with open_implicitly(name, tell, registers) as device, contextlib.ExitStack() as files:
            yield _Opened(device, files)
        return
    with contextlib.ExitStack() as files:
        yield _Mounted(directory, files, registers)


@dataclass(frozen=True, slots=True)
class Skip:
    """A region, or a range of it, that the user leaves out."""

    region: str
    span: Range | None = None


@dataclass(frozen=True, slots=True)
class _Part(Range):
    """A part of a segment; with the reason why it is not read, if it is not."""

    segment: Segment
    reason: str | None


class RegionReader:
    """Reads one region, in order; `holes` is complete once `pieces` has ended."""

    def __init__(
        self,
        source: Source,
        layout: Layout,
        skips: Sequence[Skip] = (),
        effects: Sequence[Range] = (),
    ) -> None:
        """`effects` are the registers whose read does something."""
        self._source = source
        self._effects = effects
        self._layout = layout
        self._skips = [skip for skip in skips if skip.region == layout.region]
        self._singly = False
        self._width = layout.width
        self._widths: Widths = WIDTHS
        self.holes: list[Hole] = []

    def pieces(self) -> Iterator[Piece]:
        """Raises SnapshotError when the device is gone or does not answer."""
        for part in self._parts():
            if part.reason is not None:
                self._hole(part.start, part.end, part.reason)
            else:
                yield from self._read(part.segment, part.start, part.end)

    def _parts(self) -> list[_Part]:
        parts = []
        for segment in self._layout.segments:
            reason = None
            if not segment.readable:
                reason = "policy" if segment.reason == REASON_POLICY else "not-readable"
            parts.append(_Part(segment.start, segment.end, segment, reason))
        whole = Range(0, self._layout.size)
        left_out = [(span, SIDE_EFFECTS) for span in self._effects]
        left_out += [(skip.span or whole, "skipped") for skip in self._skips]
        layers = (
            replace(part, reason=reason)
            for span, reason in left_out
            for part in clip(parts, span)
            if part.reason is None
        )
        return overlay((*parts, *layers))

    def _read(self, segment: Segment, start: int, end: int) -> Iterator[Piece]:
        self._width, self._widths = segment.cut(self._layout.width), segment.widths
        position, failures = start, 0
        known: dict[int, bytes] = {}
        while True:
            if not failures and not known:
                position = self._source.zeros_end(self._layout.region, segment, position)
            if position >= end:
                return
            data, reason = known.pop(position, b""), ""
            if not data:
                data, reason = self._try(position, min(known, default=end))
            if data:
                yield position, data
                position, failures = position + len(data), 0
                continue
            bad = min(self._next_register(position), end)
            failures += 1
            if failures == _PATIENCE and not known:
                bad, known = self._search(bad, end)
                failures = 0
            self._hole(position, bad, reason)
            position = bad

    def _next_register(self, position: int) -> int:
        return align_down(position, self._width) + self._width

    def _try(self, position: int, end: int) -> tuple[bytes, str]:
        """Read from a position: the bytes, or none and the reason. Raises SnapshotError."""
        while True:
            count = min(end - position, _CHUNK - position % _CHUNK)
            # Between registers that are left out, 8 bytes are two others, and no single access.
            if self._singly or (self._effects and count <= _WIDEST):
                count = self._single(position, end)
            try:
                return self._source.read(self._layout.region, position, count), "short-read"
            except OSError as error:
                if error.errno == errno.EINVAL and not self._singly:
                    self._singly = True  # I/O ports, or -o guard
                    continue
                if error.errno in _FATAL:
                    raise SnapshotError(self._why(position, count, error.errno)) from error
                return b"", errno.errorcode.get(error.errno or 0, "EIO")

    def _why(self, position: int, count: int, error: int) -> str:
        region = self._layout.region
        text = f"{self._source.name}: {region}+{position:#x}: {os.strerror(error)}"
        if error != errno.ETIMEDOUT:
            return text
        where = f"{region}:{position:#x}-{position + count - 1:#x}"
        return f"{text}; --skip leaves out what does not answer, which is in {where}"

    def _search(self, start: int, end: int) -> tuple[int, dict[int, bytes]]:
        """Find the next register that can be read: its offset, and what was read by offset."""
        step, tries, since = _STEP, 0, time.monotonic()
        low, high = start, align_up(start, step)
        while True:
            if high >= end:
                return end, {}
            data, _ = self._try(high, min(self._next_register(high), end))
            if data:
                break
            low, tries = self._next_register(high), tries + 1
            if tries == _TRIES or time.monotonic() - since > _LONGEST_PACE:
                step, tries, since = 2 * step, 0, time.monotonic()
            high += step
        known = {high: data}
        while low < high:
            middle = align_down(low + (high - low) // 2, self._width)
            data, _ = self._try(middle, self._next_register(middle))
            if data:
                known[middle], high = data, middle
            else:
                low = self._next_register(middle)
        return high, known

    def _hole(self, start: int, end: int, reason: str) -> None:
        self.holes[-1:] = merge((*self.holes[-1:], Hole(start, end, reason)))

    def _single(self, position: int, end: int) -> int:
        """The widest single access at a position; one that is refused if none is possible."""
        return max(
            (
                width
                for width in self._widths
                if width <= self._width and position % width == 0 and position + width <= end
            ),
            default=1,
        )
