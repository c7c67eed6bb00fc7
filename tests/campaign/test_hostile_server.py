# SPDX-License-Identifier: MIT
"""A hostile vfio-user server is harmless: what it says is right, or refused by name.

Refused means: a `BarfsError`, in time, with no descriptor left open and no memory taken for it.
"""

import collections
import contextlib
import itertools
import os
import random
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator

import pytest

from barfs.device import Device, MappingMode, Options
from barfs.emulated.demo import demo_device
from barfs.emulated.device import SoftwareDevice
from barfs.errors import AccessError, BarfsError, BeyondEnd, DeviceError, PeerError
from barfs.layout import MsixMode, plan
from barfs.uapi import (
    RegionInfo,
)
from barfs.vfio_user import wire
from barfs.vfio_user.client import VfioUserClient
from barfs.vfio_user.session import Session
from tests.support.peer import (
    BDF,
    recv_exactly,
)

from .conftest import Campaign
from .exchanges import EXCHANGES, PAGE, Exchange, assert_closed, open_files, perform
from .mutations import mutate
from .rig import rss


def verdict(exchange: Exchange, stream: bytes) -> str:
    """The name of the error that a client finds in a stream; empty if it finds none."""
    decoder = wire.Decoder(wire.CLIENT_LIMIT)
    decoder.feed(stream)
    try:
        message = decoder.next_message()
        if message is None:
            return "incomplete"
        found = exchange.read(message)
    except PeerError as error:
        return type(error).__name__
    if isinstance(found, tuple):
        info: RegionInfo = found[0]
        return layout_of(info) if info.size else "accepted"
    return "accepted"


def layout_of(info: RegionInfo) -> str:
    """Plan the region: whatever its areas are, all of it and nothing else has a place."""
    layout = plan(
        info, device="hostile", options=Options().plan_options, page_size=PAGE, gap_width=8
    )
    edges = [0, *(segment.end for segment in layout.segments)]
    assert [segment.start for segment in layout.segments] == edges[:-1]
    assert edges[-1] == info.size
    return "accepted" if info.chain_error is None else type(info.chain_error).__name__


def told(verdicts: collections.Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in verdicts.most_common())


def test_random_replies_are_read_or_refused_by_name(campaign: Campaign) -> None:
    source = random.Random(1)
    count = campaign.size(30_000, 1_000_000)
    good = [(exchange, exchange.encoded()) for exchange in EXCHANGES]
    verdicts: collections.Counter[str] = collections.Counter()
    before, slowest, started = rss(), 0.0, time.perf_counter()
    for _reply in range(count):
        exchange, encoded = source.choice(good)
        stream = mutate(source, encoded)
        begun = time.perf_counter()
        verdicts[verdict(exchange, stream)] += 1
        slowest = max(slowest, time.perf_counter() - begun)
    each = (time.perf_counter() - started) / count
    grown = rss() - before
    assert grown < 16 << 20
    assert verdicts["accepted"] < count / 2
    assert len(verdicts) > 20, "the replies are too tame"
    campaign.report(
        "hostile replies",
        f"{count}: {len(verdicts)} verdicts, {1e6 * each:.0f} us each with its making, slowest "
        f"{1e3 * slowest:.1f} ms, RSS +{grown >> 10} KiB",
    )
    campaign.report("hostile replies, by verdict", told(verdicts))


def test_no_reply_takes_much_memory(campaign: Campaign) -> None:
    source = random.Random(2)
    giants = [
        wire.HEADER.pack(1, command, size, wire.FLAG_REPLY, 0) + bytes(wire.CLIENT_LIMIT)
        for command in (1, 4, 5, 9, 10)
        for size in (16, wire.CLIENT_LIMIT, wire.CLIENT_LIMIT + 1, 0xFFFF_FFFF)
    ]
    streams = [(exchange, giant) for exchange in EXCHANGES for giant in giants]
    for _reply in range(campaign.size(500, 5_000)):
        exchange = source.choice(EXCHANGES)
        streams.append((exchange, mutate(source, exchange.encoded())))
    worst = 0
    tracemalloc.start()
    try:
        for exchange, stream in streams:
            tracemalloc.reset_peak()
            held, _peak = tracemalloc.get_traced_memory()
            verdict(exchange, stream)
            worst = max(worst, tracemalloc.get_traced_memory()[1] - held)
    finally:
        tracemalloc.stop()
    assert worst < 8 * wire.CLIENT_LIMIT
    campaign.report("memory of a hostile reply", f"{worst >> 10} KiB at most")


@contextlib.contextmanager
def after_version(stream: bytes) -> Iterator[VfioUserClient]:
    """A client whose server has sent all that it will ever send, and left."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(EXCHANGES[0].encoded(1) + stream)
        theirs.shutdown(socket.SHUT_WR)
        with contextlib.closing(VfioUserClient(ours, bdf=BDF, source="test", timeout=5)) as client:
            yield client


def test_a_stream_may_end_at_every_byte() -> None:
    for exchange in EXCHANGES[1:]:
        whole = exchange.encoded(2)
        for length in range(len(whole)):
            with after_version(whole[:length]) as client, pytest.raises(BarfsError) as caught:
                perform(client, exchange.command)
            assert "closed the connection" in str(caught.value)
    version = EXCHANGES[0].encoded()
    for length in range(len(version)):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(version[:length])
            theirs.shutdown(socket.SHUT_WR)
            with pytest.raises(DeviceError, match="closed the connection"):
                VfioUserClient(ours, bdf=BDF, source="test", timeout=5)


def test_random_replies_through_the_socket(campaign: Campaign) -> None:
    source = random.Random(3)
    count = campaign.size(1_500, 50_000)
    verdicts: collections.Counter[str] = collections.Counter()
    files, memory, started = open_files(), rss(), time.perf_counter()
    for _reply in range(count):
        exchange = source.choice(EXCHANGES[1:])
        with after_version(mutate(source, exchange.encoded(2))) as client:
            try:
                perform(client, exchange.command)
                verdicts["accepted"] += 1
            except BarfsError as error:
                verdicts[type(error).__name__] += 1
    each = (time.perf_counter() - started) / count
    assert_closed(files)
    assert rss() - memory < 16 << 20
    assert len(verdicts) > 10, "the replies are too tame"
    campaign.report(
        "hostile replies by socket",
        f"{count}: {1e6 * each:.0f} us each with its connection; {told(verdicts)}",
    )


class Liar(threading.Thread):
    """A server of the demo device that changes some of its replies, and what comes with them."""

    def __init__(self, device: SoftwareDevice, seed: int) -> None:
        super().__init__(daemon=True)
        self.client_end, self._sock = socket.socketpair()
        self._session = Session(device)
        self._source = random.Random(seed)
        self._good = self._source.randrange(self._source.choice((12, 100, 2000)))
        """So many replies are good before the first bad one."""
        self._lies = self._source.choice((0.1, 1))

    def run(self) -> None:
        with self._sock, contextlib.suppress(EOFError, OSError):
            for number in itertools.count():
                header = recv_exactly(self._sock, wire.HEADER.size)
                identifier, command, size, flags, error = wire.HEADER.unpack(header)
                body = recv_exactly(self._sock, size - wire.HEADER.size)
                message = wire.Message(identifier, command, flags, error, body)
                self._send(*self._session.answer(message), lie=self._lies_now(number))

    def _lies_now(self, number: int) -> bool:
        return number >= self._good and self._source.random() < self._lies

    def _send(self, answer: bytes, fd: int | None, *, lie: bool) -> None:
        if not lie:
            socket.send_fds(self._sock, [answer], [] if fd is None else [fd])
            return
        source = self._source
        if source.random() < 0.7:
            # The right id and a believable size: the lie is in what is told.
            answer = answer[:16] + mutate(source, answer[16:])
            answer = answer[:4] + struct.pack("=I", len(answer)) + answer[8:]
        else:
            answer = mutate(source, answer)
        with contextlib.ExitStack() as stack:
            fds = [] if fd is None else [fd] * source.choice((0, 1, 1, 1, 2, 17))
            if source.random() < 0.3:
                fds.insert(0, stack.enter_context(_some_descriptor(source)))
            if answer:
                socket.send_fds(self._sock, [answer], fds)


@contextlib.contextmanager
def _some_descriptor(source: random.Random) -> Iterator[int]:
    """A descriptor that is unsafe to map, or a file that is truncated once it is mapped."""
    kind = source.choice(("/proc/self/maps", "/dev/zero", "/dev/shm", "/", "memory"))
    if kind != "memory":
        fd = os.open(kind, os.O_RDONLY)
    else:
        fd = os.memfd_create("hostile")
        os.ftruncate(fd, source.choice((0, 1, PAGE, 1 << 16, 1 << 20, 1 << 40)))
    try:
        yield fd
    finally:
        os.close(fd)


MAPPINGS: tuple[MappingMode, ...] = ("separate", "contiguous", "off")
MSIX: tuple[MsixMode, ...] = ("map", "carve")


def use(endpoint: socket.socket, source: random.Random) -> str:
    """Open the device, use what it claims to have, and close it; what came of that."""
    mapping = source.choice(MAPPINGS)
    msix = "map" if mapping == "off" else source.choice(MSIX)
    options = Options(mapping, source.choice((1, 2, 4, 8)), msix, timeout=0.05)
    try:
        backend = VfioUserClient(endpoint, bdf=BDF, source="liar", timeout=options.timeout)
        with Device(backend, options) as device:
            found = "used"
            for region in device.regions.values():
                for offset in (0, PAGE - 4, PAGE, region.size // 2, region.size - 3):
                    try:
                        region.read(offset, 64)
                        region.write(offset, b"12345678")
                    except BeyondEnd:
                        continue
                    except AccessError as error:
                        found = f"used, {type(error).__name__}"
            return found
    except BarfsError as error:
        return type(error).__name__


def test_a_device_that_lies(campaign: Campaign) -> None:
    source = random.Random(4)
    count = campaign.size(150, 4_000)
    verdicts: collections.Counter[str] = collections.Counter()
    files = open_files()
    with contextlib.closing(demo_device()) as device:
        # The first replies to each kind of question have made what stays: only growth counts.
        memory = 0
        opened = open_files()
        for seed in range(count):
            liar = Liar(device, seed)
            liar.start()
            with liar.client_end as endpoint:
                verdicts[use(endpoint, source)] += 1
            liar.join()
            assert_closed(opened)
            memory = memory or rss()
        assert rss() - memory < 64 << 20
    assert_closed(files)
    assert any(name.startswith("used") for name in verdicts)
    assert len(verdicts) > 8, "the lies are too tame"
    campaign.report("hostile devices", f"{count}: {told(verdicts)}")
