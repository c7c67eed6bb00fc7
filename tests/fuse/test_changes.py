# SPDX-License-Identifier: MIT
"""Devices that join and leave a live mount: `barfs add`, `barfs remove`."""

import contextlib
import errno
import json
import os
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from barfs.attached.mounts import MountInfo
from tests.support import BARFS, Mounted, Served, barfs, ended, mounted, require, served, wait_until
from tests.support.namespace import NOBODY, barfs_as_nobody

FIRST, SECOND = "ffff:00:00.0", "ffff:00:01.0"


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    with mounted(tmp_path, "demo") as found:
        yield found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path) as found:
        yield found


def listed(mount: Mounted) -> set[str]:
    names = {path.name for path in (mount.path / "bus").iterdir()}
    flat = {path.name.replace("-", ":") for path in (mount.path / "flat").iterdir()}
    info = MountInfo.read(mount.path)
    assert info is not None
    assert names == flat == set(info.devices)
    assert all((mount.path / "flat" / name.replace(":", "-")).is_dir() for name in names)
    return names


def assert_refused(result: subprocess.CompletedProcess[str], code: int, text: str) -> None:
    assert (result.returncode, result.stdout) == (code, "")
    assert text in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_device_joins_and_leaves(mount: Mounted, server: Served) -> None:
    result = barfs("add", mount.path, server.name)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{mount.path}/bus/{SECOND}\n"
    assert listed(mount) == {FIRST, SECOND}
    device = mount.device(SECOND)
    assert (device / "bar0").read_bytes()[:4] == b"barf"
    assert (device / "registers/bar0/ID").read_text() == "0x66726162\n"
    first = (device / "bar0").stat().st_ino
    fd = os.open(device / "bar0", os.O_RDWR)
    register = os.open(device / "registers/bar0/ID", os.O_RDONLY)
    assert barfs("remove", mount.path, server.name).returncode == 0
    assert listed(mount) == {FIRST}
    for use in (lambda: os.pread(fd, 4, 0), lambda: os.pwrite(fd, b"1234", 4)):
        with pytest.raises(OSError, match="No such device"):
            use()
    with pytest.raises(OSError, match="No such device"):
        os.pread(register, 100, 0)
    os.close(fd)
    os.close(register)
    # The server has been left, and serves the next client: this mount again.
    assert barfs("add", mount.path, f"{server.name},bdf={SECOND}").returncode == 0
    assert (device / "bar0").stat().st_ino > first
    assert (device / "bar0").read_bytes()[:4] == b"barf"
    log = mount.log.read_text()
    assert log.count(f"added {server.name} as {SECOND}") == 2
    assert log.count(f"removed {SECOND}") == 1


def test_the_options_of_the_mount_are_in_force(tmp_path: Path, server: Served) -> None:
    with mounted(tmp_path, "demo", options="ro,width=8,widths=8") as mount:
        assert barfs("add", mount.path, server.name).returncode == 0
        for name in (FIRST, SECOND):
            bar0 = mount.device(name) / "bar0"
            assert stat.S_IMODE(bar0.stat().st_mode) == 0o400
            assert "\nwidths 8\n" in bar0.with_name("bar0.layout").read_text()


def test_all_or_none(mount: Mounted, server: Served) -> None:
    missing = f"vfio-user:{mount.path.parent}/missing.sock"
    refused: list[tuple[str, list[str], int, str]] = [
        ("add", [server.name, missing], 1, "there is no such socket"),
        ("add", [server.name, server.name], 2, "is named twice"),
        ("add", [f"{server.name},bdf={FIRST}"], 1, f"{FIRST} is already in {mount.path}"),
        ("add", [server.name, "0000:ff:1f.7"], 1, "no such PCI device"),
        ("remove", [FIRST, "0000:ff:1f.7"], 1, f"0000:ff:1f.7 is not in {mount.path}, which has"),
        ("remove", [FIRST, server.name], 1, "is not in"),
        ("add", ["nonsense"], 2, "is not a device"),
        ("remove", ["nonsense"], 2, "is not a device"),
    ]
    for command, names, code, text in refused:
        assert_refused(barfs(command, mount.path, *names), code, text)
    assert listed(mount) == {FIRST}
    assert barfs("add", mount.path, server.name).returncode == 0, "nothing holds the server"
    assert_refused(barfs("add", mount.path, server.name), 1, "is already in")


def test_several_demo_devices(mount: Mounted) -> None:
    assert barfs("add", mount.path, "demo", "demo").returncode == 0
    assert len(listed(mount)) == 3
    assert_refused(barfs("remove", mount.path, "demo"), 2, "demo is several devices; name one of")
    assert barfs("remove", mount.path, *sorted(listed(mount)), FIRST).returncode == 0
    assert listed(mount) == set()
    assert_refused(barfs("remove", mount.path, FIRST), 1, "which has no device")
    assert barfs("add", mount.path, "demo").stdout == f"{mount.path}/bus/{FIRST}\n"


def test_two_at_once(mount: Mounted, server: Served) -> None:
    """Of one device: one is added, the other is told. Of others: all are added."""
    with ThreadPoolExecutor(4) as pool:
        names = [server.name, server.name, "demo", "demo"]
        results = list(pool.map(lambda name: barfs("add", mount.path, name), names))
    assert sorted(result.returncode for result in results[:2]) == [0, 1]
    assert [result.returncode for result in results[2:]] == [0, 0]
    assert len(listed(mount)) == 4


def test_an_access_that_hangs_is_told(tmp_path: Path, server: Served) -> None:
    with mounted(tmp_path, server.name, "demo", options="timeout=1") as mount:
        device = mount.device(FIRST)
        server.process.send_signal(signal.SIGSTOP)
        try:
            result = barfs("remove", mount.path, server.name)
        finally:
            server.process.send_signal(signal.SIGCONT)
        assert result.returncode == 0, result.stderr
        assert not device.exists()
        assert listed(mount) == {SECOND}


def test_a_server_that_does_not_answer_is_told(mount: Mounted, server: Served) -> None:
    server.process.send_signal(signal.SIGSTOP)
    try:
        result = barfs("add", mount.path, server.name)
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert_refused(result, 1, "connected, but the server does not answer")
    assert barfs("add", mount.path, server.name).returncode == 0


def test_a_mount_that_ends_meanwhile(tmp_path: Path, server: Served) -> None:
    with mounted(tmp_path, "demo") as mount:
        server.process.send_signal(signal.SIGSTOP)
        try:
            adding = subprocess.Popen(
                [*BARFS, "add", mount.path, server.name], stderr=subprocess.PIPE, text=True
            )
            place = f"{os.readlink(mount.path / '.barfs-control')}"
            # One is the server's own.
            wait_until(lambda: sockets_at(server.socket) == 2, "the mount to connect")
            mount.process.terminate()
            assert ended(mount.process) == 0
            assert ended(adding) == 1
        finally:
            server.process.send_signal(signal.SIGCONT)
        assert adding.stderr is not None
        with adding.stderr as errors:
            assert "closed the connection without an answer" in errors.read()
        assert not Path(place).parent.exists()


def sockets_at(path: Path) -> int:
    return Path("/proc/net/unix").read_text().count(f"{path}\n")


def test_where_no_mount_is(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        assert_refused(barfs("add", path, "demo"), 1, f"{path} is not a barfs mount")
    assert barfs("add", tmp_path).returncode == 2


def test_a_mount_whose_process_is_stopped(mount: Mounted) -> None:
    mount.process.send_signal(signal.SIGSTOP)
    try:
        result = barfs("remove", mount.path, FIRST)
    finally:
        mount.process.send_signal(signal.SIGCONT)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert listed(mount) == {FIRST}


def test_the_socket_is_hidden_and_its_owners(mount: Mounted) -> None:
    assert sorted(os.listdir(mount.path)) == ["bus", "devices", "flat"]
    path = Path(os.readlink(mount.path / ".barfs-control"))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for data in (b"\0" * 70000, b"barfs-control 1\0add\0", b"\xff" * 100):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(path))
            with contextlib.suppress(ConnectionError):  # closed unread
                sock.send(data)
                assert sock.recv(100) == b""
    assert listed(mount) == {FIRST}


def test_other_users_may_not(tmp_path: Path) -> None:
    require("fuse", os.getuid() == 0, "running as another user takes root")
    with mounted(tmp_path, "demo", options="allow_other") as mount:
        for folder in (tmp_path, *tmp_path.parents):
            if folder.stat().st_uid == 0 and folder != Path("/tmp"):
                folder.chmod(folder.stat().st_mode | 0o011)
        result = barfs_as_nobody("remove", mount.path, FIRST)
        assert_refused(result, 1, "only the user who mounted it, or root, may change its devices")
        assert listed(mount) == {FIRST}


def test_root_may_change_the_mount_of_a_user_who_keeps_it_from_root() -> None:
    """FUSE lets not even root look into it."""
    require("fuse", os.getuid() == 0, "running as another user takes root")
    made = barfs_as_nobody("demo", (folder := new_folder_of_nobody()) / "mnt")
    try:
        assert made.returncode == 0, made.stderr
        with pytest.raises(PermissionError):
            os.listdir(folder / "mnt")
        result = barfs("add", folder / "mnt", "demo")
        assert (result.returncode, result.stderr) == (0, "")
        assert barfs("remove", folder / "mnt", FIRST).returncode == 0
        info = barfs_as_nobody("layout", SECOND, "bar0", "--json")
        assert json.loads(info.stdout)[0]["device"] == SECOND
    finally:
        barfs_as_nobody("umount", folder / "mnt")
        (folder / "mnt").rmdir()
        folder.rmdir()


def new_folder_of_nobody() -> Path:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    (folder / "mnt").mkdir()
    for path in (folder / "mnt", folder):
        os.chown(path, NOBODY, NOBODY)
    return folder


def test_errnos_of_a_removed_device(mount: Mounted) -> None:
    bar0 = mount.device(FIRST) / "bar0"
    folder = os.open(bar0.parent, os.O_PATH | os.O_DIRECTORY)
    assert barfs("remove", mount.path, FIRST).returncode == 0
    with pytest.raises(OSError, match="No such") as caught:
        os.open("bar0", os.O_RDONLY, dir_fd=folder)
    assert caught.value.errno in (errno.ENOENT, errno.ENXIO)
    os.close(folder)
