# SPDX-License-Identifier: MIT
"""A mount's own socket: it answers its owner, and nothing that a client does harms it."""

import array
import contextlib
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from barfs.fuse import mount_socket
from barfs.fuse.mount_socket import MountSocket, Reply
from tests.support import DEADLINE, wait_until

LONGEST = 64


async def echo(request: bytes) -> Reply | None:
    if request == b"drop":
        return None
    if request == b"break":
        raise ValueError("a bug")
    if request == b"descriptor":
        return Reply(b"here", (os.memfd_create("sent"),))
    return Reply(b"echo " + request)


@pytest.fixture(autouse=True)
def _in_tmpdir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount_socket, "runtime_directory", lambda: None)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The path of a socket that is served in a thread."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(mount_socket, "DEADLINE", 0.5)
    listening = MountSocket("test")
    ready, tokens = threading.Event(), list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]]()

    async def serve() -> None:
        with trio.CancelScope() as scope:
            tokens.append((trio.lowlevel.current_trio_token(), scope))
            ready.set()
            await listening.serve(LONGEST, echo)

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert ready.wait(DEADLINE)
    yield listening.path
    token, scope = tokens[0]
    token.run_sync_soon(scope.cancel)
    thread.join(DEADLINE)
    assert not thread.is_alive()
    listening.close()
    listening.close()
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(str(path))
        yield sock


def ask(path: Path, request: bytes) -> bytes:
    """The reply; empty if there is none."""
    # A connection that is closed unread is reset, or broken.
    with connected(path) as sock, contextlib.suppress(ConnectionError):
        sock.send(request)
        return sock.recv(1000)
    return b""


def test_one_message_one_reply(served: Path) -> None:
    assert ask(served, b"hello") == b"echo hello"
    assert ask(served, bytes(LONGEST)) == b"echo " + bytes(LONGEST)
    with connected(served) as sock:
        sock.send(b"once")
        assert [sock.recv(100), sock.recv(100)] == [b"echo once", b""]


def test_only_its_owner_can_reach_it(served: Path) -> None:
    assert stat.S_IMODE(served.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(served.stat().st_mode) == 0o600


def test_another_user_is_not_answered(
    served: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process of another user that gets hold of the socket: the kernel tells its user."""
    monkeypatch.setattr(mount_socket, "_CREDENTIALS", _OtherUser)
    assert ask(served, b"hello") == b""
    assert "refused process 4711 of user 4242: the mount is another user's" in caplog.text


class _OtherUser:
    size = 12

    @staticmethod
    def unpack(_data: bytes) -> tuple[int, int, int]:
        return 4711, 4242, 4242


@pytest.mark.parametrize("request_", [b"", bytes(LONGEST + 1), bytes(1 << 16), b"drop", b"break"])
def test_what_is_no_request_is_dropped(
    served: Path, request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert ask(served, request_) == b""
    assert ask(served, b"next") == b"echo next"
    assert ("a request to the mount failed" in caplog.text) == (request_ == b"break")


def test_a_client_that_says_nothing_is_hung_up_on(served: Path) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connected(served)) for _ in range(12)]
        # The last ones wait until the first ones are given up.
        assert ask(served, b"after them") == b"echo after them"
        assert [sock.recv(10) for sock in silent[:8]] == [b""] * 8


def test_a_client_that_leaves_is_nothing(served: Path) -> None:
    for message in (b"", b"hello"):
        with connected(served) as sock:
            sock.send(message)
    assert ask(served, b"next") == b"echo next"


def count_of(name: str) -> int:
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sum(name in link for link in links)


def test_descriptors_go_out_and_none_comes_in(served: Path) -> None:
    with connected(served) as sock:
        sock.send(b"descriptor")
        data, ancillary, _flags, _address = sock.recvmsg(100, socket.CMSG_SPACE(4))
        assert data == b"here"
        fds = array.array("i")
        fds.frombytes(ancillary[0][2])
        wait_until(lambda: count_of("memfd:sent") == 1, "the sender to close its own")
        os.close(fds[0])
    own = os.memfd_create("uninvited")
    with connected(served) as sock:
        socket.send_fds(sock, [b"hello"], [own])
        assert sock.recv(100) == b"echo hello"
    os.close(own)
    assert count_of("memfd:uninvited") == 0


def test_a_path_may_be_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    with contextlib.closing(MountSocket("test")) as listening:
        assert listening.path.is_socket()


def test_what_a_killed_mount_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    abandoned = MountSocket("test")
    abandoned._listener.close()
    with (
        contextlib.closing(MountSocket("other")) as other,
        contextlib.closing(MountSocket("test")) as one,
        contextlib.closing(MountSocket("test")) as two,
    ):
        assert not abandoned.path.parent.exists()
        assert {path.parent for path in (other.path, one.path, two.path)} == set(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []


def test_a_mount_goes_on_without_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(prefix: str, *, first: Path | None) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mount_socket, "new_directory", fail)
    assert mount_socket.mount_socket("control") is None
    assert "the mount has no .barfs-control: no space left on the device" in caplog.text
