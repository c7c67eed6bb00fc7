# SPDX-License-Identifier: MIT
"""`-o reconnect`: a device whose server ends leaves, and comes back with the next server."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from barfs.attached.mounts import MountInfo
from tests.support import Mounted, Served, barfs, ended, mounted, served, wait_until

FIRST, SECOND = "ffff:00:00.0", "ffff:00:01.0"
SMALL = """
vendor = 0x1af4
device = 0x1000
class = 0xff0000
[[region]]
name = "bar0"
size = 0x2000
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts servers on the same socket, one after the other."""
    with contextlib.ExitStack() as servers:
        yield lambda *description: servers.enter_context(served(tmp_path, *description))


def end(server: Served) -> None:
    server.process.terminate()
    ended(server.process)


def there(mount: Mounted, bdf: str = FIRST) -> bool:
    return os.path.exists(mount.path / "bus" / bdf)  # any error is an absence


def devices(mount: Mounted) -> dict[str, str]:
    info = MountInfo.read(mount.path)
    assert info is not None
    return info.devices


def test_a_device_leaves_and_comes_back(tmp_path: Path, start: Callable[..., Served]) -> None:
    server = start()
    name = server.name
    with mounted(tmp_path, name, "demo", options="reconnect") as mount:
        bar0 = mount.device(FIRST) / "bar0"
        inodes, fds = [], []
        for _round in range(3):
            inodes.append(bar0.stat().st_ino)
            fds.append(os.open(bar0, os.O_RDWR))
            assert os.pread(fds[-1], 4, 0) == b"barf"
            end(server)
            wait_until(lambda: not there(mount), "the device to leave")
            assert devices(mount) == {SECOND: "demo"}
            assert os.listdir(mount.path / "flat") == [SECOND.replace(":", "-")]
            for fd in fds:
                with pytest.raises(OSError, match="No such device"):
                    os.pread(fd, 4, 0)
            server = start()
            wait_until(lambda: there(mount), "the device to come back")
        assert len(set(inodes)) == 3
        assert inodes == sorted(inodes)
        assert devices(mount) == {SECOND: "demo", FIRST: name}
        assert bar0.read_bytes()[:4] == b"barf"
        for fd in fds:
            with pytest.raises(OSError, match="No such device"):
                os.pread(fd, 4, 0)
            os.close(fd)
        log = mount.log.read_text()
        assert log.count(f"{name} is lost") == log.count(f"{name} is back as {FIRST}\n") == 3


def test_without_the_option_it_stays_lost(tmp_path: Path, start: Callable[..., Served]) -> None:
    server = start()
    with mounted(tmp_path, server.name) as mount:
        bar0 = mount.device(FIRST) / "bar0"
        with bar0.open("rb", buffering=0) as file:
            end(server)
            wait_until(lambda: "is lost" in mount.log.read_text(), "the loss")
            with pytest.raises(OSError, match="No such device"):
                file.read(4)
        assert there(mount)


def test_another_device_behind_the_same_socket(
    tmp_path: Path, start: Callable[..., Served]
) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    server = start()
    name = f"{server.name},bdf=0000:42:00.0"
    with mounted(tmp_path, name, options="reconnect") as mount:
        end(server)
        wait_until(lambda: not there(mount, "0000:42:00.0"), "the device to leave")
        start(tmp_path / "small.toml")
        wait_until(lambda: there(mount, "0000:42:00.0"), "the other device")
        directory = mount.device()
        assert directory.name == "0000:42:00.0"
        assert (directory / "vendor").read_text() == "0x1af4\n"
        assert (directory / "bar0").stat().st_size == 0x2000
        assert not (directory / "bar2").exists()
        log = mount.log.read_text()
        assert "another device: vendor 0x1af4 instead of 0x1234, device 0x1000" in log
        assert "other regions" in log


def test_what_is_no_server_costs_attempts_only(
    tmp_path: Path, start: Callable[..., Served]
) -> None:
    """A stale socket, a socket of another type, a file, a server that says nothing."""
    server = start()
    place = server.socket
    with mounted(tmp_path, server.name, "demo", options="reconnect,timeout=0.3") as mount:
        server.process.kill()
        ended(server.process)
        log = mount.log
        wait_until(lambda: "no server listens there" in log.read_text(), "a refusal")
        place.unlink()
        wait_until(lambda: "there is no such socket" in log.read_text(), "its absence")
        place.write_text("")
        wait_until(lambda: "is not a socket" in log.read_text(), "the file")
        place.unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
            silent.bind(str(place))
            silent.listen()
            wait_until(lambda: "does not answer" in log.read_text(), "the silence")
            assert (mount.device(SECOND) / "bar0").read_bytes()[:4] == b"barf"
        place.unlink()
        assert not there(mount)
        start()
        wait_until(lambda: there(mount), "the device to come back")
        text = log.read_text()
        assert text.count("no server listens there") < 5, "each reason once a wait"


def test_a_server_that_stops_answering_is_not_gone(
    tmp_path: Path, start: Callable[..., Served]
) -> None:
    server = start()
    with mounted(tmp_path, server.name, options="reconnect,timeout=0.3") as mount:
        bar0 = mount.device(FIRST) / "bar0"
        inode = bar0.stat().st_ino
        server.process.send_signal(signal.SIGSTOP)
        with bar0.open("rb", buffering=0) as file, pytest.raises(OSError, match="timed out"):
            file.read(4)
        server.process.send_signal(signal.SIGCONT)
        wait_until(lambda: bar0.read_bytes()[:4] == b"barf", "an answer")
        assert bar0.stat().st_ino == inode


def test_while_it_waits_it_can_be_removed_and_its_address_is_taken(
    tmp_path: Path, start: Callable[..., Served]
) -> None:
    server = start()
    with mounted(tmp_path, server.name, options="reconnect") as mount:
        end(server)
        wait_until(lambda: not there(mount), "the device to leave")
        assert "is already in" in barfs("add", mount.path, server.name).stderr
        assert barfs("add", mount.path, "demo").stdout == f"{mount.path}/bus/{SECOND}\n"
        assert barfs("remove", mount.path, server.name).returncode == 0
        assert barfs("add", mount.path, "demo").stdout == f"{mount.path}/bus/{FIRST}\n"
        start()
        # Nothing waits for it any more: it is free for this command.
        assert barfs("layout", server.name, "bar0").returncode == 0
        assert devices(mount) == {FIRST: "demo", SECOND: "demo"}


def test_a_mount_ends_while_it_waits(tmp_path: Path, start: Callable[..., Served]) -> None:
    server = start()
    with mounted(tmp_path, server.name, options="reconnect") as mount:
        end(server)
        wait_until(lambda: not there(mount), "the device to leave")
        assert barfs("umount", mount.path).returncode == 0
        assert ended(mount.process) == 0
