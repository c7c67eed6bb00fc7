# SPDX-License-Identifier: MIT
"""A mount of the guest's devices, and the few ways in which the tests look at its files."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tests import support
from tests.support import Mounted, ended

PAGE = 0x1000
MIB = 1 << 20


@contextlib.contextmanager
def mounted(folder: Path, *devices: str, options: str = "") -> Iterator[Mounted]:
    """As tests.support.mounted, but ended by a signal: `barfs umount` takes 5 s to start here."""
    with support.mounted(folder, *devices, options=options) as mount:
        try:
            yield mount
        finally:
            mount.process.terminate()
            ended(mount.process)


def read(region: Path, offset: int, count: int) -> bytes:
    """One pread of a region file."""
    fd = os.open(region, os.O_RDONLY)
    try:
        return os.pread(fd, count, offset)
    finally:
        os.close(fd)


def write(region: Path, offset: int, data: bytes) -> int:
    """One pwrite to a region file."""
    fd = os.open(region, os.O_WRONLY)
    try:
        return os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


def word(value: int) -> bytes:
    """The bytes of a 32-bit register."""
    return value.to_bytes(4, "little")


def layout_text(region: Path) -> str:
    return region.with_name(f"{region.name}.layout").read_text()


def layout_rows(region: Path) -> list[tuple[int, int, str, str]]:
    """(start, end, access, reason) of each segment that the region's layout file lists."""
    lines = [line.split() for line in layout_text(region).splitlines() if line.startswith("0x")]
    return [
        (int(start, 16), int(end, 16), access, reason)
        for start, end, _, access, _, _, reason in lines
    ]
