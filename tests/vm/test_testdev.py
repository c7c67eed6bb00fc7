# SPDX-License-Identifier: MIT
"""pci-testdev has an I/O-port BAR, and counts the accesses that reach it.

Writing the number of a test to its first byte starts that test: the header that then reads there
names an offset, a byte to write to it, and how often that byte has come (hw/misc/pci-testdev.c).
"""

import errno
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.guest import bound

from .mounts import layout_rows, mounted, read, write

PORTS = 0x100


@dataclass(frozen=True)
class Testdev:
    """The device's two BARs, of memory and of I/O ports."""

    memory: Path
    ports: Path

    __test__ = False  # no class of tests


@pytest.fixture(scope="module")
def testdev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testdev]:
    folder = tmp_path_factory.mktemp("testdev")
    with bound("testdev") as bdf, mounted(folder, bdf) as mount:
        yield Testdev(mount.device(bdf) / "bar0", mount.device(bdf) / "bar1")


def start(bar: Path) -> tuple[int, bytes]:
    """Start the device's first test; the offset and the byte that it counts."""
    write(bar, 0, b"\0")
    header = b"".join(read(bar, offset, 1) for offset in range(16))
    return int.from_bytes(header[4:8], "little"), header[8:9]


def count(bar: Path) -> int:
    return read(bar, 12, 1)[0]


def refused() -> AbstractContextManager[object]:
    return pytest.raises(OSError, match=rf"^\[Errno {errno.EINVAL}\]")


def test_ports_are_never_mapped(testdev: Testdev) -> None:
    assert layout_rows(testdev.ports) == [(0, PORTS, "pread", "no-mmap-flag")]


@pytest.mark.parametrize("bar", ["memory", "ports"])
def test_each_write_reaches_the_device_once(testdev: Testdev, bar: str) -> None:
    path = getattr(testdev, bar)
    offset, byte = start(path)
    for expected in (1, 2, 3):
        assert write(path, offset, byte) == 1
        assert count(path) == expected
    read(path, offset, 1)
    assert count(path) == 3


@pytest.mark.parametrize("width", [1, 2, 4])
def test_ports_take_one_aligned_access(testdev: Testdev, width: int) -> None:
    for offset in (0, 0x40, PORTS - width):
        assert len(read(testdev.ports, offset, width)) == width
    assert write(testdev.ports, 0x40, bytes(width)) == width


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 3), (0, 8), (0, 16), (1, 2), (2, 4), (PORTS - 2, 4), (PORTS, 4)]
)
def test_ports_refuse_everything_else(testdev: Testdev, offset: int, size: int) -> None:
    with refused():
        read(testdev.ports, offset, size)
    if offset < PORTS:
        _, byte = start(testdev.ports)
        with refused():
            write(testdev.ports, offset, byte * size)
        assert count(testdev.ports) == 0
