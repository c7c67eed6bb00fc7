# SPDX-License-Identifier: MIT
"""`barfs.open` on kernel VFIO: accesses by width, addresses, and what stands in the way."""

import contextlib
import ctypes
import os
from collections.abc import Iterator

import pytest

import barfs
from barfs import engine
from barfs.device import MappingMode
from tests.support.forks import fork, in_child
from tests.support.guest import bind, bound, driver, sparse

from .mounts import PAGE
from .vfio import opened, region_info

IDENTITY = 0x010000ED


def test_accesses_by_width() -> None:
    with sparse("edu", [(0, PAGE)]) as bdf, barfs.open(bdf) as device:
        bar0 = device["bar0"]
        assert bar0.read32(0) == IDENTITY
        assert bar0.read64(0) == 2**64 - 1
        bar0.write32(4, 0xFFFF0000)
        assert bar0.read32(4) == 0x0000FFFF
        with pytest.raises(barfs.InvalidAccess):
            bar0.read64(PAGE)
        with pytest.raises(barfs.InvalidAccess):
            bar0.read32(2)


def test_the_address_of_a_contiguous_mapping() -> None:
    areas = [(0, PAGE), (0x8000, PAGE)]
    with sparse("edu", areas) as bdf, barfs.open(bdf, mapping="contiguous") as device:
        address = device["bar0"].address
        assert ctypes.c_uint32.from_address(address).value == IDENTITY
        assert ctypes.c_uint32.from_address(address + 0x8000).value == 0xFFFFFFFF


@pytest.mark.parametrize("mapping", ["separate", "contiguous"])
def test_adjacent_areas_are_mapped_one_by_one(mapping: MappingMode) -> None:
    """The driver refuses an mmap of both; a request may all the same be about both."""
    areas = ((0x1000, 0x1000), (0x2000, 0x2000))
    with (
        sparse("ivshmem", areas, bar=2) as bdf,
        barfs.open(bdf, mapping=mapping, width=8) as device,
    ):
        bar2 = device["bar2"]
        (window,) = bar2.layout.windows
        assert (window.start, window.end, window.reason) == (0x1000, 0x4000, "-")
        assert bar2.write(0x1FF4, b"end, beginning") == 14
        assert bar2.read(0x1FF4, 14) == b"end, beginning"
        bar2.write64(0x2000, 0x1122334455667788)
        if mapping == "contiguous":
            both = ctypes.c_uint64.from_address(bar2.address + 0x2000)
            assert both.value == 0x1122334455667788


def test_a_mapping_that_the_driver_refuses_leaves_no_hole_in_the_reservation() -> None:
    with sparse("edu", [(0, PAGE)]) as bdf, opened(bdf) as fd:
        reservation = engine.Reservation(3 * PAGE)
        with pytest.raises(OSError, match="Invalid argument"):
            engine.Mapping(fd, region_info(fd, 0).offset + PAGE, PAGE, within=reservation, at=PAGE)
        pages = (ctypes.c_char * 3)()  # mincore: ENOMEM where nothing is mapped
        libc = ctypes.CDLL(None, use_errno=True)
        where = ctypes.c_void_p(reservation.address)
        assert libc.mincore(where, ctypes.c_size_t(3 * PAGE), pages) == 0
        reservation.close()


def test_memory_decode_off_is_a_bus_fault() -> None:
    with bound("edu") as bdf, barfs.open(bdf) as device:
        command = device["config"].read16(4)
        device["config"].write16(4, command & ~2)
        with pytest.raises(barfs.BusFault) as caught:
            device["bar0"].read32(4)
        assert (caught.value.region, caught.value.offset, caught.value.width) == ("bar0", 4, 4)
        device["config"].write16(4, command | 2)
        assert device["bar0"].read32(0) == IDENTITY


def test_a_child_that_is_forked() -> None:
    """It is refused, resets nothing, and does not keep the kernel from getting the device back."""
    with bound("edu") as bdf:
        device = barfs.open(bdf)
        bar0 = device["bar0"]

        def refused() -> list[int]:
            found = []
            for offset in (0, 4):
                try:
                    bar0.read32(offset)
                except barfs.ForkedAccess as error:
                    found.append(error.offset)
            device.close()
            return found

        bar0.write32(4, 0xFFFF0000)
        assert in_child(refused) == [0, 4]
        assert bar0.read32(4) == 0x0000FFFF
        reading, writing = os.pipe()
        child = fork()
        if child == 0:
            os.close(writing)
            os._exit(len(os.read(reading, 1)))  # once the parent closes its end
        try:
            assert device.close()
            with barfs.open(bdf) as again:
                assert again["bar0"].read32(0) == IDENTITY
        finally:
            os.close(reading)
            os.close(writing)
            assert os.waitpid(child, 0)[1] == 0


def test_opened_elsewhere() -> None:
    with (
        bound("edu") as bdf,
        opened(bdf),
        pytest.raises(barfs.DeviceError, match="in use by another process"),
    ):
        barfs.open(bdf)


@pytest.mark.parametrize("holder", [None, "nvme"])
def test_not_bound_to_vfio(holder: str | None) -> None:
    with bound("nvme", holder) as bdf, pytest.raises(barfs.DeviceError) as caught:
        barfs.open(bdf)
    text = str(caught.value)
    assert ("has no driver" if holder is None else "is bound to nvme") in text
    assert text.endswith(f"; barfs bind {bdf}")
    assert "\n" not in text


@contextlib.contextmanager
def taken_from(bdf: str) -> Iterator[None]:
    before = driver(bdf)
    bind(bdf, "vfio-pci")
    try:
        yield
    finally:
        bind(bdf, before)


def test_a_group_with_another_driver_in_it() -> None:
    # The functions of q35's LPC bridge share a group.
    with (
        taken_from("0000:00:1f.3"),
        pytest.raises(barfs.DeviceError, match="is not viable") as error,
    ):
        barfs.open("0000:00:1f.3")
    assert "0000:00:1f.2 is bound to ahci" in str(error.value)


def test_no_such_device() -> None:
    with pytest.raises(barfs.DeviceError, match="no such PCI device"):
        barfs.open("0000:3f:00.0")
