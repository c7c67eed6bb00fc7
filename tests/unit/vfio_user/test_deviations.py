# SPDX-License-Identifier: MIT
"""Servers that deviate: a bounded, unambiguous mistake costs one request, any other the device."""

import errno
import socket
import struct
import time

import pytest

from barfs.errors import (
    AccessError,
    AccessTimeout,
    BusFault,
    DeviceError,
    DeviceGone,
    InvalidAccess,
    PeerError,
    RegionError,
)
from barfs.uapi import RegionInfo
from barfs.vfio_user import wire
from tests.support import peer as peer_support
from tests.support.peer import Answer, Peer, client_of, connect, data, done, header, raw, reply

SHORT = 0.05


@pytest.fixture(params=["calls", "table"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accesses by calls, and through a table: in C until something is unusual."""
    if request.param == "table":
        monkeypatch.setattr(peer_support, "client_class", peer_support.TableClient)


def reply_with(**changes: int) -> Answer:
    """A correct reply to a read, but for some fields of its header."""

    def make(message: wire.Message) -> bytes:
        fields = {
            "identifier": message.id,
            "command": message.command,
            "flags": wire.FLAG_REPLY,
            "error": 0,
        }
        fields.update(changes)
        return wire.encode(
            fields["identifier"],
            fields["command"],
            message.body + b"abcd",
            flags=fields["flags"],
            error=fields["error"],
        )

    return raw(make)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (reply_with(identifier=999), wire.UnexpectedReply),
        (reply_with(command=10), wire.WrongCommand),
        (reply_with(identifier=999, flags=wire.FLAG_ERROR), wire.UnexpectedReply),
        (reply_with(command=10, flags=wire.FLAG_ERROR), wire.WrongCommand),
        (reply_with(flags=2), wire.BadType),
        (header(0), wire.BadSize),
        (header(15), wire.BadSize),
        (header(0xFFFFFFFF), wire.MessageTooLong),
        (reply(struct.pack("=QII", 4, 0, 4) + b"abcd"), wire.WrongPlace),
        (reply(struct.pack("=QII", 0, 3, 4) + b"abcd"), wire.WrongPlace),
    ],
)
def test_a_reply_that_cannot_be_matched_is_reported_once_and_ends_the_device(
    answer: Answer, error: type[PeerError]
) -> None:
    with client_of(answer, data(b"abcd")) as (client, _peer):
        with pytest.raises(error, match="vfio-user:test: the server broke the protocol"):
            client.read(0, 0, 4)
        with pytest.raises(DeviceGone, match="broke the protocol"):
            client.read(0, 0, 4)
        with pytest.raises(DeviceError, match="broke the protocol"):
            client.device_info()


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (header(16), "0 bytes, expected 16"),
        (reply(bytes(15)), "15 bytes, expected 16"),
        (data(b""), "count 4, but 0 bytes of data"),
        (data(b"abc"), "count 4, but 3 bytes of data"),
        (data(b"abcde"), "count 4, but 5 bytes of data"),
        (reply(struct.pack("=QII", 0, 0, 2) + b"ab"), "2 bytes instead of 4"),
        (reply(struct.pack("=QII", 0, 0, 8) + b"abcd"), "8 bytes instead of 4"),
        (reply_with(flags=0), "type of a command"),
    ],
)
def test_a_reply_with_an_invalid_body_costs_its_access(
    answer: Answer, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    with client_of(answer, answer, data(b"abcd")) as (client, _peer):
        for _access in range(2):
            with pytest.raises(BusFault, match=problem) as caught:
                client.read(0, 0, 4)
            assert (caught.value.region, caught.value.offset) == ("bar0", 0)
        assert client.read(0, 0, 4) == b"abcd"
    (told,) = caplog.messages
    assert told.startswith("vfio-user:test: the server broke the protocol: ")
    assert problem in told


def test_a_write_that_was_done_in_part_has_failed() -> None:
    with client_of(reply(struct.pack("=QII", 0, 0, 2)), done) as (client, _peer):
        with pytest.raises(BusFault, match="2 bytes instead of 4"):
            client.write(0, 0, b"abcd")
        client.write(0, 0, b"abcd")


def test_what_follows_the_answer_does_not_matter() -> None:
    with client_of(data(b""), reply(b"more")) as (client, _peer):
        client.write(0, 0, b"abcd")
        client.reset()


@pytest.mark.parametrize("flags", [0x41, wire.FLAG_REPLY | wire.FLAG_NO_REPLY, 0xFFFF_FFD1])
def test_flags_that_are_new_do_not_matter(flags: int) -> None:
    with client_of(reply_with(flags=flags, error=errno.EIO)) as (client, _peer):
        assert client.read(0, 0, 4) == b"abcd"


@pytest.mark.parametrize("flags", [wire.FLAG_ERROR, wire.FLAG_ERROR | wire.FLAG_NO_REPLY])
@pytest.mark.parametrize(("error", "kind"), [(errno.EINVAL, InvalidAccess), (0, BusFault)])
def test_an_error_reply_with_the_type_of_a_command_is_one(
    flags: int, error: int, kind: type[AccessError]
) -> None:
    """As rust-vmm's vfio-user 0.1 sends them; once with the body of the request after it."""
    refusal = raw(lambda asked: wire.encode(asked.id, asked.command, flags=flags, error=error))
    with client_of(
        refusal, reply_with(flags=flags, error=error), refusal, refusal, data(b"abcd")
    ) as (client, _peer):
        for _access in range(2):
            with pytest.raises(kind, match="the server refused it"):
                client.read(0, 0, 4)
        assert client.region_info(9) == RegionInfo(9, 0, 0, 0)
        with pytest.raises(DeviceError, match="refused DEVICE_RESET"):
            client.reset()
        assert client.read(0, 0, 4) == b"abcd"


def test_a_negotiation_refused_with_the_type_of_a_command_says_why() -> None:
    refusal = raw(lambda asked: wire.encode(asked.id, 1, flags=wire.FLAG_ERROR, error=22))
    with (
        Peer(refusal, negotiate=False) as peer,
        pytest.raises(DeviceError, match="refused VERSION"),
    ):
        connect(peer)


def test_a_reply_after_its_time_may_be_an_error_of_either_type() -> None:
    late: list[wire.Message] = []

    def late_then(peer: Peer, message: wire.Message) -> None:
        peer.sock.sendall(wire.encode(late[0].id, late[0].command, flags=wire.FLAG_ERROR))
        data(b"new.")(peer, message)

    with client_of(lambda _peer, message: late.append(message), late_then, timeout=SHORT) as (
        client,
        _peer,
    ):
        with pytest.raises(AccessTimeout):
            client.read(1, 8, 4)
        assert client.read(1, 8, 4) == b"new."


def dma(number: int, identifier: int, size: int = 0, *, flags: int = 0) -> bytes:
    """DMA_READ or DMA_WRITE as a server sends it: an address, a count, and data."""
    body = struct.pack("=QQ", 0x1000, size) + bytes(size)
    return wire.encode(identifier, number, body, flags=flags)


COMMANDS = [
    pytest.param(dma(wire.Number.DMA_READ, 7), id="DMA_READ"),
    pytest.param(dma(wire.Number.DMA_WRITE, 7, 64), id="DMA_WRITE"),
    pytest.param(dma(wire.Number.DMA_WRITE, 7, 1 << 20), id="as much as was advertised"),
    pytest.param(dma(wire.Number.DMA_READ, 3), id="with the id of a request"),
    pytest.param(wire.encode(7, 99, b"what is this"), id="unknown"),
    pytest.param(wire.encode(7, wire.Number.VERSION), id="no command of a server"),
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("ask", ["read", "reset"])
def test_a_command_of_the_server_is_refused_and_nothing_else(command: bytes, ask: str) -> None:
    """During a request, when the server waits for the answer before it goes on, and between two."""
    refusals: list[wire.Message] = []
    good = data(b"abcd") if ask == "read" else reply()

    def during_and_after(peer: Peer, message: wire.Message) -> None:
        peer.sock.sendall(command)
        refusals.append(peer.receive())
        good(peer, message)
        peer.sock.sendall(command)

    def before(peer: Peer, message: wire.Message) -> None:
        refusals.append(peer.receive())
        good(peer, message)

    with client_of(during_and_after, before) as (client, _peer):
        for _access in range(2):
            if ask == "read":
                assert client.read(0, 0, 4) == b"abcd"
            else:
                client.reset()
    assert len(refusals) == 2
    identifier, number, *_rest = wire.HEADER.unpack_from(command)
    for refusal in refusals:
        assert (refusal.id, refusal.command) == (identifier, number)
        assert (refusal.is_reply, refusal.is_error, refusal.error) == (True, True, errno.EINVAL)
        assert refusal.body == b""


def test_a_command_that_wants_no_reply_gets_none() -> None:
    def with_a_command(peer: Peer, message: wire.Message) -> None:
        peer.sock.sendall(dma(wire.Number.DMA_WRITE, 7, 4, flags=wire.FLAG_NO_REPLY))
        data(b"abcd")(peer, message)

    with client_of(with_a_command, data(b"efgh")) as (client, peer):
        assert client.read(0, 0, 4) == b"abcd"
        assert client.read(0, 0, 4) == b"efgh"
        assert [one.command for one in peer.seen] == [1, 9, 9]


def test_a_server_that_only_commands_is_not_waited_for() -> None:
    def command(peer: Peer, _message: wire.Message) -> None:
        while not peer.release.is_set():
            peer.sock.sendall(dma(wire.Number.DMA_READ, 7))
            peer.receive()

    with client_of(command, timeout=SHORT) as (client, _peer):
        started = time.monotonic()
        with pytest.raises(AccessTimeout, match="sends commands but does not answer"):
            client.read(0, 0, 4)
        assert time.monotonic() - started < 5


def test_a_server_that_commands_and_never_receives_is_given_up() -> None:
    def command(peer: Peer, _message: wire.Message) -> None:
        while True:
            peer.sock.sendall(dma(wire.Number.DMA_READ, 7) * 100)

    with client_of(command) as (client, peer):
        peer.client_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        with pytest.raises(wire.TooManyCommands, match="DMA_READ after DMA_READ"):
            client.read(0, 0, 4)
        with pytest.raises(DeviceGone, match="DMA_READ after DMA_READ"):
            client.read(0, 0, 4)


@pytest.mark.parametrize(
    "body",
    [
        struct.pack("=IIIIQQ", 32, 3, 2, 0, 1 << 63, 0),
        struct.pack("=IIIIQQ", 32, 3, 2, 0, 0x1000, 0)[:-1],
        b"",
    ],
)
def test_an_impossible_region_alone_is_left_out(body: bytes) -> None:
    good = reply(struct.pack("=IIIIQQ", 32, 3, 3, 0, 0x1000, 0))
    with client_of(reply(body), good) as (client, _peer):
        with pytest.raises(RegionError, match="vfio-user:test: the server broke the protocol"):
            client.region_info(2)
        assert client.region_info(3).size == 0x1000


def test_a_region_of_another_index_ends_the_device() -> None:
    good = reply(struct.pack("=IIIIQQ", 32, 3, 3, 0, 0x1000, 0))
    with client_of(good, good) as (client, _peer):
        with pytest.raises(wire.WrongIndex):
            client.region_info(2)
        with pytest.raises(DeviceError, match="broke the protocol"):
            client.region_info(3)


def test_a_server_that_sets_no_argsz_has_described_its_region() -> None:
    with client_of(reply(struct.pack("=IIIIQQ", 0, 3, 2, 0, 0x1000, 0))) as (client, _peer):
        assert client.region_info(2) == RegionInfo(2, 3, 0x1000, 0)
