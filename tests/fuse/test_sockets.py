# SPDX-License-Identifier: MIT
"""Sockets of devices, by paths that are long or relative, and whom they let in."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from barfs.attached.mounts import MountInfo
from tests.support import Served, barfs, served

LONG = "d" * 200


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Served]:
    """A device whose socket is too far away for an address."""
    (tmp_path / LONG).mkdir()
    with served(tmp_path / LONG) as device:
        assert len(os.fsencode(device.socket)) > 107
        yield device


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@contextlib.contextmanager
def mounted_in_background(name: str, mountpoint: Path) -> Iterator[Path]:
    mountpoint.mkdir()
    result = barfs("mount", name, str(mountpoint))
    assert (result.returncode, result.stderr) == (0, "")
    try:
        yield mountpoint / "bus" / "ffff:00:00.0"
    finally:
        assert barfs("umount", str(mountpoint)).returncode == 0


@pytest.mark.parametrize("relative", [False, True])
def test_a_mount_in_the_background(tmp_path: Path, far: Served, here: None, relative: bool) -> None:
    name = f"vfio-user:{LONG}/{far.socket.name}" if relative else far.name
    with mounted_in_background(name, tmp_path / "mnt") as device:
        fd = os.open(device / "bar0", os.O_RDONLY)
        try:
            assert os.pread(fd, 4, 0) == b"barf"
        finally:
            os.close(fd)
        info = MountInfo.read(tmp_path / "mnt")
        assert info is not None
        assert os.readlink(f"/proc/{info.pid}/cwd") == "/", "it would hold the caller's directory"
        for same in (far.name, f"vfio-user:{LONG}/{far.socket.name}"):
            result = barfs("md", f"{same}:bar0", "0")
            assert (result.returncode, result.stderr) == (0, "")
            assert result.stdout.startswith("00000000: 66726162")


@pytest.mark.parametrize("command", [["layout"], ["dump", "-o", "x.dump"]])
def test_commands_without_a_mount(far: Served, here: None, command: list[str]) -> None:
    for name in (far.name, f"vfio-user:{LONG}/{far.socket.name}"):
        result = barfs(command[0], name, *command[1:])
        opened, *more = result.stderr.splitlines()
        assert (result.returncode, opened) == (0, f"opened {far.name}")
        assert all(line.startswith("bar0: left out, since ") for line in more)


def test_names_that_are_too_long(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 256)
    advice = "a name has at most 255 bytes, a path 4095; use shorter names"
    for arguments in (["layout", f"vfio-user:{path}"], ["serve", "--socket", str(path)]):
        result = barfs(*arguments)
        assert result.returncode == 1
        assert advice in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ([], 0o600),
        (["--mode", "666"], 0o666),
        (["--mode", "0o620"], 0o620),
        (["--group", str(os.getgid())], 0o660),
        (["--group", str(os.getgid()), "--mode", "0640"], 0o640),
    ],
)
def test_whom_a_socket_lets_in(tmp_path: Path, options: list[str], mode: int) -> None:
    with served(tmp_path, *options) as device:
        status = device.socket.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (mode, os.getgid())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--mode", "rw"], "must be octal, 0 to 777, like 660, not 'rw'"),
        (["--mode", "1777"], "must be octal, 0 to 777, like 660, not '1777'"),
        (["--mode", "-1"], "--mode"),
        (["--group", "no such group"], "there is no group 'no such group'; getent group lists"),
    ],
)
def test_modes_and_groups_that_are_none(tmp_path: Path, options: list[str], problem: str) -> None:
    result = barfs("serve", "--socket", str(tmp_path / "s"), *options)
    assert result.returncode == 2
    assert problem in result.stderr
    assert not (tmp_path / "s").exists()
