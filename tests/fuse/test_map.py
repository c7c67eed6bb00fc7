# SPDX-License-Identifier: MIT
"""`-o map`: the socket on which a mount hands out windows."""

import contextlib
import errno
import json
import mmap
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from barfs.attached.wire import Reply, Request
from tests.support import BARFS, Mounted, barfs, ended, is_mounted, mounted, served, wait_until

WINDOW = 0x3000
HOSTILE_MESSAGES = 10_000


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    with mounted(tmp_path, "demo", options="map") as found:
        yield found


def socket_of(mount: Mounted) -> Path:
    return Path(os.readlink(mount.path / ".barfs-map"))


def connected(mount: Mounted) -> socket.socket:
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        found.settimeout(30)
        root = os.open(mount.path, os.O_PATH)
        try:
            found.connect(f"/proc/self/fd/{root}/.barfs-map")
        finally:
            os.close(root)
        stack.pop_all()
    return found


def ask(mount: Mounted, region: Path) -> tuple[Reply, list[int]]:
    with connected(mount) as client:
        client.send(Request(region.stat().st_ino).encode())
        data, fds, _flags, _address = socket.recv_fds(client, 1 << 18, 253)
        assert client.recv(1) == b"", "one message, and then the end"
    return Reply.decode(data), fds


def answers(mount: Mounted) -> bool:
    reply, fds = ask(mount, mount.device() / "bar0")
    for fd in fds:
        os.close(fd)
    return reply.error == 0 and len(fds) == 1


def test_windows_reach_another_process_both_ways(mount: Mounted) -> None:
    bar0 = mount.device() / "bar0"
    reply, (fd,) = ask(mount, bar0)
    assert (reply.error, reply.size) == (0, 0x10000)
    assert [(window.offset, window.size) for window in reply.windows] == [
        (0x1000, 0x1000),
        (WINDOW, 0x1000),
    ]
    window = reply.windows[1]
    assert (window.readable, window.writable) == (True, True)
    with mmap.mmap(fd, window.size, offset=window.fd_offset) as memory:
        os.close(fd)
        memory[0x10:0x14] = b"ours"
        file = os.open(bar0, os.O_RDWR)
        assert os.pread(file, 4, WINDOW + 0x10) == b"ours"
        os.pwrite(file, b"mine", WINDOW + 0x14)
        os.close(file)
        assert memory[0x14:0x18] == b"mine"


def test_what_has_no_window(mount: Mounted) -> None:
    for name, error in (
        ("bar4", errno.ENODEV),
        ("config", errno.ENODEV),
        ("bar0.layout", errno.ENOENT),
        (".", errno.ENOENT),
    ):
        reply, fds = ask(mount, mount.device() / name)
        assert (reply.error, fds) == (error, []), name


def test_a_mount_of_two_hands_out_what_was_asked(tmp_path: Path) -> None:
    with (
        served(tmp_path, name="one") as one,
        served(tmp_path, name="two") as two,
        mounted(tmp_path, one.name, two.name, options="map") as mount,
    ):
        inodes = []
        for device in sorted((mount.path / "bus").iterdir()):
            _reply, (fd,) = ask(mount, device / "bar0")
            inodes.append(os.fstat(fd).st_ino)
            os.close(fd)
        assert len(set(inodes)) == 2


def test_only_the_owner_can_reach_the_socket(mount: Mounted) -> None:
    path = socket_of(mount)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.stat().st_uid == path.parent.stat().st_uid == os.geteuid()
    described = json.loads((mount.path / ".barfs").read_text())
    assert described["map"] == str(path)
    assert ".barfs-map" not in os.listdir(mount.path)


def test_a_connection_of_another_user_is_closed_unread(mount: Mounted) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    path = socket_of(mount)
    path.parent.chmod(0o711)
    path.chmod(0o666)
    code = """
import os, socket, sys
os.setgroups([])
os.setresgid(12345, 12345, 12345)
os.setresuid(12345, 12345, 12345)
client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
client.connect(sys.argv[1])
try:
    client.send(bytes.fromhex(sys.argv[2]))
    print(client.recv(100))
except (BrokenPipeError, ConnectionResetError):
    print(b"")
"""
    request = Request((mount.device() / "bar0").stat().st_ino).encode()
    result = subprocess.run(
        [sys.executable, "-c", code, str(path), request.hex()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "b''\n", result.stderr
    wait_until(lambda: "of user 12345" in mount.log.read_text(), "the log")


def rubbish(source: random.Random) -> bytes:
    good = bytearray(Request(source.randrange(100)).encode())
    kind = source.randrange(4)
    if kind == 0:
        return source.randbytes(source.choice([1, 23, 24, 25, 4096]))
    if kind == 1:
        good[source.randrange(16)] ^= 1 << source.randrange(1, 8)
        return bytes(good)
    if kind == 2:
        return bytes(good[: source.randrange(1, 24)])
    return bytes(good) + source.randbytes(source.randrange(1, 2000))


def test_hostile_messages(mount: Mounted) -> None:
    """None gets an answer, and the mount answers others all the while."""
    source = random.Random(13)
    pipe = os.pipe()
    before = len(os.listdir(f"/proc/{mount.process.pid}/fd"))
    for number in range(HOSTILE_MESSAGES):
        with connected(mount) as client, contextlib.suppress(BrokenPipeError, ConnectionError):
            data = rubbish(source)
            if number % 7 == 0:
                socket.send_fds(client, [data], [pipe[0]] * source.randrange(1, 200))
            else:
                client.send(data)
            if number % 3 == 0:
                assert client.recv(100) == b"", data
        if number % 1000 == 0:
            assert answers(mount)
            assert (mount.device() / "bar0").read_bytes()[:4] == b"barf"
    for fd in pipe:
        os.close(fd)
    assert answers(mount)
    wait_until(
        lambda: len(os.listdir(f"/proc/{mount.process.pid}/fd")) <= before + 1, "the descriptors"
    )
    assert "Traceback" not in mount.log.read_text()


def test_clients_that_say_nothing(mount: Mounted) -> None:
    """They are dropped when their time is over, and others are answered then."""
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connected(mount)) for _ in range(12)]
        start = time.monotonic()
        assert os.pread(stack_open(stack, mount.device() / "bar0"), 4, 0) == b"barf"
        assert all(client.recv(1) == b"" for client in silent)
        assert time.monotonic() - start > 3
        assert answers(mount)


def stack_open(stack: contextlib.ExitStack, path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    stack.callback(os.close, fd)
    return fd


def test_clients_that_are_killed_while_they_ask(mount: Mounted) -> None:
    inode = (mount.device() / "bar0").stat().st_ino
    code = f"""
import os, socket
from pathlib import Path
while True:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.connect({str(socket_of(mount))!r})
    client.send({Request(inode, stay=True).encode()!r})
    print(flush=True)
"""
    for turn in range(20):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(1 + turn):
            process.stdout.readline()
        process.kill()
        process.wait()
        process.stdout.close()
    assert answers(mount)
    assert "Traceback" not in mount.log.read_text()


def test_many_clients_at_once(mount: Mounted) -> None:
    wrong: list[object] = []

    def work() -> None:
        for _ in range(50):
            if not answers(mount):
                wrong.append("no answer")

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_client_that_stays_hears_of_the_end(tmp_path: Path) -> None:
    with mounted(tmp_path, "demo", options="map") as mount:
        client = connected(mount)
        inode = (mount.device() / "bar0").stat().st_ino
        client.send(Request(inode, stay=True).encode())
        data, fds, _flags, _address = socket.recv_fds(client, 4096, 1)
        os.close(fds[0])
        assert Reply.decode(data).stays
        assert answers(mount), "it is no client that is being served"
    assert client.recv(1) == b""
    client.close()


def test_a_client_that_stays_hears_of_a_lost_device(tmp_path: Path) -> None:
    with (
        served(tmp_path) as device,
        mounted(tmp_path, device.name, options="map") as mount,
        connected(mount) as client,
    ):
        bar0 = mount.device() / "bar0"
        client.send(Request(bar0.stat().st_ino, stay=True).encode())
        _data, fds, _flags, _address = socket.recv_fds(client, 4096, 1)
        os.close(fds[0])
        device.process.terminate()
        assert client.recv(1) == b""
        assert ask(mount, bar0)[0].error == errno.ENODEV


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, None])
def test_nothing_stays_after_the_end(tmp_path: Path, how: signal.Signals | None) -> None:
    with mounted(tmp_path, "demo", options="map") as mount:
        path = socket_of(mount)
        assert path.is_socket()
        if how is not None:
            mount.process.send_signal(how)
            ended(mount.process)
    assert not path.parent.exists()


def test_nothing_stays_of_a_mount_in_the_background(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    path.mkdir()
    assert barfs("demo", "-o", "map", path).returncode == 0
    place = Path(os.readlink(path / ".barfs-map"))
    assert place.is_socket()
    assert barfs("umount", path).returncode == 0
    assert not place.parent.exists()


def test_what_a_killed_mount_leaves_goes_with_the_next(tmp_path: Path) -> None:
    with mounted(tmp_path, "demo", options="map") as living:
        other = tmp_path / "other"
        other.mkdir()
        with mounted(other, "demo", options="map") as mount:
            left = socket_of(mount)
            mount.process.kill()
            mount.process.wait()
            assert left.is_socket()
            wait_until(lambda: not is_mounted(mount.path), "the helper to unmount")
        with mounted(other, "demo", options="map"):
            assert not left.parent.exists()
            assert answers(living)


def test_nothing_stays_of_a_mount_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    path.mkdir()
    places = tmp_path / "places"
    places.mkdir()
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "fusermount3").write_text(f"#!/bin/sh\nls -d {places}/* >{tmp_path}/seen\nexit 1\n")
    (bin_ / "fusermount3").chmod(0o755)
    # Where root may not write /run, as in some containers.
    code = (
        "import barfs.fuse.mount_socket as it, sys; it.runtime_directory = lambda: None; "
        "from barfs.cli.main import main; sys.exit(main())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "demo", "-f", "-o", "map", str(path)],
        env={**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", "TMPDIR": str(places)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "cannot mount" in result.stderr
    assert "barfs-map-" in (tmp_path / "seen").read_text()
    assert list(places.iterdir()) == []
    assert not is_mounted(path)


def test_no_place_for_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    path.mkdir()
    code = """
import sys
import barfs.fuse.mount_socket as it
from barfs.errors import BarfsError
def none(prefix, first=None):
    raise BarfsError("cannot make a directory in /nowhere; set TMPDIR to one that you can write")
it.new_directory = none
from barfs.cli.main import main
sys.exit(main())
"""
    result = subprocess.run(
        [sys.executable, "-c", code, "demo", "-o", "map", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (
        1,
        "barfs: cannot make a directory in /nowhere; set TMPDIR to one that you can write\n",
    )
    assert not is_mounted(path)


@pytest.mark.parametrize("word", ["ro", "guard", "mapping=off", "trace=TRACE", "policy=POLICY"])
def test_options_that_memory_cannot_keep(tmp_path: Path, word: str) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("rule = []\n")
    trace = tmp_path / "trace"
    words = word.replace("POLICY", str(policy)).replace("TRACE", str(trace))
    for command, device in (("mount", "demo"), ("demo", ""), ("mount", "--all")):
        named = [device] if device else []
        result = barfs(command, "-o", f"map,{words}", *named, tmp_path)
        assert result.returncode == 2
        name = word if word.startswith("mapping") else word.partition("=")[0]
        assert f"options map and {name} contradict each other: " in result.stderr
        assert result.stderr.count("\n") == 1
    assert not trace.exists()


def test_mount_8_and_fstab(tmp_path: Path) -> None:
    """They call `barfs DEVICE MOUNTPOINT -o ...`."""
    path = tmp_path / "mnt"
    path.mkdir()
    result = subprocess.run(
        [*BARFS, "demo", str(path), "-o", "rw,map,dev,suid"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    place = Path(os.readlink(path / ".barfs-map"))
    assert place.is_socket()
    assert barfs("umount", path).returncode == 0
    assert not place.exists()
