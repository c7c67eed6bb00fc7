# SPDX-License-Identifier: MIT
"""A hostile vfio-user server is harmless: the malformations that have a name, one by one.

What is refused is refused in time, and no descriptor that came with it stays open.
"""

import errno
import json
import os
import signal
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from barfs.device import REGION_LIMIT, Device, Options
from barfs.errors import BarfsError, BusFault, DeviceError, PeerError
from barfs.layout import plan
from barfs.uapi import (
    DeviceInfo,
    RegionInfo,
    encode_region_info,
)
from barfs.vfio_user import messages as m
from barfs.vfio_user import wire
from tests.support import mounted, wait_until
from tests.support.peer import (
    Peer,
    client_of,
    connect,
    raw,
    reply,
)

from .exchanges import AREAS, EXCHANGES, PAGE, WHOLE, assert_closed, open_files, perform
from .test_hostile_server import MAPPINGS


def info_reply(fields: tuple[int, ...], chain: bytes = b"") -> bytes:
    return struct.pack("=IIIIQQ", *fields) + chain


def sparse(count: int, *areas: tuple[int, int]) -> bytes:
    pairs = b"".join(struct.pack("=QQ", *area) for area in areas)
    return struct.pack("=HHIII", 1, 1, 0, count, 0) + pairs


def region_of(chain: bytes, size: int = 0x10000) -> bytes:
    return info_reply((32 + len(chain), 0xF, 2, 32, size, 0), chain)


NO_WINDOWS = {
    "an area outside": region_of(sparse(1, (0xF000, 0x2000))),
    "an area far outside": region_of(sparse(1, (1 << 63, 1 << 63))),
    "an area around the end of the numbers": region_of(sparse(1, ((1 << 64) - 1, 2))),
    "areas that overlap": region_of(sparse(2, (0, 0x2000), (0x1000, 0x2000))),
    "an area twice": region_of(sparse(2, (0, 0x1000), (0, 0x1000))),
    "no areas": region_of(sparse(0)),
    "empty areas only": region_of(sparse(2, (0, 0), (0x1000, 0))),
    "more areas than came": region_of(sparse(3, (0, 0x1000))),
    "four milliards of areas": region_of(sparse(0xFFFF_FFFF, (0, 0x1000))),
    "a chain that bites its tail": region_of(struct.pack("=HHI", 9, 1, 32)),
    "a chain into the fixed part": region_of(struct.pack("=HHI", 9, 1, 16)),
    "a chain out of the message": region_of(struct.pack("=HHI", 9, 1, 4096)),
    "a sparse capability of tomorrow": region_of(struct.pack("=HHIII", 1, 2, 0, 1, 0)),
    "the flag CAPS alone": info_reply((32, 0xF, 2, 0, 0x10000, 0)),
    "argsz beyond the message": info_reply((4096, 0xF, 2, 32, 0x10000, 0), sparse(1, (0, 4096))),
}


@pytest.mark.parametrize("name", NO_WINDOWS)
def test_a_chain_that_cannot_be_believed_gives_no_windows(name: str) -> None:
    """Each with a descriptor that could be mapped: it is closed, and the region is all messages."""

    def answer(peer: Peer, message: wire.Message) -> None:
        fd = os.memfd_create("hostile")
        os.ftruncate(fd, 0x10000)
        socket.send_fds(peer.sock, [m.encode_reply(message, NO_WINDOWS[name])], [fd])
        os.close(fd)

    files = open_files()
    with client_of(answer) as (client, _peer):
        layout = plan(
            client.region_info(2),
            device="hostile",
            options=Options().plan_options,
            page_size=PAGE,
            gap_width=8,
        )
        assert not layout.windows
        assert layout.segments[-1].end == 0x10000
    assert_closed(files)


def version(text: bytes) -> bytes:
    return struct.pack("=HH", 0, 0) + text + b"\0"


BAD_VERSIONS: dict[str, tuple[bytes, type[PeerError]]] = {
    "no JSON": (version(b"\x80\x81garbage"), wire.BadJson),
    "a list": (version(b"[1, 2, 3]"), wire.BadJson),
    "huge": (version(b'{"capabilities":{"x":"' + b"y" * 60_000 + b'"}}'), wire.BadJson),
    "huge, and no JSON": (version(b"\xff" * 60_000), wire.BadJson),
    "deep": (version(b"[" * 16_000), wire.BadJson),
    "deep objects": (version(b'{"a":' * 3_000 + b"1" + b"}" * 3_000), wire.BadJson),
    "a number without end": (version(b'{"capabilities":' + b"9" * 9_000 + b"}"), wire.BadJson),
    "a transfer of nothing": (
        version(json.dumps({"capabilities": {"max_data_xfer_size": 0}}).encode()),
        wire.BadCapability,
    ),
    "another major": (struct.pack("=HH", 1, 0), wire.BadVersion),
    "half a number": (b"\0\0\0", wire.ShortBody),
    "larger than believable": (bytes(wire.CLIENT_LIMIT), wire.MessageTooLong),
}


@pytest.mark.parametrize("name", BAD_VERSIONS)
def test_a_version_that_is_no_version(name: str) -> None:
    body, error = BAD_VERSIONS[name]
    started = time.monotonic()
    with Peer(reply(body), negotiate=False) as peer, pytest.raises(error, match="vfio-user:test"):
        connect(peer)
    assert time.monotonic() - started < 2


def test_more_regions_than_believable() -> None:
    for regions in (REGION_LIMIT + 1, 0xFFFF_FFFF):
        info = DeviceInfo(3, regions, 5).encode()
        with (
            Peer(reply(info)) as peer,
            pytest.raises(DeviceError, match=r"claims .* regions, more than 256"),
        ):
            Device(connect(peer))


def test_a_giant_region_is_offered_or_refused(tmp_path: Path) -> None:
    """As large as a file can be, in one reserved range: the address space is smaller than that."""
    sizes = (1 << 40, 1 << 47, (1 << 63) - PAGE, (1 << 63) - 1)

    def answer(peer: Peer, message: wire.Message) -> None:
        command = m.decode_command(message)
        if isinstance(command, m.GetInfo):
            body = DeviceInfo(3, len(sizes), 0).encode()
        else:
            assert isinstance(command, m.GetRegionInfo)
            body = encode_region_info(
                RegionInfo(command.index, 0xF, sizes[command.index], 0, areas=AREAS)
            )
        fd = os.memfd_create("hostile")
        os.ftruncate(fd, 0x6000)
        socket.send_fds(peer.sock, [m.encode_reply(message, body)], [fd])
        os.close(fd)

    for mapping in MAPPINGS:
        with (
            Peer(*[answer] * (1 + len(sizes)), raw(lambda _message: b"")) as peer,
            Device(connect(peer, 1), Options(mapping)) as device,
        ):
            assert [device[name].size for name in device] == list(sizes)
            if mapping != "off":
                assert device["bar0"].read(0x1000, 8) == bytes(8)


def test_memory_that_is_taken_away_is_a_fault() -> None:
    """A file that nothing keeps from being cut, and is: an access fails, the process does not."""
    fd = os.memfd_create("hostile")
    os.ftruncate(fd, PAGE)
    config = RegionInfo(2, 7, PAGE, 0)

    def answer(peer: Peer, message: wire.Message) -> None:
        command = m.decode_command(message)
        if isinstance(command, m.GetInfo):
            peer.sock.sendall(m.encode_reply(message, DeviceInfo(3, 3, 0).encode()))
        elif isinstance(command, m.GetRegionInfo) and command.index == 2:
            socket.send_fds(peer.sock, [m.encode_reply(message, encode_region_info(config))], [fd])
        else:
            peer.sock.sendall(m.encode_error(message, errno.EINVAL))

    with Peer(*[answer] * 4) as peer, Device(connect(peer)) as device:
        assert device["bar2"].read(0, 4) == bytes(4)
        os.ftruncate(fd, 0)
        for offset in range(0, PAGE, 8):
            with pytest.raises(BusFault):
                device["bar2"].read(offset, 8)
            with pytest.raises(BusFault):
                device["bar2"].write64(offset, 1)
        os.ftruncate(fd, PAGE)
        assert device["bar2"].read(0, 4) == bytes(4)
    os.close(fd)


def test_a_file_of_a_file_system_that_does_not_answer(tmp_path: Path) -> None:
    """A file of a FUSE mount whose process is stopped: neither mapped nor asked for anything."""
    with mounted(tmp_path, "demo") as mount:
        fd = os.open(mount.device() / "bar2", os.O_RDWR)

        def answer(peer: Peer, message: wire.Message) -> None:
            body = encode_region_info(WHOLE)
            socket.send_fds(peer.sock, [m.encode_reply(message, body)], [fd])

        try:
            mount.process.send_signal(signal.SIGSTOP)
            started = time.monotonic()
            with client_of(answer) as (client, _peer):
                assert client.region_fd(2) == "bad-descriptor"
            assert time.monotonic() - started < 2
            # The copy that came: its close waits for the mount, in the background.
            assert "barfs-close" in [thread.name for thread in threading.enumerate()]
        finally:
            mount.process.send_signal(signal.SIGCONT)
            os.close(fd)
            wait_until(
                lambda: "barfs-close" not in [thread.name for thread in threading.enumerate()],
                "the descriptor's close",
            )


def test_the_numbers_of_refusals() -> None:
    """Error replies with any errno, also with none, to whatever is asked."""
    for number in (0, 1, errno.EINVAL, errno.EINTR, 133, 134, 4095, 0x7FFF_FFFF, 0xFFFF_FFFF):

        def refuse(message: wire.Message, number: int = number) -> bytes:
            return m.encode_error(message, number)

        for exchange in EXCHANGES[1:]:
            with client_of(raw(refuse)) as (client, _peer):
                if isinstance(exchange.command, m.GetRegionInfo) and number in (0, errno.EINVAL):
                    assert perform(client, exchange.command) == RegionInfo(2, 0, 0, 0)
                    continue
                with pytest.raises(BarfsError, match="refused"):
                    perform(client, exchange.command)
