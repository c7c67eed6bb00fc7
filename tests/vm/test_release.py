# SPDX-License-Identifier: MIT
"""A device belongs to its mount until the unmount, or until the kernel asks for it."""

import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from barfs import DeviceError
from barfs import open as open_device
from tests.support import Mounted, barfs, wait_until
from tests.support.guest import (
    VFIO_PCI,
    bind,
    bound,
    driver,
    find_all,
    mount_options,
    rescan,
    vfio_path,
)

from .mounts import layout_text, mounted, read, word

IDENTITY = word(0x010000ED)
RELEASE_LIMIT = 2.0
"""Seconds in which the kernel has a device back that it asked for."""


def test_unmount_gives_the_device_back(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    with bound("edu") as bdf:
        assert barfs("mount", "-o", mount_options(), bdf, first).returncode == 0
        try:
            assert read(first / "bus" / bdf / "bar0", 0, 4) == IDENTITY
            with pytest.raises(DeviceError, match="in use by another process"):
                open_device(bdf, vfio=vfio_path())
        finally:
            assert barfs("umount", first).returncode == 0
        # The kernel unbinds a device from its driver only once no process has it open.
        bind(bdf, None)
        bind(bdf, VFIO_PCI)

        with mounted(tmp_path, bdf, options=mount_options("ro")) as mount:
            bar0 = mount.device(bdf) / "bar0"
            assert read(bar0, 0, 4) == IDENTITY
            assert stat.S_IMODE(bar0.stat().st_mode) == 0o400
            assert " mmap   r-   8 " in layout_text(bar0)
            with pytest.raises(OSError, match="Read-only file system"):
                os.open(bar0, os.O_WRONLY)


@dataclass
class Reader:
    """A thread that reads one register of an open file until an error ends it."""

    fd: int
    count: int
    thread: threading.Thread = field(init=False)
    reads: int = 0
    error: int | None = None

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        try:
            while os.pread(self.fd, self.count, 0):
                self.reads += 1
        except OSError as error:
            self.error = error.errno


@contextlib.contextmanager
def readers(file: Path, counts: list[int]) -> Iterator[list[Reader]]:
    """Readers of a file, one for each count of bytes, all of them under way."""
    with contextlib.ExitStack() as stack:
        found = []
        for count in counts:
            fd = os.open(file, os.O_RDONLY)
            stack.callback(os.close, fd)
            found.append(Reader(fd, count))
        wait_until(lambda: all(reader.reads for reader in found), "every reader")
        yield found
        for reader in found:
            reader.thread.join(10)
            assert not reader.thread.is_alive()


def take(what: Callable[[], object]) -> float:
    """Let the kernel take a device in a thread of its own; returns how many seconds it took."""
    start = time.monotonic()
    thread = threading.Thread(target=what, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "the kernel still waits for the device"
    return time.monotonic() - start


@contextlib.contextmanager
def two_edus(folder: Path) -> Iterator[tuple[Mounted, str, str]]:
    first, second, *_ = find_all("edu")
    with mounted(folder, first, second, options=mount_options()) as mount:
        try:
            yield mount, first, second
        finally:
            rescan()
            bind(first, VFIO_PCI)


def unbind(bdf: str) -> None:
    bind(bdf, None)


def remove(bdf: str) -> None:
    Path("/sys/bus/pci/devices", bdf, "remove").write_text("1")


@pytest.mark.parametrize("way", [unbind, remove])
def test_the_kernel_takes_a_device_that_eight_readers_hammer(
    tmp_path: Path, way: Callable[[str], None]
) -> None:
    with two_edus(tmp_path) as (mount, taken, other):
        bar0 = mount.device(taken) / "bar0"
        assert (bar0.parent / "vendor").read_text() == "0x1234\n"
        # Short reads, and long ones that are under way when the kernel asks.
        with readers(bar0, [4] * 4 + [0x1000] * 3 + [0x100000]) as hammering:
            took = take(lambda: way(taken))
        print(f"{way.__name__}: {took:.2f} s, {sum(reader.reads for reader in hammering)} reads")
        assert took < RELEASE_LIMIT
        assert {reader.error for reader in hammering} == {errno.ENODEV}
        assert_gone(mount, bar0, other)
        assert read(mount.device(other) / "bar0", 0, 4) == IDENTITY
        assert "Traceback" not in mount.log.read_text()


def assert_gone(mount: Mounted, bar0: Path, *others: str) -> None:
    """Its names are gone, and nothing of it is listed."""
    wait_until(lambda: sorted(os.listdir(mount.path / "bus")) == sorted(others), "the listing")
    wait_until(lambda: not bar0.exists(), "the names to go")
    assert not bar0.parent.exists()
    for name in others:
        assert name in (mount.path / ".barfs").read_text()
    assert bar0.parent.name not in (mount.path / ".barfs").read_text()


def test_a_device_that_was_taken_can_be_mounted_again(tmp_path: Path) -> None:
    with two_edus(tmp_path) as (mount, taken, other):
        held = os.open(mount.device(taken) / "bar0", os.O_RDONLY)
        try:
            assert take(lambda: unbind(taken)) < RELEASE_LIMIT
            assert driver(taken) is None
            bind(taken, VFIO_PCI)
            again = tmp_path / "again"
            again.mkdir()
            with mounted(again, taken, options=mount_options()) as second:
                assert read(second.device(taken) / "bar0", 0, 4) == IDENTITY
                with pytest.raises(OSError, match="No such device"):
                    os.pread(held, 4, 0)
            assert read(mount.device(other) / "bar0", 0, 4) == IDENTITY
        finally:
            os.close(held)


def test_a_device_open_in_python_is_gone_when_the_kernel_asks_for_it() -> None:
    with bound("edu") as bdf:
        device = open_device(bdf, vfio=vfio_path())
        assert not device.gone
        unbinding = threading.Thread(target=unbind, args=(bdf,), daemon=True)
        unbinding.start()
        wait_until(lambda: device.gone, "the request")
        assert unbinding.is_alive()
        device.close()
        unbinding.join(RELEASE_LIMIT)
        assert not unbinding.is_alive()
