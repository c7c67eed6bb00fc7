# SPDX-License-Identifier: MIT
"""The messages of a mount to a service manager, and when they come."""

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from barfs.fuse.fusermount import unmount
from tests.support import BARFS, DEADLINE, barfs, ended, is_mounted, require_fuse


class Manager:
    """A service manager's socket: at a path, or abstract."""

    def __init__(self, folder: Path, *, abstract: bool = False) -> None:
        name = f"{folder}/notify"
        self.address = f"@{name}" if abstract else name
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\0{name}" if abstract else name)
        self.socket.settimeout(DEADLINE)

    def hear(self) -> list[str]:
        """The next message."""
        return self.socket.recv(1000).decode().split("\n")

    def has_heard_nothing(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.socket.recv(1000)
        except BlockingIOError:
            return True
        return False


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    require_fuse()
    (tmp_path / "mnt").mkdir()
    yield tmp_path
    (tmp_path / "notify").unlink(missing_ok=True)


@contextlib.contextmanager
def service(
    folder: Path, address: str, device: str, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """`barfs mount -f` as a service manager starts it; ended afterwards."""
    process = subprocess.Popen(
        [*BARFS, "mount", "-f", device, str(folder / "mnt")],
        env={**os.environ, "NOTIFY_SOCKET": address, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        ended(process)
        assert process.stderr is not None
        process.stderr.close()


@pytest.mark.parametrize("abstract", [False, True])
def test_ready_when_the_mount_answers(folder: Path, abstract: bool) -> None:
    manager = Manager(folder, abstract=abstract)
    with manager.socket, service(folder, manager.address, "demo") as process:
        assert manager.hear() == ["READY=1", f"STATUS=demo on {folder}/mnt"]
        assert (folder / "mnt/bus/ffff:00:00.0/bar0").read_bytes()[:4] == b"barf"
        process.send_signal(signal.SIGTERM)
        assert manager.hear() == ["STOPPING=1"]
        assert ended(process) == 0
        assert manager.has_heard_nothing()


def test_it_tells_of_an_unmount(folder: Path) -> None:
    manager = Manager(folder)
    with manager.socket, service(folder, manager.address, "demo") as process:
        assert manager.hear()[0] == "READY=1"
        unmount(folder / "mnt")
        assert manager.hear() == ["STOPPING=1"]
        assert ended(process) == 0


def test_not_ready_before_the_devices_are_open(folder: Path) -> None:
    """Their server lets it wait, and then does not want it."""
    manager = Manager(folder)
    with manager.socket, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/device")
        server.listen()
        server.settimeout(DEADLINE)
        with service(folder, manager.address, f"vfio-user:{folder}/device") as process:
            peer, _ = server.accept()
            with peer:
                assert peer.recv(1), "its first message"
                assert not is_mounted(folder / "mnt")
            assert ended(process) == 1
        assert manager.has_heard_nothing()
    (folder / "device").unlink()


def test_children_do_not_speak_for_the_service(folder: Path) -> None:
    """Nor does the service before they have mounted: they are asked here."""
    real = shutil.which("fusermount3")
    helper = folder / "bin/fusermount3"
    helper.parent.mkdir()
    helper.write_text(f'#!/bin/sh\nenv >>"{folder}/environment"\nexec {real} "$@"\n')
    helper.chmod(stat.S_IRWXU)
    path = f"{helper.parent}:{os.environ['PATH']}"
    manager = Manager(folder)
    with manager.socket, service(folder, manager.address, "demo", PATH=path):
        assert manager.hear()[0] == "READY=1"
        environment = (folder / "environment").read_text()
        assert f"PATH={path}" in environment
        assert "NOTIFY_SOCKET" not in environment


def test_a_manager_that_is_gone_does_not_matter(folder: Path) -> None:
    with service(folder, f"{folder}/nobody", "demo") as process:
        assert process.stderr is not None
        warning = process.stderr.readline()
        assert warning.startswith(
            f"barfs: WARNING: cannot notify the service manager at {folder}/nobody: "
        )
        assert (folder / "mnt/bus/ffff:00:00.0/bar0").read_bytes()[:4] == b"barf"


def test_a_mount_in_the_background_says_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = Manager(folder)
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    with manager.socket:
        assert barfs("mount", "demo", folder / "mnt").returncode == 0
        assert barfs("umount", folder / "mnt").returncode == 0
        assert manager.has_heard_nothing()
