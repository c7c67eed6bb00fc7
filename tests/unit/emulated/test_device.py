# SPDX-License-Identifier: MIT
"""The software device: its memory, its record of accesses, and what may be attached to it."""

import contextlib
import os
from collections.abc import Iterator

import pytest

from barfs.emulated.demo import demo_device
from barfs.emulated.device import SoftwareDevice
from barfs.emulated.spec import DescriptionError
from barfs.errors import InvalidAccess
from barfs.pci import CONFIG_INDEX

BAR0, BAR1, BAR2, BAR4 = 0, 1, 2, 4


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def device(log: list[str]) -> Iterator[SoftwareDevice]:
    with contextlib.closing(demo_device(log.append)) as made:
        yield made


def memory_of(device: SoftwareDevice, region: int) -> int:
    fd = device.region_fd(region)
    assert fd is not None
    return fd


def test_the_record_has_each_access(device: SoftwareDevice, log: list[str]) -> None:
    device.read(BAR0, 0, 4)
    device.write(BAR0, 4, b"\x2a\0")
    device.read(BAR2, 0, 8)
    with pytest.raises(InvalidAccess, match="bar4"):
        device.read(BAR4, 1, 4)
    device.read(BAR2, 0, 16)
    device.read(CONFIG_INDEX, 0, 2)
    assert log == [
        "r bar0 0x0 4 0x66726162",
        "w bar0 0x4 2 0x002a",
        f"r bar2 0x0 8 0x{b'One mega'[::-1].hex()}",
        "r bar4 0x1 4 -",
        "r bar2 0x0 16 -",
        "r config 0x0 2 0x1234",
    ]


def test_reset_restores_memory(device: SoftwareDevice) -> None:
    device.write(BAR2, 0, b"gone")
    device.write(BAR2, 0x8000, b"gone")
    device.reset()
    assert device.read(BAR2, 0, 4) == b"One "
    assert device.read(BAR2, 0x8000, 4) == bytes(4)
    assert device.read(BAR0, 0x200C, 4) == b"\1\0\0\0"


def test_the_memory_of_windows_cannot_be_truncated(device: SoftwareDevice) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(memory_of(device, BAR2), 0)
    device.reset()


def test_memory_that_is_not_sealed_can_be_truncated() -> None:
    with contextlib.closing(demo_device(sealed=False)) as device:
        os.ftruncate(memory_of(device, BAR2), 0)


class Nothing:
    """A behaviour that reads as 0."""

    def read(self, offset: int, width: int) -> int:
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        pass

    def reset(self) -> None:
        pass


@pytest.mark.parametrize(
    ("region", "start", "end", "problem"),
    [
        (BAR1, 0, 4, "must lie in a region other than config"),
        (CONFIG_INDEX, 0, 4, "must lie in a region other than config"),
        (BAR0, 0x4000, 0x4000, "must lie in a region other than config"),
        (BAR0, 0xFFFC, 0x10004, "must lie in a region other than config"),
        (BAR0, 0xFFC, 0x1004, "0xffc..0x1004 of bar0 already has a behaviour"),
    ],
)
def test_a_behaviour_has_a_range_of_its_own(
    device: SoftwareDevice, region: int, start: int, end: int, problem: str
) -> None:
    with pytest.raises(DescriptionError, match=problem):
        device.attach(region, start, end, Nothing())
    device.attach(BAR0, 0x1000, 0x1004, Nothing())
    assert device.read(BAR0, 0x1000, 4) == bytes(4)
