# SPDX-License-Identifier: MIT
"""The vfio-user server over real sockets: QEMU's requests, and invalid ones."""

import contextlib
import errno
import mmap
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from barfs.emulated.device import SoftwareDevice
from barfs.emulated.spec import Content, DeviceSpec, RegionSpec
from barfs.pci import CONFIG_INDEX
from barfs.uapi import decode_region_info
from barfs.vfio_user import messages as m
from barfs.vfio_user import wire
from barfs.vfio_user.client import VfioUserClient
from barfs.vfio_user.session import Session
from tests.support.raw import RawClient, connection

EINVAL = 22
MMAP = 4
CAPS = 8


def test_what_qemu_asks_when_it_attaches_a_device(raw: RawClient) -> None:
    """The order and the forms of QEMU's hw/vfio-user."""
    assert raw.get(m.DmaMap(3, 0, 0, 0x8000_0000)) == b""
    assert struct.unpack("=IIII", raw.get(m.GetInfo())) == (16, 3, 9, 5)
    sizes = []
    for index in (0, 1, 2, 3, 4, 5, 7):
        bare = raw.get(m.GetRegionInfo(index, 32))
        assert len(bare) == 32
        argsz = int.from_bytes(bare[:4], sys.byteorder)
        whole = raw.get(m.GetRegionInfo(index, argsz))
        assert len(whole) == argsz
        sizes.append(decode_region_info(whole).size)
    assert sizes == [0x10000, 0, 0x100000, 0, 64, 0x4000, 4096]
    counts = [struct.unpack("=IIII", raw.get(m.IrqInfo(index)))[3] for index in range(5)]
    assert counts == [0, 0, 4, 1, 1]
    assert len(raw.read(7, 0, 4096)) == 4096
    assert raw.get(m.SetIrqs(0x24, 3, 0, 1, b"\xff" * 4)) == b""
    assert raw.get(m.Reset()) == b""
    for width in (1, 2, 4):
        assert raw.read(7, 0, width) == b"\x34\x12\x5f\xba"[:width]
    before = raw.read(7, 0x10, 4)
    raw.get(m.RegionWrite(7, 0x10, b"\xff" * 4))
    assert raw.read(7, 0x10, 4) == (0xFFFF_0000).to_bytes(4, "little")
    raw.get(m.RegionWrite(7, 0x10, before))
    assert raw.read(7, 0x10, 4) == before
    assert raw.get(m.DmaUnmap(0, 0, 0x8000_0000)) == m.DmaUnmap(0, 0, 0x8000_0000).body()


def test_region_info_that_does_not_fit_has_no_chain_and_no_descriptor(raw: RawClient) -> None:
    request = m.GetRegionInfo(0, 32)
    raw.send(request.NUMBER, request.body())
    data, fds, _flags, _address = socket.recv_fds(raw.sock, 4096, 4)
    assert fds == []
    argsz, flags, _index, cap_offset, size, _offset = struct.unpack("=IIIIQQ", data[16:])
    assert (argsz > 32, flags & CAPS, flags & MMAP, cap_offset, size) == (True, 0, MMAP, 0, 0x10000)


@pytest.mark.parametrize("max_fds", [0, 1])
def test_a_descriptor_goes_only_to_a_client_that_takes_it(path: Path, max_fds: int) -> None:
    with connection(path) as sock:
        raw = RawClient(sock, negotiate=False)
        raw.ask(m.Version(max_fds=max_fds))
        request = m.GetRegionInfo(0, 4096)
        raw.send(request.NUMBER, request.body())
        _data, fds, _flags, _address = socket.recv_fds(sock, 4096, 4)
        assert len(fds) == max_fds
        for fd in fds:
            os.close(fd)


@contextlib.contextmanager
def window(client: VfioUserClient, index: int) -> Iterator[mmap.mmap]:
    info, fd = client.region_info(index), client.region_fd(index)
    assert isinstance(fd, int)
    with mmap.mmap(fd, info.size, offset=info.offset) as mapped:
        yield mapped


@pytest.mark.parametrize("index", [0, 2])
def test_windows_and_messages_see_the_same_bytes(client: VfioUserClient, index: int) -> None:
    with window(client, index) as mapped:
        for width in (1, 2, 4, 8):
            value = bytes(range(0x11, 0x11 + width))
            client.write(index, 0x1100, value)
            assert mapped[0x1100 : 0x1100 + width] == value
            mapped[0x1100 : 0x1100 + width] = value[::-1]
            assert client.read(index, 0x1100, width) == value[::-1]


def test_the_state_stays_when_clients_come_and_go(path: Path) -> None:
    with connection(path) as sock:
        RawClient(sock).get(m.RegionWrite(0, 4, b"kept"))
    with connection(path) as sock:
        raw = RawClient(sock)
        assert raw.read(0, 4, 4) == b"kept"
        raw.get(m.Reset())
        assert raw.read(0, 4, 4) == bytes(4)


def region(name: str, value: int) -> bytes:
    fields = {"argsz": 32, "index": 0, name: value}
    return struct.pack("=IIIIQQ", fields["argsz"], 0, fields["index"], 0, 0, 0)


BAD_REQUESTS: list[tuple[int, bytes]] = [
    (0, b""),
    (6, bytes(16)),
    (15, bytes(16)),
    (0xFFFF, b""),
    (wire.Number.VERSION, m.Version().body()),
    (wire.Number.DMA_MAP, bytes(31)),
    (wire.Number.DEVICE_GET_INFO, bytes(16)),
    (wire.Number.DEVICE_GET_INFO, b"\x10\0\0\0"),
    (wire.Number.DEVICE_GET_REGION_INFO, region("argsz", 31)),
    (wire.Number.DEVICE_GET_REGION_INFO, region("index", 9)),
    (wire.Number.DEVICE_GET_REGION_INFO, region("index", 0xFFFFFFFF)),
    (wire.Number.DEVICE_GET_IRQ_INFO, m.IrqInfo(5).body()),
    (wire.Number.DEVICE_SET_IRQS, m.SetIrqs(0x24, 5, 0, 1).body()),
    (wire.Number.REGION_READ, bytes(15)),
    (wire.Number.REGION_READ, m.RegionRead(1, 0, 4).body()),
    (wire.Number.REGION_READ, m.RegionRead(99, 0, 4).body()),
    (wire.Number.REGION_READ, m.RegionRead(0, 0xFFFE, 4).body()),
    (wire.Number.REGION_READ, m.RegionRead(0, (1 << 64) - 1, 4).body()),
    (wire.Number.REGION_READ, m.RegionRead(2, 0, 0xFFFFFFFF).body()),
    (wire.Number.REGION_READ, m.RegionRead(0, 2, 4).body()),
    (wire.Number.REGION_READ, m.RegionRead(0, 0xFFC, 8).body()),
    (wire.Number.REGION_READ, m.RegionRead(0, 0, 16).body()),
    (wire.Number.REGION_READ, m.RegionRead(4, 0x3C, 8).body()),
    (wire.Number.REGION_READ, m.RegionRead(4, 2, 4).body()),
    (wire.Number.REGION_WRITE, m.RegionWrite(6, 0, b"abcd").body()),
    (wire.Number.REGION_WRITE, m.RegionWrite(0, 0x10000, b"a").body()),
    (wire.Number.REGION_WRITE, m.RegionWrite(0, 0, b"abcd").body()[:-1]),
    (wire.Number.REGION_WRITE, m.RegionWrite(0, 0, b"abcd").body() + b"e"),
    (wire.Number.DEVICE_RESET, b"x"),
]


@pytest.mark.parametrize(("command", "body"), BAD_REQUESTS)
def test_a_bad_request_is_refused_and_the_next_one_answered(
    raw: RawClient, command: int, body: bytes
) -> None:
    raw.send(command, body)
    found = raw.receive()
    assert (found.id, found.command, found.is_error, found.error) == (77, command, True, EINVAL)
    assert found.body == b""
    assert raw.read(0, 0, 4) == b"barf"


def test_an_access_of_nothing_succeeds_with_a_header(raw: RawClient) -> None:
    assert raw.get(m.RegionRead(0, 0, 0)) == b""
    assert raw.get(m.RegionWrite(0, 0, b"")) == b""


NONE, BOOL, EVENTFD = 1, 2, 4
MASK, UNMASK, TRIGGER = 8, 16, 32
INTX, MSI, MSIX, ERR, REQ = range(5)

BAD_IRQS = {
    "no flags": m.SetIrqs(0, MSIX, 0, 1),
    "no action": m.SetIrqs(NONE, MSIX, 0, 1),
    "no data": m.SetIrqs(TRIGGER, MSIX, 0, 1),
    "two types of data": m.SetIrqs(NONE | BOOL | TRIGGER, MSIX, 0, 1, b"\1"),
    "eventfds and booleans": m.SetIrqs(BOOL | EVENTFD | TRIGGER, MSIX, 0, 1, b"\1"),
    "eventfds and nothing": m.SetIrqs(NONE | EVENTFD | TRIGGER, MSIX, 0, 1),
    "two actions": m.SetIrqs(NONE | MASK | UNMASK, MSIX, 0, 1),
    "all actions": m.SetIrqs(NONE | MASK | UNMASK | TRIGGER, MSIX, 0, 1),
    "a new flag": m.SetIrqs(NONE | TRIGGER | 0x40, MSIX, 0, 1),
    "too few booleans": m.SetIrqs(BOOL | TRIGGER, MSIX, 0, 2, b"\1"),
    "too many booleans": m.SetIrqs(BOOL | TRIGGER, MSIX, 0, 2, b"\1\1\1"),
    "data with none": m.SetIrqs(NONE | TRIGGER, MSIX, 0, 1, b"\1"),
    "half a descriptor": m.SetIrqs(EVENTFD | TRIGGER, MSIX, 0, 1, b"\1\1"),
    "too many descriptors": m.SetIrqs(EVENTFD | TRIGGER, MSIX, 0, 1, bytes(8)),
    "beyond the last": m.SetIrqs(NONE | TRIGGER, MSIX, 4, 1),
    "across the last": m.SetIrqs(NONE | TRIGGER, MSIX, 3, 2),
    "from beyond the last": m.SetIrqs(NONE | TRIGGER, MSIX, 5, 0),
    "around the end of the numbers": m.SetIrqs(NONE | TRIGGER, MSIX, 0xFFFFFFFF, 2),
    "as many as there are numbers": m.SetIrqs(NONE | TRIGGER, MSIX, 1, 0xFFFFFFFF),
    "more errors than one": m.SetIrqs(NONE | TRIGGER, ERR, 0, 2),
    "a masked error": m.SetIrqs(NONE | MASK, ERR, 0, 1),
    "an unmasked request": m.SetIrqs(NONE | UNMASK, REQ, 0, 1),
    "disabled from the second on": m.SetIrqs(NONE | TRIGGER, MSIX, 1, 0),
    "none masked": m.SetIrqs(NONE | MASK, MSIX, 0, 0),
    "none with booleans": m.SetIrqs(BOOL | TRIGGER, MSIX, 0, 0),
    "none with eventfds": m.SetIrqs(EVENTFD | TRIGGER, MSIX, 0, 0),
    "an interrupt without a pin": m.SetIrqs(NONE | TRIGGER, INTX, 0, 1),
    "an index beyond the last": m.SetIrqs(NONE | TRIGGER, 5, 0, 1),
}


@pytest.mark.parametrize("name", BAD_IRQS)
def test_interrupts_that_contradict_themselves_are_refused(raw: RawClient, name: str) -> None:
    found = raw.ask(BAD_IRQS[name])
    assert (found.is_error, found.error) == (True, EINVAL)


@pytest.mark.parametrize(
    "command",
    [
        m.SetIrqs(NONE | TRIGGER, MSIX, 0, 0),
        m.SetIrqs(NONE | TRIGGER, MSIX, 0, 4),
        m.SetIrqs(BOOL | TRIGGER, MSIX, 1, 3, b"\0\1\0"),
        m.SetIrqs(EVENTFD | TRIGGER, MSIX, 3, 1),
        m.SetIrqs(EVENTFD | TRIGGER, MSIX, 0, 4, b"\xff" * 16),
        m.SetIrqs(NONE | MASK, MSIX, 0, 4),
        m.SetIrqs(EVENTFD | TRIGGER, REQ, 0, 1),
        m.SetIrqs(NONE | TRIGGER, ERR, 0, 0),
    ],
)
def test_interrupts_may_be_set_as_the_kernel_has_it(raw: RawClient, command: m.SetIrqs) -> None:
    assert raw.get(command) == b""


@pytest.mark.parametrize("pin", [0, 1])
def test_a_pin_is_an_interrupt_that_can_be_masked(pin: int) -> None:
    config = RegionSpec(CONFIG_INDEX, 256, contents=(Content(0x3D, bytes([pin])),))
    with contextlib.closing(SoftwareDevice(DeviceSpec(1, 2, 3, regions=(config,)))) as device:
        session = Session(device)
        session.answer(wire.Message(0, wire.Number.VERSION, 0, 0, m.Version().body()))
        asked = m.IrqInfo(INTX)
        answer, _fd = session.answer(wire.Message(1, asked.NUMBER, 0, 0, asked.body()))
        assert answer[wire.HEADER.size :] == (m.IrqInfo(INTX, 7, 1) if pin else asked).body()


def test_memory_is_offered_once(raw: RawClient) -> None:
    page = 0x1000
    assert raw.get(m.DmaMap(3, 0, 4 * page, 4 * page)) == b""
    for start, size in ((4, 4), (4, 1), (7, 1), (3, 2), (7, 2), (0, 100), (5, 1)):
        found = raw.ask(m.DmaMap(3, 0, start * page, size * page))
        assert (found.is_error, found.error) == (True, errno.EEXIST), (start, size)
    for start, size in ((0, 4), (8, 1), ((1 << 52) - 1, 1)):
        assert raw.get(m.DmaMap(3, 0, start * page, size * page)) == b""
    for address, size in ((0x9000, 0), ((1 << 64) - page, 2 * page)):
        assert raw.ask(m.DmaMap(3, 0, address, size)).error == EINVAL


def test_memory_may_be_taken_back_even_if_it_was_never_offered(raw: RawClient) -> None:
    offer = m.DmaMap(3, 0, 0x4000, 0x4000)
    raw.get(offer)
    for address, size in ((0, 0x4000), (0x8000, 0x1000), (1 << 40, 1 << 40), (0, 0)):
        command = m.DmaUnmap(0, address, size)
        assert raw.get(command) == command.body()
        assert raw.ask(offer).error == errno.EEXIST
    for address, size in ((0x4000, 0x1000), (0x5000, 0x1000), (0, 0x5000)):
        assert raw.ask(m.DmaUnmap(0, address, size)).error == EINVAL
    raw.get(m.DmaUnmap(0, 0x4000, 0x4000))
    raw.get(offer)
    raw.get(m.DmaMap(3, 0, 0, 0x1000))
    raw.get(m.DmaUnmap(0, 0, 1 << 40))
    raw.get(m.DmaMap(3, 0, 0, 0x10000))
    raw.get(m.DmaUnmap(2, 0, 0))
    raw.get(offer)


def test_memory_of_a_client_that_left_is_forgotten(path: Path) -> None:
    for _client in range(2):
        with connection(path) as sock:
            RawClient(sock).get(m.DmaMap(3, 0, 0, 0x1000))


@pytest.mark.parametrize("flags", [0, wire.FLAG_NO_REPLY])
def test_a_client_of_another_major_version_is_sent_away_with_an_error(
    path: Path, flags: int
) -> None:
    with connection(path) as sock:
        raw = RawClient(sock, negotiate=False)
        raw.send(wire.Number.VERSION, struct.pack("=HH", 7, 0), flags=flags)
        if not flags:
            found = raw.receive()
            assert (found.is_error, found.error) == (True, EINVAL)
        assert sock.recv(1) == b""
    with connection(path) as sock:
        assert RawClient(sock).read(0, 0, 4) == b"barf"


def test_before_version_nothing_is_answered_but_version(path: Path) -> None:
    with connection(path) as sock:
        raw = RawClient(sock, negotiate=False)
        assert raw.ask(m.GetInfo()).error == EINVAL
        raw.send(wire.Number.VERSION, struct.pack("=HH", 0, 3))
        assert struct.unpack_from("=HH", raw.receive().body) == (0, 0)
        assert raw.read(0, 0, 4) == b"barf"


def test_what_wants_no_reply_gets_none(raw: RawClient) -> None:
    write = m.RegionWrite(0, 4, b"mute")
    raw.send(write.NUMBER, write.body(), flags=wire.FLAG_NO_REPLY)
    raw.send(99, b"", flags=wire.FLAG_NO_REPLY)
    raw.send(write.NUMBER, write.body(), flags=wire.FLAG_REPLY)
    assert raw.read(0, 4, 4) == b"mute"


@pytest.mark.parametrize(
    "header",
    [
        wire.HEADER.pack(1, 9, 0, 0, 0),
        wire.HEADER.pack(1, 9, 0xFFFFFFFF, 0, 0),
        wire.HEADER.pack(1, 9, 16, 7, 0),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_a_stream_without_messages_is_ended_and_the_next_client_served(
    path: Path, header: bytes
) -> None:
    with connection(path) as sock:
        sock.sendall(header)
        assert sock.recv(1) == b""
    with connection(path) as sock:
        assert RawClient(sock).read(0, 0, 4) == b"barf"


def test_a_large_transfer_goes_in_one_message(raw: RawClient) -> None:
    data = os.urandom(1 << 20)
    raw.get(m.RegionWrite(2, 0, data))
    assert raw.read(2, 0, 1 << 20) == data


class Broken:
    """A behaviour with a bug in it."""

    def read(self, offset: int, width: int) -> int:
        return -1

    def write(self, offset: int, width: int, value: int) -> None:
        raise ZeroDivisionError

    def reset(self) -> None:
        pass


def test_a_mistake_in_a_behaviour_costs_its_access(
    device: SoftwareDevice, raw: RawClient, caplog: pytest.LogCaptureFixture
) -> None:
    device.attach(0, 0x4000, 0x4010, Broken())
    assert raw.ask(m.RegionRead(0, 0x4000, 4)).error == 5
    assert raw.ask(m.RegionWrite(0, 0x4000, b"abcd")).error == 5
    assert "ZeroDivisionError" in caplog.text
    assert raw.read(0, 0x4010, 4) == b"ess "
