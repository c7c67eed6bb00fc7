# SPDX-License-Identifier: MIT
"""The registers by name of a device that is mounted, by the descriptions that are in force there.

Rule 1: values are read through the regions' files, one access each: what the mount was made with
        holds. A mount cuts a request that its place does not take, so what is not one access by the
        layout is refused before it. Nothing is written through them: the files of registers are,
        whose writers lose nothing to each other.
"""

import contextlib
import errno
import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from barfs.attached.mounts import MountError, MountInfo, layouts_in
from barfs.errors import DeviceGone, InvalidAccess, UsageError, access_error
from barfs.layout import Layout, Segment
from barfs.ranges import Range, clip
from barfs.registers.access import DeviceRegisters, bind
from barfs.registers.find import Choice, parse_choice
from barfs.text.system_errors import reason
from barfs.widths import in_words

_IDS = ("vendor", "device", "subsystem_vendor", "subsystem_device", "class")
_GONE = (errno.ENODEV, errno.ENXIO, errno.ENOENT, errno.ENOTCONN, errno.ECONNABORTED)
"""A device that left, a mount that ended."""


class MountedRegion:
    """A region's file in a mount, as `barfs.registers.access` wants regions."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.name = path.name
        self.size = layout.size
        self._layout = layout
        self._path = path
        self._stack = contextlib.ExitStack()

    @functools.cached_property
    def _fd(self) -> int:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in _GONE:
                raise DeviceGone(region=self.name) from error
            raise MountError(f"{self._path}: {reason(error)}") from error
        self._stack.callback(os.close, fd)
        return fd

    def close(self) -> None:
        self._stack.close()

    def read8(self, offset: int) -> int:
        return self._read(offset, 1)

    def read16(self, offset: int) -> int:
        return self._read(offset, 2)

    def read32(self, offset: int) -> int:
        return self._read(offset, 4)

    def read64(self, offset: int) -> int:
        return self._read(offset, 8)

    def _read(self, offset: int, width: int) -> int:
        self.check_single(offset, width)
        try:
            data = os.pread(self._fd, width, offset)
        except OSError as error:
            number = errno.ENODEV if error.errno in _GONE else error.errno or errno.EIO
            raise access_error(number, region=self.name, offset=offset, width=width) from error
        if len(data) != width:
            raise access_error(errno.EIO, region=self.name, offset=offset, width=width)
        return int.from_bytes(data, "little")

    def check_single(self, offset: int, width: int) -> None:
        """Raises InvalidAccess for an access that the mount would cut, or refuse for its width."""
        places = list(clip(self._layout.segments, Range(offset, offset + width)))
        problem = _width_problem(places, width)
        # What a policy takes away is the mount's to refuse, with its own reason.
        kinds = {(place.access, place.widths) for place in places if place.access != "none"}
        if problem or offset % width or len(kinds) > 1:
            raise InvalidAccess(problem, region=self.name, offset=offset, width=width)

    def _refuse(self, offset: int, value: int) -> None:
        raise AssertionError("the files of registers are written")

    write8 = write16 = write32 = write64 = _refuse


def _width_problem(places: Iterable[Segment], width: int) -> str:
    """Why an access of this width is not possible in these places, "" where it is."""
    for place in places:
        if not place.widths:
            return "this place takes no access of the widths that are allowed"
        if width not in place.widths:
            return f"this place takes accesses of {in_words(place.widths)} only"
    return ""


@contextlib.contextmanager
def mounted_registers(directory: Path, choice: Choice | None = None) -> Iterator[DeviceRegisters]:
    """The registers of the device whose directory it is; with a choice, by that.

    Raises UsageError for a directory that is no device's, MountError, DescriptionError.
    """
    info = MountInfo.read(directory.parent.parent) if len(directory.parts) > 2 else None
    if info is None or directory.name not in info.devices:
        raise UsageError(f"{directory} must be a device's directory in a mount, like .../bus/BDF")
    with contextlib.ExitStack() as stack:
        regions = {}
        for name, layout in layouts_in(directory).items():
            region = MountedRegion(directory / name, layout)
            stack.callback(region.close)
            regions[name] = region
        if choice is None:
            off = not (directory / "registers").is_dir()
            choice = parse_choice(["off"] if off else info.registers.get(directory.name, []))
        try:
            attributes = {name: (directory / name).read_text() for name in _IDS}
        except OSError as error:
            raise MountError(f"{directory}: {reason(error)}") from error
        yield bind(regions, attributes, choice, folders=())
