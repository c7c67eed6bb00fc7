# SPDX-License-Identifier: MIT
"""A device that a mount holds, from another process: a `Backend` over its directory.

Rule 1: an access outside the windows is one request of its width on the region's file, which the
        mount makes into one access of the device. What the mount forbids, it refuses.
Rule 2: windows are those that the mount hands out (`-o map`); without them, or where one cannot be
        mapped, the file takes their accesses.
Rule 3: layouts are the mount's. Where a range is a window there and not here, the reason tells.
Rule 4: this process does not own the device: it cannot reset it, and lets go of it when the
        connection to the mount ends.
"""

import contextlib
import errno
import itertools
import logging
import os
import select
import socket
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from barfs.attached.client import Granted, ask
from barfs.attached.mounts import MountError, MountInfo, layouts_in
from barfs.attached.wire import Window
from barfs.backend import HOST_FILES, HostFile, NoDescriptor, Signal
from barfs.engine import PAGE_SIZE, Owner, keep_from_children
from barfs.errors import (
    AccessDenied,
    BusFault,
    DeviceError,
    DeviceGone,
    UsageError,
    access_error,
)
from barfs.layout import (
    REASON_MAPPING_OFF,
    REASON_NO_DESCRIPTOR,
    REASON_NONE,
    REASON_POLICY,
    WINDOW_WIDTH,
    Layout,
    LayoutError,
    Segment,
)
from barfs.pci import ROM_INDEX, Bdf, region_index, region_name
from barfs.policy import AccessPolicy, Rule
from barfs.ranges import Range, clip, overlay
from barfs.text.system_errors import reason
from barfs.uapi import (
    REGION_FLAG_MMAP,
    REGION_FLAG_READ,
    REGION_FLAG_WRITE,
    DeviceInfo,
    RegionInfo,
)

_FLAGS = {"read": REGION_FLAG_READ, "write": REGION_FLAG_WRITE, "mmap": REGION_FLAG_MMAP}
_GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ECONNABORTED})
_LONGEST_TEXT = 1 << 16
_PATIENCE = 10.0
"""Seconds in which a mount shows a device's directory."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MountedDirectory:
    """A device's directory in a mount, and what the mount says of itself.

    `read_only`: whether the mount is. `registers`: the values of `-o registers=` for the device.
    """

    path: Path
    bdf: Bdf
    info: MountInfo
    layouts: Mapping[str, Layout]
    read_only: bool
    registers: tuple[str, ...]

    @classmethod
    def find(cls, path: str | os.PathLike[str]) -> Self:
        """Raises UsageError if it is no such directory, DeviceError if it cannot be read."""
        found: list[Self | Exception] = []

        def look() -> None:
            try:
                found.append(cls._look(path))
            except Exception as error:
                found.append(error)

        # Any look into a mount whose process is stopped may never return, so a thread takes it.
        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        looking.join(_PATIENCE)
        if not found:
            raise DeviceError(f"the mount with {path} does not answer; is its process stopped?")
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    @classmethod
    def _look(cls, path: str | os.PathLike[str]) -> Self:
        directory = Path(os.path.realpath(os.path.expanduser(os.fsdecode(path))))
        info = MountInfo.read(directory.parent.parent) if len(directory.parts) > 2 else None
        if info is None or directory.name not in info.devices:
            problem = ""
            try:
                os.stat(directory)
            except OSError as error:
                problem = f": {reason(error)}"
            raise UsageError(
                f"{path} must be a device's directory in a mount, like .../bus/BDF{problem}"
            )
        try:
            layouts = layouts_in(directory)
            status = os.statvfs(directory)
        except (MountError, LayoutError) as error:
            raise DeviceError(str(error)) from error
        except OSError as error:
            raise DeviceError(f"{path}: {reason(error)}") from error
        described = (directory / "registers").is_dir()
        return cls(
            directory,
            Bdf.parse(directory.name),
            info,
            layouts,
            bool(status.f_flag & os.ST_RDONLY),
            tuple(info.registers.get(directory.name, ())) if described else ("off",),
        )

    @property
    def policy(self) -> AccessPolicy:
        """The policy in force, as the layouts show it."""
        return AccessPolicy(
            tuple(
                Rule("none" if segment.perm == "--" else "ro", region=name, span=_span(segment))
                for name, layout in self.layouts.items()
                for segment in layout.segments
                if segment.reason == REASON_POLICY
            )
        )


def _span(segment: Segment) -> Range:
    return Range(segment.start, segment.end)


@dataclass(slots=True)
class _Region:
    """A region's file, the flags of its descriptor, and the windows of it that are mapped here."""

    layout: Layout
    fd: int
    writable: bool
    windows: tuple[Window, ...] = ()
    memory: int | NoDescriptor = REASON_NO_DESCRIPTOR

    @property
    def offset(self) -> int:
        """Where the region begins in the descriptor of its windows."""
        return self.windows[0].fd_offset - self.windows[0].offset if self.windows else 0


class AttachedDevice:
    """A `Backend`. With `mapping` False it asks for no windows. Raises DeviceError."""

    max_width = WINDOW_WIDTH
    """Of a window that cannot be mapped here: the mount takes its accesses in the window."""

    access_fd = None
    """Accesses go through `accessor`: each region has a file of its own."""

    def __init__(self, directory: MountedDirectory, *, mapping: bool = True) -> None:
        self.bdf = directory.bdf
        self.source = directory.info.devices[str(directory.bdf)]
        self.has_ports = self.source == str(self.bdf)
        self.connection: socket.socket | None = None
        self._directory = directory
        self._regions: dict[int, _Region] = {}
        self._fds: list[int] = []
        self._owner = Owner()
        keep_from_children(self)
        try:
            self._lost = self._keep(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            for name, layout in directory.layouts.items():
                self._regions[region_index(name)] = self._open(name, layout)
            if mapping and directory.info.map is not None:
                self._ask_for_windows()
        except OSError as error:
            self.close()
            raise DeviceError(f"{directory.path}: {reason(error)}") from error
        except BaseException:
            self.close()
            raise

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def _open(self, name: str, layout: Layout) -> _Region:
        path = self._directory.path / name
        if layout.region != name:
            raise DeviceError(f"{path}.layout is the layout of {layout.region}")
        modes = [os.O_RDWR] if layout.readable and layout.writable else []
        modes += [os.O_RDONLY] if layout.readable else []
        modes += [os.O_WRONLY] if layout.writable else []
        for mode in modes:
            with contextlib.suppress(PermissionError):
                fd = self._keep(os.open(path, mode | os.O_CLOEXEC))
                if os.fstat(fd).st_size != layout.size:
                    raise DeviceError(f"{path} must have {layout.size:#x} bytes, as its layout")
                return _Region(layout, fd, writable=mode != os.O_RDONLY)
        if not modes:
            return _Region(layout, -1, writable=False)
        raise DeviceError(f"no permission to open {path}; its owner may, and root")

    def _ask_for_windows(self) -> None:
        root = os.open(self._directory.path.parent.parent, os.O_PATH | os.O_CLOEXEC)
        try:
            for region in self._regions.values():
                if region.layout.windows:
                    self._take(region, ask(root, os.fstat(region.fd).st_ino))
        except DeviceError as error:
            log.warning("%s: accesses of windows are requests: %s", self.bdf, error)
        finally:
            os.close(root)

    def _take(self, region: _Region, granted: Granted) -> None:
        for fd in granted.fds:
            self._keep(fd)
        if granted.connection is not None:
            if self.connection is None:
                self.connection = granted.connection
            else:  # one tells enough
                granted.connection.close()
        reply, size, name = granted.reply, region.layout.size, region.layout.region
        if reply.error not in (0, errno.ENODEV) or (reply.windows and reply.size != size):
            why = os.strerror(reply.error) if reply.error else f"it has {reply.size:#x} bytes there"
            log.warning("%s: accesses of windows of %s are requests: %s", self.bdf, name, why)
            return
        windows = tuple(reply.windows)
        places = {(window.descriptor, window.fd_offset - window.offset) for window in windows}
        whole = all(not window.offset % PAGE_SIZE for window in windows)
        if len(places) == 1 and min(places)[1] >= 0 and whole:
            region.windows, region.memory = windows, granted.fds[windows[0].descriptor]

    def device_info(self) -> DeviceInfo:
        return DeviceInfo(0, max(self._regions, default=-1) + 1, 0)

    def region_info(self, index: int) -> RegionInfo:
        region = self._regions.get(index)
        if region is None:
            return RegionInfo(index, 0, 0, 0)
        flags = sum(_FLAGS.get(name, 0) for name in region.layout.flags)
        return RegionInfo(index, flags, region.layout.size, region.offset)

    def layout(self, index: int) -> Layout:
        """The mount's layout, with the windows that are windows here, without its policy."""
        region = self._regions[index]
        layout = region.layout
        perm = "r" if "read" in layout.flags else "-"
        fixed = self._directory.read_only or index == ROM_INDEX
        perm += "w" if "write" in layout.flags and not fixed else "-"
        segments = [_through_file(segment, perm) for segment in layout.segments]
        windows = (
            replace(part, access="mmap", reason=REASON_NONE)
            for window in region.windows
            for part in clip(layout.windows, Range(window.offset, window.offset + window.size))
            if part.start == window.offset and part.size == window.size
        )
        return replace(layout, segments=tuple(overlay(itertools.chain(segments, windows))))

    def region_fd(self, index: int) -> int | NoDescriptor:
        return self._regions[index].memory

    @property
    def accessor(self) -> Self:
        return self

    def read(self, region: int, offset: int, width: int) -> bytes:
        """One request of the region's file. Raises AccessError."""
        try:
            data = os.pread(self._regions[region].fd, width, offset)
        except OSError as error:
            raise self._failed(error, region, offset, width) from error
        if len(data) != width:
            raise BusFault(region=region_name(region), offset=offset, width=width)
        return data

    def write(self, region: int, offset: int, data: bytes) -> None:
        """One request of the region's file. Raises AccessError."""
        place, width = self._regions[region], len(data)
        if not place.writable:
            raise AccessDenied(region=region_name(region), offset=offset, width=width)
        try:
            done = os.pwrite(place.fd, data, offset)
        except OSError as error:
            raise self._failed(error, region, offset, width) from error
        if done != width:
            raise BusFault(region=region_name(region), offset=offset, width=width)

    def _failed(self, error: OSError, region: int, offset: int, width: int) -> Exception:
        number = error.errno or errno.EIO
        if number in _GONE:
            number = DeviceGone.errno
            with contextlib.suppress(OSError):
                os.eventfd_write(self._lost, 1)
        return access_error(number, region=region_name(region), offset=offset, width=width)

    def attributes(self) -> Mapping[str, str]:
        """The mount's texts, as they are."""
        return dict(self._texts(os.listdir(self._directory.path)))

    def _texts(self, names: Iterable[str]) -> Iterable[tuple[str, str]]:
        regions = {region_name(index) for index in self._regions}
        for name in names:
            path = self._directory.path / name
            if name in (*regions, *HOST_FILES) or name.endswith(".layout") or path.is_symlink():
                continue
            with contextlib.suppress(OSError), path.open("rb") as file:  # a directory is none
                yield name, os.fsdecode(file.read(_LONGEST_TEXT))

    def links(self) -> Mapping[str, str]:
        """The mount's, by the last names of their targets (`barfs.fuse.tree`)."""
        links = [path for path in self._directory.path.iterdir() if path.is_symlink()]
        return {path.name: "/".join(path.readlink().parts[-2:]) for path in links}

    def host_files(self) -> Mapping[str, HostFile]:
        """The mount's."""
        found = {}
        for name in HOST_FILES:
            with contextlib.suppress(OSError):
                path = self._directory.path / name
                found[name] = HostFile(path, path.stat().st_size)
        return found

    def slot(self) -> None:
        """The mount shows it to lspci, which asks no other."""

    def signals(self) -> tuple[Signal, ...]:
        """The end of the connection, and a request that found the device or the mount gone."""
        if not self._fds:
            return ()
        lost = Signal("lost", self._lost, select.POLLIN)
        connection = self.connection
        number = -1 if connection is None else connection.fileno()
        return (lost,) if number < 0 else (Signal("requested", number, select.POLLRDHUP), lost)

    def reset(self) -> None:
        raise DeviceError(f"{self.source} belongs to a mount; only its own process could reset it")

    def close(self) -> None:
        if not self._owner.is_here:
            return
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)
        connection, self.connection = self.connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # for the thread of `departure`
            connection.close()

    def descriptors(self) -> tuple[int, ...]:
        connection = self.connection
        return (*self._fds, *(() if connection is None else (connection.fileno(),)))


def _through_file(segment: Segment, perm: str) -> Segment:
    """A segment of the mount as this process accesses it without windows and without a policy."""
    if segment.reason == REASON_POLICY:
        return replace(segment, access="pread", perm=perm, reason=REASON_NONE)
    if segment.access == "mmap":
        return replace(segment, access="pread", reason=REASON_MAPPING_OFF)
    return segment
