# SPDX-License-Identifier: MIT
"""The vfio-user client against servers that are slow, wrong, hostile or gone."""

import errno
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from barfs.errors import (
    AccessError,
    AccessTimeout,
    BusFault,
    DeviceError,
    DeviceGone,
    InvalidAccess,
    PeerError,
)
from barfs.vfio_user import messages as m
from barfs.vfio_user import wire
from barfs.vfio_user.client import VfioUserClient
from tests.support import peer as peer_support
from tests.support.peer import (
    BDF,
    Answer,
    Peer,
    client_of,
    connect,
    data,
    done,
    header,
    raw,
    refuse,
    reply,
    say_nothing,
    until_taken,
)

SHORT = 0.05


@pytest.fixture(params=["calls", "table"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accesses by calls, and through a table: in C until something is unusual."""
    if request.param == "table":
        monkeypatch.setattr(peer_support, "client_class", peer_support.TableClient)


def test_an_access_is_one_message() -> None:
    with client_of(data(b"abcdefgh"), done) as (client, peer):
        assert client.max_width == 8
        assert client.read(2, 0x18, 8) == b"abcdefgh"
        client.write(0, 0x4, b"\1\2")
        assert [m.decode_command(one) for one in peer.seen[1:]] == [
            m.RegionRead(2, 0x18, 8),
            m.RegionWrite(0, 0x4, b"\1\2"),
        ]


@pytest.mark.parametrize("size", [1, 15, 16, 17, 31, 35])
def test_a_reply_may_come_in_pieces(size: int) -> None:
    def in_pieces(peer: Peer, message: wire.Message) -> None:
        whole = m.encode_reply(message, message.body + b"abcd")
        peer.sock.sendall(whole[:size])
        until_taken(peer.sock)
        peer.sock.sendall(whole[size:])

    with client_of(in_pieces, data(b"efgh")) as (client, _peer):
        assert client.read(0, 0, 4) == b"abcd"
        assert client.read(0, 0, 4) == b"efgh"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errno.EINVAL, InvalidAccess),
        (errno.ENODEV, DeviceGone),
        (errno.EIO, BusFault),
        (errno.EPERM, BusFault),
        (0, BusFault),
        (0xFFFFFFFF, BusFault),
    ],
)
def test_a_refused_access_says_where_it_went(error: int, kind: type[AccessError]) -> None:
    with client_of(refuse(error), data(b"a")) as (client, _peer):
        with pytest.raises(kind) as caught:
            client.read(2, 0x24, 4)
        found = caught.value
        assert (found.region, found.offset, found.width) == ("bar2", 0x24, 4)
        assert client.read(2, 0x24, 1) == b"a"


def test_a_late_reply_is_thrown_away_and_the_next_access_works() -> None:
    late: list[wire.Message] = []

    def late_then(peer: Peer, message: wire.Message) -> None:
        data(b"OLD!")(peer, late[0])
        data(b"new.")(peer, message)

    with client_of(lambda _peer, message: late.append(message), late_then, timeout=SHORT) as (
        client,
        peer,
    ):
        started = time.monotonic()
        with pytest.raises(AccessTimeout) as caught:
            client.read(1, 8, 4)
        assert SHORT <= time.monotonic() - started < 5
        assert (caught.value.region, caught.value.offset) == ("bar1", 8)
        assert client.read(1, 8, 4) == b"new."
        assert peer.seen[1].id != peer.seen[2].id


def test_half_a_late_reply_keeps_the_stream_in_step() -> None:
    halves: list[bytes] = []

    def half(peer: Peer, message: wire.Message) -> None:
        whole = m.encode_reply(message, message.body + b"OLD!")
        peer.sock.sendall(whole[:20])
        halves.append(whole[20:])

    def rest(peer: Peer, message: wire.Message) -> None:
        peer.sock.sendall(halves[0] + m.encode_reply(message, message.body + b"new."))

    with client_of(half, rest, timeout=SHORT) as (client, _peer):
        with pytest.raises(AccessTimeout):
            client.read(0, 0, 4)
        assert client.read(0, 0, 4) == b"new."


def test_a_server_that_takes_no_more_is_waited_for_no_longer_than_allowed() -> None:
    """A request without room is never sent: its access does not happen later."""

    def stuck(peer: Peer, message: wire.Message) -> None:
        peer.release.wait()
        while True:
            if message.command == wire.Number.REGION_READ:
                data(b"abcd")(peer, message)
            message = peer.receive()

    with client_of(stuck, timeout=SHORT) as (client, peer):
        peer.client_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        for offset in range(16):
            with pytest.raises(AccessTimeout):
                client.write(0, offset, b"a")
        peer.release.set()
        assert until_in_time(lambda: client.read(0, 0x100, 4)) == b"abcd"
        written = [
            command.offset
            for command in map(m.decode_command, peer.seen[1:])
            if isinstance(command, m.RegionWrite)
        ]
        assert written == list(range(len(written)))
        assert 1 < len(written) < 16


def until_in_time(access: Callable[[], bytes]) -> bytes:
    for _attempt in range(1000):
        try:
            return access()
        except AccessTimeout:
            continue
    pytest.fail("no answer in time, ever")


def test_waiting_for_another_access_counts() -> None:
    problems: list[AccessError] = []

    def wait_in_vain() -> None:
        try:
            client.read(0, 0, 4)
        except AccessError as error:
            problems.append(error)

    with client_of(lambda peer, _message: hold(peer), timeout=1) as (client, peer):
        other = threading.Thread(target=wait_in_vain)
        other.start()
        while len(peer.seen) < 2:
            time.sleep(0.001)
        started = time.monotonic()
        wait_in_vain()
        assert time.monotonic() - started < 1.8
        other.join()
        assert [type(problem) for problem in problems] == [AccessTimeout] * 2


def hold(peer: Peer) -> None:
    peer.release.wait()


def slowly(peer: Peer, message: wire.Message) -> None:
    """Answer in time, but not long before its end."""
    time.sleep(0.6)
    data(b"slow")(peer, message)


def test_waiting_for_accesses_that_are_answered_does_not_count() -> None:
    with client_of(*[slowly] * 4, timeout=1) as (client, _peer), ThreadPoolExecutor(4) as threads:
        started = time.monotonic()
        reads = [threads.submit(client.read, 0, offset, 4) for offset in range(4)]
        assert [read.result() for read in reads] == [b"slow"] * 4
        assert time.monotonic() - started > 2


def test_a_peer_that_falls_silent_is_given_up_by_all_who_wait() -> None:
    """Within the timeout after its last reply."""
    silent = [slowly, slowly, lambda peer, _message: hold(peer)]
    with client_of(*silent, timeout=1) as (client, _peer), ThreadPoolExecutor(5) as threads:
        started = time.monotonic()
        reads = [threads.submit(client.read, 0, offset, 4) for offset in range(5)]
        problems = [read.exception() for read in reads]
        assert 2.1 < time.monotonic() - started < 3
        assert sorted(type(problem).__name__ for problem in problems) == [
            "AccessTimeout",
            "AccessTimeout",
            "AccessTimeout",
            "NoneType",
            "NoneType",
        ]


def test_a_late_reply_is_one() -> None:
    """The request behind it could not be answered before it."""

    def late(peer: Peer, message: wire.Message) -> None:
        time.sleep(1.3)
        data(b"OLD!")(peer, message)

    def slow(peer: Peer, message: wire.Message) -> None:
        time.sleep(0.9)
        data(b"new.")(peer, message)

    with client_of(late, slow, timeout=1) as (client, _peer):
        with pytest.raises(AccessTimeout):
            client.read(0, 0, 4)
        assert client.read(0, 0, 4) == b"new."


@pytest.mark.parametrize("sent", [0, 8, 16, 24])
def test_a_peer_that_leaves_is_gone_for_good(sent: int) -> None:
    def leave(peer: Peer, message: wire.Message) -> None:
        peer.sock.sendall(m.encode_reply(message, message.body + b"abcd")[:sent])

    with client_of(leave) as (client, _peer):
        for _access in range(2):
            with pytest.raises(DeviceGone, match="closed the connection"):
                client.read(0, 0, 4)
        with pytest.raises(DeviceError, match=r"vfio-user:test: .*start the server again"):
            client.reset()


def test_close_ends_an_access_under_way() -> None:
    with client_of(lambda peer, _message: hold(peer), timeout=60) as (client, peer):
        problems: list[AccessError] = []

        def read() -> None:
            try:
                client.read(0, 0, 4)
            except AccessError as error:
                problems.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        while len(peer.seen) < 2:
            time.sleep(0.001)
        client.close()
        reader.join()
        assert [type(problem) for problem in problems] == [DeviceGone]
        client.close()
        with pytest.raises(DeviceGone, match="was closed"):
            client.read(0, 0, 4)


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (say_nothing, DeviceError, "closed the connection"),
        (refuse(errno.EINVAL), DeviceError, r"refused VERSION \(Invalid argument\)"),
        (refuse(0), DeviceError, "refused VERSION"),
        (reply(b""), wire.ShortBody, "VERSION"),
        (reply(struct.pack("=HH", 1, 0)), wire.BadVersion, r"speaks vfio-user 1\.0"),
        (reply(struct.pack("=HH", 0, 0) + b"{"), wire.BadJson, "JSON"),
        (header(3), wire.BadSize, "3 bytes"),
        (raw(lambda _message: b"HTTP/1.1 400 Bad Request\r\n\r\n"), PeerError, "protocol"),
    ],
)
def test_negotiation_that_fails(answer: Answer, error: type[DeviceError], text: str) -> None:
    with Peer(answer, negotiate=False) as peer, pytest.raises(error, match=text) as caught:
        connect(peer)
    assert str(caught.value).startswith("vfio-user:test: ")
    assert "\n" not in str(caught.value)


def test_a_server_that_never_answers_is_not_waited_for() -> None:
    with (
        Peer(lambda peer, _message: hold(peer), negotiate=False) as peer,
        pytest.raises(DeviceError, match="one client at a time"),
    ):
        connect(peer, timeout=SHORT)


def test_a_server_without_json_and_one_that_takes_little() -> None:
    bare = reply(struct.pack("=HH", 0, 0))
    with Peer(bare, data(b"abcd"), negotiate=False) as peer:
        client = connect(peer)
        assert client.max_width == 8
        assert client.read(0, 0, 4) == b"abcd"
        client.close()
    with client_of(version=m.Version(max_transfer=7)) as (client, _peer):
        assert client.max_width == 4


def test_where_there_is_no_server(tmp_path: Path) -> None:
    def problem(path: Path) -> str:
        with pytest.raises(DeviceError) as caught:
            VfioUserClient(str(path), bdf=BDF, source=f"vfio-user:{path}", timeout=SHORT)
        return str(caught.value)

    assert problem(tmp_path / "no").endswith(
        ": there is no such socket; start the server, or correct the path"
    )
    file = tmp_path / "file"
    file.touch()
    assert "is not a socket" in problem(file)
    assert "is not a socket" in problem(tmp_path)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
    assert "no server listens there; start it, or remove" in problem(tmp_path / "stale")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(str(tmp_path / "datagrams"))
        assert "needs a stream socket" in problem(tmp_path / "datagrams")
    assert "no such socket" in problem(tmp_path / ("x" * 200))
    for path in (tmp_path / ("x" * 256), tmp_path / ("x/" * 2200)):
        assert "a name has at most 255 bytes, a path 4095; use shorter" in problem(path)
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as other:
        full.bind(str(tmp_path / "full"))
        full.listen(0)
        other.connect(str(tmp_path / "full"))
        assert "accepts no more connections" in problem(tmp_path / "full")


def test_reset_is_done_or_refused() -> None:
    with client_of(reply(), refuse(errno.ENOTSUP)) as (client, _peer):
        client.reset()
        with pytest.raises(DeviceError, match="refused DEVICE_RESET"):
            client.reset()
