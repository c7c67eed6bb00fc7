# SPDX-License-Identifier: MIT
"""Memory decode switched off under a mount's feet: EIO for as long, and never a dead daemon."""

import errno
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.support.guest import bound, sparse

from .mounts import PAGE, layout_rows, mounted, read, word, write

COMMAND = 4
MEMORY_DECODE = 0x2
IDENTITY = word(0x010000ED)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """The directories of edu, with a window and a gap, and of a device beside it."""
    with (
        sparse("edu", [(0, PAGE)]) as edu,
        bound("ivshmem") as ivshmem,
        mounted(tmp_path, edu, ivshmem) as mount,
    ):
        yield mount.device(edu), mount.device(ivshmem)
        assert mount.process.poll() is None


def failing() -> AbstractContextManager[object]:
    return pytest.raises(OSError, match=rf"^\[Errno {errno.EIO}\]")


def set_decode(config: Path, on: bool) -> None:
    command = int.from_bytes(read(config, COMMAND, 2), "little")
    command = command | MEMORY_DECODE if on else command & ~MEMORY_DECODE
    write(config, COMMAND, command.to_bytes(2, "little"))
    assert read(config, COMMAND, 2) == command.to_bytes(2, "little")


def test_decode_off_and_on_again(device: tuple[Path, Path]) -> None:
    edu, ivshmem = device
    bar0, config = edu / "bar0", edu / "config"
    assert [access for _, _, access, _ in layout_rows(bar0)] == ["mmap", "pread"]
    for _ in range(3):
        assert read(bar0, 0, 4) == IDENTITY
        set_decode(config, on=False)
        for offset, size in ((0, 4), (0, 1), (0, 64), (PAGE, 4), (PAGE - 4, 8)):
            with failing():
                read(bar0, offset, size)
            with failing():
                write(bar0, offset, bytes(size))
        assert len(read(ivshmem / "bar2", 0, 4)) == 4
        set_decode(config, on=True)
    assert read(bar0, 0, 4) == IDENTITY
    write(bar0, 4, word(0x55AA55AA))
    assert read(bar0, 4, 4) == word(0xAA55AA55)
