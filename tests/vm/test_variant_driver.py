# SPDX-License-Identifier: MIT
"""The variant driver does what its parameters say, and QEMU's devices behave as the tests expect.

This module does not use barfs: it checks the facts on which the other tests of this directory rely.
"""

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from tests.support.guest import (
    DEVICES,
    HostSharedMemory,
    bound,
    find,
    find_all,
    iommu_group,
    set_areas,
    sparse,
)

from .vfio import (
    CAPS,
    MMAP,
    MSIX_MAPPABLE,
    READ,
    SPARSE_MMAP,
    WRITE,
    mapped,
    opened,
    region_info,
)

MIB = 1 << 20
PAGE = 0x1000
EDU_ID = 0x010000ED

LAYOUTS = {
    "one": [(0, PAGE)],
    "three": [(0, PAGE), (0x3000, PAGE), (0x10000, 0x10000)],
    "adjacent": [(0, PAGE), (PAGE, PAGE)],
    "not page-aligned": [(0x800, 0x1000)],
    "empty": [],
    "leaves the BAR": [(MIB - PAGE, 2 * PAGE)],
    "overlapping": [(0, 0x3000), (0x2000, 0x3000)],
    "out of order": [(0x3000, PAGE), (0, PAGE)],
    "wraps around": [(PAGE, 2**64 - 1)],
}


def refused() -> AbstractContextManager[object]:
    """Expect the kernel's EINVAL."""
    return pytest.raises(OSError, match=rf"^\[Errno {errno.EINVAL}\]")


@pytest.fixture
def edu() -> Iterator[int]:
    """The descriptor of edu, held by plain vfio-pci."""
    with bound("edu") as bdf, opened(bdf) as device:
        yield device


@pytest.mark.parametrize("areas", LAYOUTS.values(), ids=LAYOUTS)
def test_areas_are_reported_as_given(areas: list[tuple[int, int]]) -> None:
    with sparse("edu", areas) as bdf, opened(bdf) as device:
        info = region_info(device, 0)
        assert info.areas == areas
        assert info.flags == READ | WRITE | MMAP | CAPS
        assert info.size == MIB


def test_none_means_no_capability() -> None:
    with sparse("edu", None) as bdf, opened(bdf) as device:
        info = region_info(device, 0)
        assert info.areas is None
        assert info.flags == READ | WRITE | MMAP
        with mapped(device, info, 0, MIB):
            pass


def test_each_device_keeps_the_layout_it_was_bound_with() -> None:
    with sparse("edu", [(0, PAGE)]) as first, sparse("edu", [(0x2000, PAGE)], number=1) as second:
        set_areas([])
        for bdf, areas in ((first, [(0, PAGE)]), (second, [(0x2000, PAGE)])):
            with opened(bdf) as device:
                assert region_info(device, 0).areas == areas


def test_groups() -> None:
    *alone, first, second = find_all("edu")
    alone += [find(name) for name in DEVICES if name != "edu"]
    groups = [iommu_group(bdf) for bdf in (*alone, first)]
    assert len(set(groups)) == len(groups)
    assert iommu_group(first) == iommu_group(second)


def test_malformed_areas_are_refused() -> None:
    with sparse("edu", [(0, PAGE)]):
        parameter = "/sys/module/sparse_vfio_pci/parameters/areas"
        for text in ("0x1000", "0:0x1000,", "a:b"):
            with refused(), open(parameter, "w") as file:
                file.write(text)
        with open(parameter) as file:
            assert file.read() == "0x0:0x1000\n"


def test_other_regions_are_the_cores() -> None:
    with sparse("edu", [(0, PAGE)], bar=1) as bdf, opened(bdf) as device:
        assert region_info(device, 0).areas is None
        assert region_info(device, 1).size == 0


def test_too_little_room_is_told_by_argsz() -> None:
    with sparse("edu", [(0, PAGE), (0x2000, PAGE)]) as bdf, opened(bdf) as device:
        info = region_info(device, 0, argsz=32)
        assert (info.argsz, info.cap_offset) == (32 + 16 + 2 * 16, 0)
        assert info.flags & CAPS


@pytest.mark.parametrize(
    ("areas", "start", "size", "allowed"),
    [
        ([(0, PAGE)], 0, PAGE, True),
        ([(0, PAGE)], PAGE, PAGE, False),
        ([(0, PAGE)], 0, 2 * PAGE, False),
        ([(0, PAGE), (PAGE, PAGE)], 0, PAGE, True),
        ([(0, PAGE), (PAGE, PAGE)], PAGE, PAGE, True),
        ([(0, PAGE), (PAGE, PAGE)], 0, 2 * PAGE, False),
        ([(0, 0x3000), (0x2000, 0x3000)], 0x2000, 0x3000, True),
        ([(0, 0x3000), (0x2000, 0x3000)], 0, 0x5000, False),
        ([(0x800, 0x1000)], 0, PAGE, False),
        ([(0x800, 0x1800)], PAGE, PAGE, True),
        ([], 0, PAGE, False),
        ([(MIB - PAGE, 2 * PAGE)], MIB - PAGE, PAGE, True),
        ([(MIB - PAGE, 2 * PAGE)], MIB - PAGE, 2 * PAGE, False),
    ],
)
def test_mmap_is_refused_where_it_leaves_an_area(
    areas: list[tuple[int, int]], start: int, size: int, allowed: bool
) -> None:
    with sparse("edu", areas) as bdf, opened(bdf) as device:
        info = region_info(device, 0)
        if allowed:
            with mapped(device, info, start, size):
                return
        with refused(), mapped(device, info, start, size):
            pass


def test_edu_answers_by_width(edu: int) -> None:
    info = region_info(edu, 0)
    assert struct.unpack("<I", os.pread(edu, 4, info.offset)) == (EDU_ID,)
    assert os.pread(edu, 2, info.offset) == bytes(2)
    assert os.pread(edu, 1, info.offset) == bytes(1)
    os.pwrite(edu, struct.pack("<I", 0x12345678), info.offset + 4)
    assert struct.unpack("<I", os.pread(edu, 4, info.offset + 4)) == (0xFFFFFFFF ^ 0x12345678,)
    with mapped(edu, info, 0, PAGE) as window, memoryview(window) as view:
        assert view[:4].cast("I")[0] == EDU_ID
        assert view[:8].cast("Q")[0] == 2**64 - 1


def test_ivshmem_is_the_hosts_memory(host_shared_memory: HostSharedMemory) -> None:
    with bound("ivshmem") as bdf, opened(bdf) as device:
        info = region_info(device, 2)
        assert info.size == host_shared_memory.size >= 4 * MIB
        with mapped(device, info, 0, info.size) as window:
            window[-8:] = b"by guest"
            assert host_shared_memory.read(info.size - 8, 8) == b"by guest"
            host_shared_memory.write(0, b"by host")
            assert window[:7] == b"by host"
            host_shared_memory.write(0, b"again!!")
            assert window[:7] == b"again!!"


def test_nvme_has_its_msix_table_in_bar0() -> None:
    with bound("nvme") as bdf, opened(bdf) as device:
        info = region_info(device, 0)
        assert MSIX_MAPPABLE in info.capabilities
        assert SPARSE_MMAP not in info.capabilities
        assert os.pread(device, 4, info.offset + 0x2000) == b"\xff" * 4
        with mapped(device, info, 0x2000, PAGE) as table, memoryview(table) as view:
            assert list(view[:16].cast("I")) == [0, 0, 0, 1]


def test_the_variant_driver_keeps_msix_mappable() -> None:
    with sparse("nvme", [(0, PAGE)]) as bdf, opened(bdf) as device:
        info = region_info(device, 0)
        assert info.capabilities == [SPARSE_MMAP, MSIX_MAPPABLE]


def test_testdev_has_an_io_bar() -> None:
    with bound("testdev") as bdf, opened(bdf) as device:
        info = region_info(device, 1)
        assert info.size == 0x100
        assert info.flags == READ | WRITE
