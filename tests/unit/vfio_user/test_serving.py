# SPDX-License-Identifier: MIT
"""A vfio-user server's socket, its clients one by one, and its end."""

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from barfs.device import Options
from barfs.emulated.demo import demo_device
from barfs.emulated.device import SoftwareDevice
from barfs.errors import DeviceError
from barfs.opening import DeviceName, open_device
from barfs.pci import Bdf
from barfs.uapi import RegionInfo
from barfs.vfio_user import messages as m
from barfs.vfio_user.address import Place, place_of
from barfs.vfio_user.client import VfioUserClient
from barfs.vfio_user.server import listening, serve_in_thread
from tests.support import require
from tests.support.peer import until_taken
from tests.support.raw import RawClient, connection, running


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
        (file, "already exists and is not a socket"),
        (tmp_path / "no" / "where", "No such file or directory"),
        (tmp_path / ("x" * 256), "a name has at most 255 bytes, a path 4095; use shorter names"),
        (tmp_path / ("x/" * 2200) / "sock", "a name has at most 255 bytes, a path 4095"),
        (file / "where", "Not a directory"),
        (Path(), "already exists and is not a socket"),
    ):
        with pytest.raises(DeviceError, match=problem), listening(str(path)):
            pass
    assert file.read_text() == "precious"


LONG_PATHS = [
    pytest.param("d" * 200, "device.sock", id="a long directory"),
    pytest.param("/".join(["d" * 250] * 10), "device.sock", id="a very long directory"),
    pytest.param("d" * 200, "s" * 92, id="a name that does not fit behind its directory"),
    pytest.param("", "s" * 255, id="a name as long as can be"),
    pytest.param("d\udcff" * 100, "s\udcff.sock", id="bytes that are no text"),
]


@pytest.mark.parametrize(("folder", "name"), LONG_PATHS)
@pytest.mark.parametrize("absolute", [True, False])
def test_a_path_may_be_longer_than_an_address(
    tmp_path: Path,
    device: SoftwareDevice,
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
    name: str,
    absolute: bool,
) -> None:
    """Made, used, found to be in use, replaced when it is stale, and removed."""
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    path = tmp_path / folder / name
    assert len(os.fsencode(path)) > 107
    if not absolute:
        monkeypatch.chdir(tmp_path)
        path = Path(folder, name)
    bdf = Bdf(0xFFFF, 0, 0, 0)
    with running(path, device):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [entry.name for entry in path.parent.iterdir()] == [name]
        with contextlib.closing(VfioUserClient(str(path), bdf=bdf, source="t")) as client:
            assert client.read(0, 0, 4) == b"barf"
            with pytest.raises(DeviceError, match="another server"), listening(str(path)):
                pass
    assert list(path.parent.iterdir()) == []
    with place_of(str(path)) as place, socket.socket(socket.AF_UNIX) as stale:
        place.bind(stale, 0o600)
    with pytest.raises(DeviceError, match="no server listens there"):
        VfioUserClient(str(path), bdf=bdf, source="t")
    with running(path, device):
        VfioUserClient(str(path), bdf=bdf, source="t").close()
    assert list(path.parent.iterdir()) == []
    path.write_text("precious")
    with pytest.raises(DeviceError, match="is not a socket"), listening(str(path)):
        pass
    with pytest.raises(DeviceError, match="is not a socket"):
        VfioUserClient(str(path), bdf=bdf, source="t")
    assert path.read_text() == "precious"


def test_a_relative_path_is_not_made_longer(
    tmp_path: Path, device: SoftwareDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a directory whose own path is longer than any that the kernel takes."""
    monkeypatch.chdir(tmp_path)
    for _level in range(20):
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    try:
        path = Path("device.sock")
        name = DeviceName.parse(f"vfio-user:{path}")
        with running(path, device), contextlib.closing(open_device(name, Options())) as opened:
            assert opened["bar0"].read32(0) == int.from_bytes(b"barf", "little")
        assert os.listdir() == []
    finally:
        for _level in range(20):
            os.chdir("..")
            os.rmdir("d" * 250)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777, 0o200, 0o060, 0])
def test_the_socket_has_the_mode_that_was_asked_for(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "device.sock"
    with listening(str(path), mode):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    with listening(str(path), mode, os.getgid()):
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (mode, os.getgid())


@pytest.mark.parametrize("name", ["device.sock", "s" * 200])
@pytest.mark.parametrize("mode", [0o660, 0o400, 0o077])
def test_the_socket_is_never_wider_than_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, mode: int
) -> None:
    """As each step leaves it, whatever the umask."""
    path = tmp_path / name
    seen: list[tuple[str, int]] = []

    def watch(step: str) -> None:
        original = getattr(Place, step)

        def watched(place: Place, *arguments: object) -> None:
            original(place, *arguments)
            seen.append((step, stat.S_IMODE(path.stat().st_mode)))

        monkeypatch.setattr(Place, step, watched)

    for step in ("bind", "give", "permit"):
        watch(step)
    previous = os.umask(0)
    try:
        with listening(str(path), mode, os.getgid()):
            pass
    finally:
        assert os.umask(previous) == 0
    assert seen == [("bind", mode & 0o700), ("give", mode & 0o700), ("permit", mode)]


STRANGE_GROUP = """
import os, sys
from barfs.errors import DeviceError
from barfs.vfio_user.server import listening
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
try:
    with listening("device.sock", 0o660, 12345):
        pass
except DeviceError as error:
    print(error)
"""


def test_a_foreign_group_is_an_error(tmp_path: Path) -> None:
    require("root", os.geteuid() == 0, "only root can become another user")
    tmp_path.chmod(0o777)
    result = subprocess.run(
        [sys.executable, "-c", STRANGE_GROUP],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == (
        "device.sock: cannot set its group to 12345; join that group, or run as root\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_another_servers_socket_is_not_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "moved"
    with listening(str(path)):
        path.unlink()
        path.touch()
    assert path.exists()


SERVE = """
import sys
from barfs.emulated.demo import demo_device
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
