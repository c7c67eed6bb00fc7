# SPDX-License-Identifier: MIT
"""A mount of many devices, which it opens and closes side by side."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from barfs.device import Options
from barfs.emulated.demo import demo_device
from barfs.opening import DeviceName, close_all, open_all
from tests.support import BARFS, DEADLINE, barfs, ended, is_mounted, mounted, require_fuse
from tests.support.raw import running

COUNT = 10


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[list[str]]:
    """Names of running devices. Each takes one client at a time, so none may have been left open
    when they are opened once more at the end."""
    require_fuse()
    (tmp_path / "mnt").mkdir()
    paths = [tmp_path / f"{number}.sock" for number in range(COUNT)]
    with contextlib.ExitStack() as stack:
        for path in paths:
            device = stack.enter_context(contextlib.closing(demo_device()))
            stack.enter_context(running(path, device))
        names = [f"vfio-user:{path}" for path in paths]
        yield names
        close_all(open_all([DeviceName.parse(name) for name in names], Options()))
    assert not is_mounted(tmp_path / "mnt")


def test_devices_are_numbered_in_the_order_of_their_names(
    sockets: list[str], tmp_path: Path
) -> None:
    marks = [bytes([number] * 4) for number in range(COUNT)]
    with mounted(tmp_path, *sockets) as mount:
        for number, mark in enumerate(marks):
            with (mount.device(f"ffff:00:{number:02x}.0") / "bar2").open("r+b", buffering=0) as bar:
                bar.write(mark)
    for name, mark in zip(sockets, marks, strict=True):
        (device,) = open_all([DeviceName.parse(name)], Options())
        with device:
            assert device["bar2"].read(0, 4) == mark


@pytest.mark.parametrize("options", [[], ["-f"]], ids=["background", "foreground"])
def test_one_that_fails_is_named_and_nothing_is_mounted(
    sockets: list[str], tmp_path: Path, options: list[str]
) -> None:
    names = [*sockets[:6], f"vfio-user:{tmp_path}/absent", *sockets[6:]]
    result = barfs("mount", *options, *names, tmp_path / "mnt")
    told = f"barfs: vfio-user:{tmp_path}/absent: there is no such socket; start the server, or"
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith(told)


def test_one_that_hangs_has_its_timeout(sockets: list[str], tmp_path: Path) -> None:
    with mute(tmp_path):
        names = [*sockets, f"vfio-user:{tmp_path}/mute"]
        result = barfs("mount", "-o", "timeout=0.5", *names, tmp_path / "mnt")
    told = f"barfs: vfio-user:{tmp_path}/mute: connected, but the server does not answer; "
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith(told)


@contextlib.contextmanager
def mute(folder: Path) -> Iterator[socket.socket]:
    """A server that accepts connections and says nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "mute"))
        listener.listen()
        listener.settimeout(DEADLINE)
        try:
            yield listener
        finally:
            (folder / "mute").unlink()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("options", [[], ["-f"]], ids=["background", "foreground"])
def test_a_signal_ends_a_mount_although_a_device_hangs(
    sockets: list[str], tmp_path: Path, options: list[str], number: signal.Signals
) -> None:
    patience = 10 * DEADLINE
    with mute(tmp_path) as listener:
        words = [*BARFS, "mount", *options, "-o", f"timeout={patience}", *sockets[:5]]
        process = subprocess.Popen(
            [*words, f"vfio-user:{tmp_path}/mute", *sockets[5:], str(tmp_path / "mnt")],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        connection, _address = listener.accept()
        with connection:
            connection.recv(1, socket.MSG_PEEK)
            start = time.monotonic()
            os.killpg(process.pid, number)
            assert ended(process) == 128 + number
            assert connection.recv(4096)
            assert connection.recv(4096) == b""
    assert time.monotonic() - start < DEADLINE
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
