# SPDX-License-Identifier: MIT
"""A hostile vfio-user client harms only itself: `barfs serve` goes on, and keeps nothing of it."""

import contextlib
import errno
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from barfs.vfio_user import messages as m
from barfs.vfio_user import wire
from barfs.vfio_user.dma import MOST_RANGES
from tests.support import Served, served, wait_until
from tests.support.raw import RawClient, connection, encode_command

from .conftest import Campaign
from .mutations import mutate
from .rig import rss

RAM = Path(__file__).with_name("ram.toml")
MOST = 1 << 20
"""The most that the server transfers in one access."""
GROWTH = 12 << 20
"""More than a few messages of that size, and less than one for each hostile client."""

COMMANDS: tuple[m.Command, ...] = (
    m.Version(),
    m.DmaMap(3, 0, 0, 0x1000),
    m.DmaUnmap(0, 0, 0x1000),
    m.GetInfo(),
    m.GetRegionInfo(0, 32),
    m.GetRegionInfo(2, 4096),
    m.IrqInfo(2),
    m.SetIrqs(0x24, 3, 0, 1, b"\xff\xff\xff\xff"),
    m.RegionRead(0, 0x2000, 8),
    m.RegionRead(2, 0, 4096),
    m.RegionWrite(0, 0x8000, b"abcd"),
    m.Reset(),
)


@dataclass
class Target:
    """A server, and what it held before the hostile clients."""

    server: Served
    files: int
    memory: int

    @property
    def path(self) -> Path:
        return self.server.socket

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.server.process.pid}/fd"))

    def rss(self) -> int:
        return rss(self.server.process.pid)

    def assert_unharmed(self) -> None:
        assert self.server.process.poll() is None
        be_good(self.path)
        wait_until(
            lambda: self.open_files() <= self.files, f"{self.open_files()} open files to be closed"
        )
        assert self.rss() - self.memory < GROWTH


def be_good(path: Path) -> None:
    """A client as it should be, which finds everything in order; also the largest transfer."""
    with connection(path) as sock:
        client = RawClient(sock)
        assert client.read(7, 0, 4) == b"\x34\x12\x11\x0a"
        data = os.urandom(MOST)
        client.get(m.RegionWrite(2, 0, data))
        assert client.read(2, 0, MOST) == data
        client.get(m.RegionWrite(0, 0x9FFC, b"01234567"))
        assert client.read(0, 0x9FFC, 8) == b"01234567"


@pytest.fixture(scope="module")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with served(tmp_path_factory.mktemp("server"), RAM) as server:
        target = Target(server, 0, 0)
        be_good(target.path)
        # The connection of the last client may still be there: its end has to arrive first.
        with connection(target.path) as sock:
            RawClient(sock)
            target.files = target.open_files() - 1
        target.memory = target.rss()
        yield target


@pytest.fixture
def target(_server: Target) -> Iterator[Target]:
    yield _server
    _server.assert_unharmed()


@contextlib.contextmanager
def negotiated(path: Path) -> Iterator[socket.socket]:
    with connection(path) as sock:
        RawClient(sock)
        yield sock


def send_all(sock: socket.socket, data: bytes) -> None:
    """Send what the server takes, before it throws this client out, if it does."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(data)


def assert_thrown_out(sock: socket.socket) -> None:
    with contextlib.suppress(ConnectionResetError):
        assert sock.recv(1) == b""


def test_random_commands(campaign: Campaign, target: Target) -> None:
    source = random.Random(11)
    good = [encode_command(5, command) for command in COMMANDS]
    clients, sent, started = campaign.size(300, 100_000), 0, time.perf_counter()
    for _client in range(clients):
        with connection(target.path) as sock:
            if source.random() < 0.9:
                send_all(sock, good[0])
            for _message in range(source.randrange(12)):
                send_all(sock, mutate(source, source.choice(good)))
                sent += 1
            if source.random() < 0.3:
                sock.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    while sock.recv(1 << 16):
                        pass
    each = (time.perf_counter() - started) / max(sent, 1)
    target.assert_unharmed()
    campaign.report(
        "hostile commands",
        f"{sent} by {clients} clients, {1e6 * each:.0f} us each; fds "
        f"+{target.open_files() - target.files}, RSS +{(target.rss() - target.memory) >> 10} KiB",
    )


def test_a_stream_may_end_at_every_byte(target: Target) -> None:
    version = encode_command(1, m.Version())
    for command in COMMANDS:
        whole = encode_command(2, command)
        for length in range(len(whole)):
            with connection(target.path) as sock:
                send_all(sock, version + whole[:length])


@pytest.mark.parametrize("size", [0, 15, wire.SERVER_LIMIT + 1, 1 << 31, 0xFFFF_FFFF])
@pytest.mark.parametrize("command", [1, 2, 8, 9, 10, 0xFFFF])
def test_sizes_that_cannot_be_end_the_connection(target: Target, size: int, command: int) -> None:
    with negotiated(target.path) as sock:
        sock.sendall(wire.HEADER.pack(1, command, size, 0, 0))
        assert_thrown_out(sock)


def test_giants(campaign: Campaign, target: Target) -> None:
    """Announced and not sent, sent and too long by a byte, asked for and never taken."""
    most = 0
    for _time in range(campaign.size(3, 100)):
        with negotiated(target.path) as sock:
            sock.sendall(wire.HEADER.pack(1, 10, wire.SERVER_LIMIT, 0, 0) + bytes(MOST // 2))
        with negotiated(target.path) as sock:
            send_all(sock, encode_command(1, m.RegionWrite(2, 0, bytes(MOST + 1))))
            assert_thrown_out(sock)
        with negotiated(target.path) as sock:
            header = wire.HEADER.pack(1, 1, wire.SERVER_LIMIT, 0, 0)
            sock.sendall(header + bytes(wire.SERVER_LIMIT - wire.HEADER.size))
            assert RawClient(sock, negotiate=False).receive().is_error
        with negotiated(target.path) as sock:
            client = RawClient(sock, negotiate=False)
            for count in (MOST + 1, 1 << 31, 0xFFFF_FFFF):
                assert client.ask(m.RegionRead(2, 0, count)).is_error
        most = max(most, target.rss() - target.memory)
    campaign.report("hostile giants", f"RSS +{most >> 10} KiB at most")


def test_a_client_that_takes_no_replies(campaign: Campaign, target: Target) -> None:
    """All that it can make the server hold is one reply, and what the socket holds."""
    request = encode_command(1, m.RegionRead(2, 0, MOST))
    for _client in range(campaign.size(3, 200)):
        with negotiated(target.path) as sock:
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.send(request * 100)
            assert target.rss() - target.memory < GROWTH


def attack_with_descriptors(sock: socket.socket, count: int, request: bytes) -> None:
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
    try:
        socket.send_fds(sock, [request], fds)
    finally:
        for fd in fds:
            os.close(fd)


def test_floods_of_descriptors(campaign: Campaign, target: Target) -> None:
    """With whatever message, and also with single bytes of one: none is ever taken."""
    source, sent = random.Random(12), 0
    requests = [encode_command(77, command) for command in COMMANDS[1:]]
    for _client in range(campaign.size(20, 1_000)):
        with negotiated(target.path) as sock:
            for _message in range(10):
                request = source.choice(requests)
                count = source.choice((1, 2, 8, 64, 253))
                if source.random() < 0.3:
                    attack_with_descriptors(sock, count, request[:1])
                    attack_with_descriptors(sock, count, request[1:])
                else:
                    attack_with_descriptors(sock, count, request)
                sent += count
                RawClient(sock, negotiate=False).receive()
            # The connection and this side's end are all there is.
            assert target.open_files() == target.files + 1
    campaign.report(
        "floods of descriptors", f"{sent} sent, {target.open_files() - target.files} kept"
    )


BAD_IRQS = [
    (index, start, count)
    for index in (0, 1, 2, 3, 4, 5, 0xFFFF_FFFF)
    for start, count in (
        (0, 0xFFFF_FFFF),
        (0xFFFF_FFFF, 1),
        (0xFFFF_FFFF, 0xFFFF_FFFF),
        (1, 1),
        (0x8000_0000, 0x8000_0000),
    )
]


def test_interrupts_that_are_not_there(target: Target) -> None:
    with negotiated(target.path) as sock:
        client = RawClient(sock, negotiate=False)
        for index, start, count in BAD_IRQS:
            for flags in (0x24, 0x22, 0x21, 0, 0xFFFF_FFFF):
                for data in (b"", b"\xff", bytes(4096)):
                    found = client.ask(m.SetIrqs(flags, index, start, count, data))
                    assert (found.error, found.body) == (22, b"")


def test_mappings_of_everything(campaign: Campaign, target: Target) -> None:
    """A device that does no DMA keeps a list of what it was offered, of bounded length."""
    with negotiated(target.path) as sock:
        client = RawClient(sock, negotiate=False)
        for number in range(campaign.size(500, MOST_RANGES + 500)):
            found = client.ask(m.DmaMap(3, 1 << 63, number << 40, 1 << 40))
            assert found.error == (errno.ENOSPC if number >= MOST_RANGES else 0)
            assert client.ask(m.DmaMap(3, 1 << 63, number << 40, (1 << 64) - 1)).is_error
        for size in (0, 1 << 63, (1 << 64) - 1):
            client.ask(m.DmaUnmap(0xFFFF_FFFF, size, size))
        client.send(wire.Number.DMA_MAP, struct.pack("=IIQQQ", 0, 0, 0, 0, 0))
        assert client.receive().is_error


def test_a_storm_of_connections(campaign: Campaign, target: Target) -> None:
    count, started = campaign.size(500, 50_000), time.perf_counter()
    version = encode_command(1, m.Version())
    for number in range(count):
        with connection(target.path) as sock:
            if number % 3:
                send_all(sock, version[: number % len(version)])
    target.assert_unharmed()
    each = (time.perf_counter() - started) / count
    campaign.report("connections come and go", f"{count}, {1e6 * each:.0f} us each")


def in_a_message(sock: socket.socket) -> None:
    sock.sendall(encode_command(1, m.RegionRead(0, 0, 4))[:20])


def before_version(sock: socket.socket) -> None:
    sock.sendall(b"\1")


def full_of_replies(sock: socket.socket) -> None:
    RawClient(sock, negotiate=False).send(9, m.RegionRead(2, 0, MOST).body())


@pytest.mark.parametrize(
    ("stall", "negotiate"),
    [(in_a_message, True), (before_version, False), (full_of_replies, True)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_who_waits_for_a_stalled_client_is_served_when_it_leaves(
    target: Target, stall: Callable[[socket.socket], None], negotiate: bool
) -> None:
    with connection(target.path) as first, connection(target.path) as second:
        RawClient(first, negotiate=negotiate)
        stall(first)
        waiting = RawClient(second, negotiate=False)
        waiting.send(wire.Number.VERSION, m.Version().body())
        second.settimeout(0.05)
        with pytest.raises(TimeoutError):
            waiting.receive()
        second.settimeout(30)
        first.close()
        assert waiting.receive().command == wire.Number.VERSION
        assert waiting.read(7, 0, 4) == b"\x34\x12\x11\x0a"
