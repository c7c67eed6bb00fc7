# SPDX-License-Identifier: MIT
"""VFIO by hand: what the tests use to see the kernel's side without barfs in between."""

import array
import contextlib
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.guest import iommu_group

GET_REGION_INFO = 0x3B6C

READ, WRITE, MMAP, CAPS = 1, 2, 4, 8
SPARSE_MMAP, MSIX_MAPPABLE = 1, 3

_SET_IOMMU = 0x3B66
_GROUP_SET_CONTAINER = 0x3B68
_GROUP_GET_DEVICE_FD = 0x3B6A
_TYPE1V2_IOMMU = 3


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """A vfio_region_info; `areas` is None where there is no sparse capability."""

    argsz: int
    flags: int
    cap_offset: int
    size: int
    offset: int
    areas: list[tuple[int, int]] | None
    capabilities: list[int]


@contextlib.contextmanager
def opened(bdf: str) -> Iterator[int]:
    """Open the device through its group and yield the device's descriptor."""
    with contextlib.ExitStack() as stack:

        def keep(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        container = keep(os.open("/dev/vfio/vfio", os.O_RDWR | os.O_CLOEXEC))
        group_fd = keep(os.open(f"/dev/vfio/{iommu_group(bdf)}", os.O_RDWR | os.O_CLOEXEC))
        fcntl.ioctl(group_fd, _GROUP_SET_CONTAINER, array.array("i", [container]))
        fcntl.ioctl(container, _SET_IOMMU, _TYPE1V2_IOMMU)
        yield keep(fcntl.ioctl(group_fd, _GROUP_GET_DEVICE_FD, bytearray(bdf.encode() + b"\0")))


def region_info(device: int, index: int, argsz: int = 4096) -> RegionInfo:
    """Ask for region `index` with `argsz` bytes of room and decode what came."""
    buffer = bytearray(max(argsz, 32))
    struct.pack_into("=III", buffer, 0, argsz, 0, index)
    fcntl.ioctl(device, GET_REGION_INFO, buffer)
    needed, flags, _, cap_offset, size, offset = struct.unpack_from("=IIIIQQ", buffer)
    areas = None
    capabilities = []
    at = cap_offset
    while at:
        identity, _, following = struct.unpack_from("=HHI", buffer, at)
        capabilities.append(identity)
        if identity == SPARSE_MMAP:
            (count,) = struct.unpack_from("=I", buffer, at + 8)
            flat = struct.unpack_from(f"={2 * count}Q", buffer, at + 16)
            areas = list(zip(flat[::2], flat[1::2], strict=True))
        at = following
    return RegionInfo(needed, flags, cap_offset, size, offset, areas, capabilities)


@contextlib.contextmanager
def mapped(device: int, info: RegionInfo, start: int, size: int) -> Iterator[mmap.mmap]:
    """Map [start, start + size) of a region; OSError when the driver refuses."""
    with mmap.mmap(device, size, mmap.MAP_SHARED, offset=info.offset + start) as mapping:
        yield mapping
