# SPDX-License-Identifier: MIT
"""Windows of kernel VFIO in other processes: `-o map`, `barfs.attach`, and a plain mmap."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import barfs
from tests.support import Mounted, ended, wait_until
from tests.support.guest import VFIO_PCI, HostSharedMemory, bind, bound, driver, find_all, rescan

from .mounts import PAGE, mounted, read, word, write

IDENTITY = 0x010000ED
COMMAND = 4
MEMORY_DECODE = 0x2

CLIENT = """
import mmap, os, socket, struct, sys
bar0 = sys.argv[1]
root = os.open(os.path.join(os.path.dirname(bar0), "../.."), os.O_PATH)
client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
client.connect(f"/proc/self/fd/{root}/.barfs-map")
client.send(struct.pack("=8sIIQ", b"barfsmap", 1, 0, os.stat(bar0).st_ino))
data, fds, _flags, _address = socket.recv_fds(client, 4096, 1)
start, size, offset, _number, _access = struct.unpack_from("=QQQII", data, 40)
memory = mmap.mmap(fds[0], size, offset=offset)
os.close(fds[0])
for line in sys.stdin:
    at = int(line, 0)
    print(hex(int.from_bytes(memory[at : at + 4], "little")), flush=True)
"""


class Client:
    """Another process that maps the first window of a region, and loads from it."""

    def __init__(self, region: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", CLIENT, str(region)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def load(self, offset: int) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{offset}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline(), 16)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def client_of(region: Path) -> Iterator[Client]:
    client = Client(region)
    try:
        yield client
    finally:
        client.end()


@contextlib.contextmanager
def mapped_edu(folder: Path) -> Iterator[tuple[Mounted, str, Path]]:
    first, second, *_ = find_all("edu")
    with mounted(folder, first, second, options="map") as mount:
        try:
            yield mount, first, mount.device(first)
        finally:
            rescan()
            bind(first, VFIO_PCI)


@contextlib.contextmanager
def unbinding(bdf: str) -> Iterator[threading.Thread]:
    """The kernel takes the device meanwhile."""
    thread = threading.Thread(target=bind, args=(bdf, None), daemon=True)
    thread.start()
    yield thread
    thread.join(30)
    assert not thread.is_alive(), "the kernel still waits for the device"


def test_values_of_edu_in_three_processes(tmp_path: Path) -> None:
    with (
        mapped_edu(tmp_path) as (_mount, _bdf, directory),
        barfs.attach(directory) as attached,
        client_of(directory / "bar0") as client,
    ):
        bar0 = attached["bar0"]
        assert [segment.access for segment in bar0.layout.segments] == ["mmap"]
        assert bar0.read32(0) == client.load(0) == IDENTITY
        bar0.write32(4, 0x00FF00FF)
        assert read(directory / "bar0", 4, 4) == word(0xFF00FF00)
        assert client.load(4) == 0xFF00FF00
        write(directory / "bar0", 4, word(0))
        assert bar0.read32(4) == client.load(4) == 0xFFFFFFFF
        assert bar0.read8(0) == 0, "edu's width oracle: no wider access was made"
        assert attached["config"].read16(0) == 0x1234
        assert attached.links["driver"] == "drivers/vfio-pci"
        with pytest.raises(barfs.DeviceError, match="belongs to a mount"):
            attached.reset()


def test_memory_that_the_host_shares(tmp_path: Path, host_shared_memory: HostSharedMemory) -> None:
    with (
        bound("ivshmem") as bdf,
        mounted(tmp_path, bdf, options="map") as mount,
        barfs.attach(mount.device(bdf)) as attached,
        client_of(mount.device(bdf) / "bar2") as client,
    ):
        bar2 = attached["bar2"]
        bar2.write32(0x100, 0xCAFEBABE)
        assert host_shared_memory.read(0x100, 4) == word(0xCAFEBABE)
        assert client.load(0x100) == 0xCAFEBABE
        host_shared_memory.write(0x3FF000, b"host")
        assert bar2.read(0x3FF000, 4) == b"host"
        write(mount.device(bdf) / "bar2", 0x200, b"mnt!")
        assert client.load(0x200) == int.from_bytes(b"mnt!", "little")
        data = os.urandom(0x10000)
        assert bar2.write(0x1003, data) == len(data)
        assert host_shared_memory.read(0x1003, len(data)) == data


def test_the_kernel_takes_a_device_that_a_process_maps(tmp_path: Path) -> None:
    """The log names the process; the kernel has the device once that has ended."""
    with (
        mapped_edu(tmp_path) as (mount, bdf, directory),
        client_of(directory / "bar0") as client,
    ):
        assert client.load(0) == IDENTITY
        with unbinding(bdf) as thread:
            named = f"{bdf} is still held by process {client.process.pid} (python"
            wait_until(lambda: named in mount.log.read_text(), "the name in the log")
            assert not directory.exists()
            assert f"{bdf} is released" in mount.log.read_text()
            assert thread.is_alive()
            assert client.load(0) == IDENTITY, "it still has it"
            client.end()
        assert driver(bdf) is None


def test_the_kernel_takes_a_device_from_an_attached_process(tmp_path: Path) -> None:
    """Which lets go of it by itself."""
    with (
        mapped_edu(tmp_path) as (mount, bdf, directory),
        barfs.attach(directory) as attached,
    ):
        bar0 = attached["bar0"]
        assert bar0.read32(0) == IDENTITY
        with unbinding(bdf):
            wait_until(lambda: attached.gone, "the news")
        assert driver(bdf) is None
        for offset in (0, PAGE):
            with pytest.raises(barfs.DeviceGone):
                bar0.read32(offset)
        assert "still held" not in mount.log.read_text()


def test_memory_decode_off(tmp_path: Path) -> None:
    with mapped_edu(tmp_path) as (_mount, _bdf, directory), barfs.attach(directory) as attached:
        bar0, config = attached["bar0"], attached["config"]
        for _ in range(3):
            assert bar0.read32(0) == IDENTITY
            command = config.read16(COMMAND)
            config.write16(COMMAND, command & ~MEMORY_DECODE)
            for attempt in (lambda: bar0.read32(0), lambda: bar0.write32(4, 1)):
                with pytest.raises(barfs.BusFault):
                    attempt()
            config.write16(COMMAND, command)
        assert bar0.read32(0) == IDENTITY


def test_a_mount_that_is_killed(tmp_path: Path) -> None:
    """Attached processes let go, and another mount gets the device."""
    again = tmp_path / "again"
    again.mkdir()
    with mapped_edu(tmp_path) as (mount, bdf, directory):
        attached = barfs.attach(directory)
        mount.process.kill()
        ended(mount.process)
        wait_until(lambda: attached.gone, "the news")
        with pytest.raises(barfs.DeviceGone):
            attached["bar0"].read32(0)
        attached.close()
        with mounted(again, bdf) as second:
            assert read(second.device(bdf) / "bar0", 0, 4) == word(IDENTITY)
        wait_until(lambda: not os.path.ismount(mount.path), "the helper to unmount")
