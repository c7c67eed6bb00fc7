# SPDX-License-Identifier: MIT
"""The life of a vfio-user server: its socket, its clients one by one, its end."""

import contextlib
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from barfs.errors import DeviceError
from barfs.pci import Bdf
from barfs.uapi import RegionInfo
from barfs.vfio_user import messages as m
from barfs.vfio_user.client import VfioUserClient
from barfs.vfio_user.demo import demo_device
from barfs.vfio_user.device import SoftwareDevice
from barfs.vfio_user.server import listening, serve_in_thread

from .peer import until_taken
from .raw import RawClient, connection, running


def unfinished(sock: socket.socket) -> None:
    RawClient(sock).sock.sendall(b"\1\0\4\0")


def slow(sock: socket.socket) -> None:
    raw = RawClient(sock)
    raw.get(m.RegionWrite(0, 0x2C, (60_000).to_bytes(4, "little")))
    request = m.RegionRead(0, 0x2C, 4)
    raw.send(request.NUMBER, request.body())
    until_taken(sock)


def deaf(sock: socket.socket) -> None:
    """Ask for more than the socket holds, and receive none of it."""
    raw = RawClient(sock)
    request = m.RegionRead(2, 0, 1 << 20)
    raw.send(request.NUMBER, request.body())
    until_taken(sock)


@pytest.mark.parametrize("occupy", [lambda _sock: None, RawClient, unfinished, slow, deaf])
def test_stop_ends_the_server_at_once(
    tmp_path: Path, device: SoftwareDevice, occupy: Callable[[socket.socket], object]
) -> None:
    path = tmp_path / "stop.sock"
    with contextlib.ExitStack() as stack:
        with running(path, device) as server:
            occupy(stack.enter_context(connection(path)))
            server.stop()
        assert not path.exists()
    server.stop()


def test_a_stale_socket_is_replaced_and_has_the_mode_of_a_private_one(
    tmp_path: Path, device: SoftwareDevice
) -> None:
    path = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with running(path, device), connection(path) as sock:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert RawClient(sock).read(0, 0, 4) == b"barf"


def test_the_socket_of_a_live_server_is_not_taken(path: Path) -> None:
    with (
        connection(path) as sock,
        pytest.raises(DeviceError, match="another server listens there"),
        listening(str(path)),
    ):
        pass
    with connection(path) as sock:
        assert RawClient(sock).read(0, 0, 4) == b"barf"


def test_a_place_where_no_socket_can_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    for path, problem in (
        (file, "is there already and is no socket"),
        (tmp_path / "no" / "where", "No such file or directory"),
        (tmp_path / ("x" * 200), "path too long"),
    ):
        with pytest.raises(DeviceError, match=problem), listening(str(path)):
            pass
    assert file.read_text() == "precious"


def test_another_servers_socket_is_not_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "moved"
    with listening(str(path)):
        path.unlink()
        path.touch()
    assert path.exists()


SERVE = """
import sys
from barfs.vfio_user.demo import demo_device
from barfs.vfio_user.server import serve
serve(
    demo_device(lambda line: print(line, flush=True)),
    sys.argv[1],
    lambda: print("ready", flush=True),
)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_and_removes_the_socket(tmp_path: Path, number: int) -> None:
    path = tmp_path / "signal.sock"
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process, socket.socket(socket.AF_UNIX) as sock:
        assert process.stdout.readline() == "ready\n"
        sock.connect(str(path))
        raw = RawClient(sock)
        assert raw.read(0, 0, 4) == b"barf"
        assert process.stdout.readline() == "r bar0 0x0 4 0x66726162\n"
        process.send_signal(number)
        assert process.wait(30) == 0
    assert not path.exists()


def test_a_server_in_a_thread_ends_with_its_client() -> None:
    sock = serve_in_thread(demo_device())
    (thread,) = [t for t in threading.enumerate() if t.name == "barfs-software-device"]
    client = VfioUserClient(sock, bdf=Bdf(0xFFFF, 0, 0, 0), source="demo")
    assert client.region_info(1) == RegionInfo(1, 0, 0, 0)
    client.close()
    thread.join(30)
    assert not thread.is_alive()
