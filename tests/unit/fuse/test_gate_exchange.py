# SPDX-License-Identifier: MIT
"""Accesses of the gate that are messages: the reader sends them, and never waits for the reply."""

import contextlib
import errno
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from barfs import engine
from barfs.vfio_user import messages as m
from barfs.vfio_user import wire
from barfs.vfio_user.client import VfioUserClient
from tests.support.peer import Answer, Peer, client_of, data, done, refuse
from tests.unit.fuse.gate_rig import GAP, PATIENCE, REGION, Kernel, gated

OTHER = 20
"""The node of the region behind a server that follows a script."""

SIZE = 0x1000
TIMEOUT = 0.4


@dataclass(frozen=True, slots=True)
class Rig:
    kernel: Kernel
    client: VfioUserClient
    peer: Peer

    @property
    def accesses(self) -> int:
        """The accesses that the server has seen."""
        numbers = wire.Number.REGION_READ, wire.Number.REGION_WRITE
        return sum(message.command in numbers for message in self.peer.seen)

    def assert_others_go_on(self) -> None:
        for offset in (0, GAP):
            assert self.kernel.read(REGION, offset, 4) == (0, bytes(4))


@contextlib.contextmanager
def rigged(*script: Answer, timeout: float = 60.0) -> Iterator[Rig]:
    in_flight = engine.InFlight()
    with client_of(*script, timeout=timeout) as (client, peer), gated() as kernel:
        call = engine.Call(
            partial(client.read, 0), partial(client.write, 0), engine.Turns(), client.exchange(0)
        )
        whole = engine.TableEntry(0, SIZE, True, True, 4, call)
        table = engine.Table(in_flight, SIZE, 4, [whole], timeout=timeout)
        kernel.gate.add_device("ffff:02:00.0", {OTHER: (table, True, True)})
        try:
            yield Rig(kernel, client, peer)
        finally:
            peer.release.set()
    assert in_flight.drain(PATIENCE)


def held(answer: Answer) -> Answer:
    """Answer once the test releases it."""

    def late(peer: Peer, message: wire.Message) -> None:
        peer.release.wait()
        answer(peer, message)

    return late


def has_lane() -> bool:
    return any(thread.name == "gate-lane" for thread in threading.enumerate())


def test_the_reader_makes_plain_accesses() -> None:
    with rigged(data(b"abcd"), done, data(b"ef")) as rig:
        assert rig.kernel.read(OTHER, 4, 4) == (0, b"abcd")
        assert rig.kernel.write(OTHER, 8, b"wxyz") == (0, (4).to_bytes(8, "little"))
        assert rig.kernel.read(OTHER, 6, 2) == (0, b"ef")
        assert [message.body for message in rig.peer.seen[1:]] == [
            m.RegionRead(0, 4, 4).body(),
            m.RegionWrite(0, 8, b"wxyz").body(),
            m.RegionRead(0, 6, 2).body(),
        ]
        assert not has_lane()


def test_others_do_not_wait_for_the_reply() -> None:
    with rigged(held(data(b"abcd")), data(b"efgh")) as rig:
        unique = rig.kernel.send_read(OTHER, 4, 4)
        for _ in range(100):
            rig.assert_others_go_on()
        rig.peer.release.set()
        assert rig.kernel.reply() == (unique, 0, b"abcd")
        assert rig.kernel.read(OTHER, 4, 4) == (0, b"efgh")
        assert rig.accesses == 2


def test_a_write_under_way_is_not_repeated() -> None:
    with rigged(held(done), done) as rig:
        unique = rig.kernel.send_write(OTHER, 4, b"abcd")
        rig.assert_others_go_on()
        rig.peer.release.set()
        assert rig.kernel.reply() == (unique, 0, (4).to_bytes(8, "little"))
        assert rig.accesses == 1


def test_a_reply_in_pieces() -> None:
    def pieces(peer: Peer, message: wire.Message) -> None:
        whole = m.encode_reply(message, message.body + b"abcd")
        peer.sock.sendall(whole[:20])
        peer.release.wait()
        peer.sock.sendall(whole[20:])

    with rigged(pieces, data(b"efgh")) as rig:
        unique = rig.kernel.send_read(OTHER, 4, 4)
        rig.assert_others_go_on()
        rig.peer.release.set()
        assert rig.kernel.reply() == (unique, 0, b"abcd")
        assert rig.kernel.read(OTHER, 4, 4) == (0, b"efgh")


def test_a_command_before_the_reply() -> None:
    def command_first(peer: Peer, message: wire.Message) -> None:
        peer.sock.sendall(wire.encode(7, wire.Number.DMA_READ, bytes(16)))
        data(b"abcd")(peer, message)

    def refusal(peer: Peer, message: wire.Message) -> None:
        assert (message.id, message.error) == (7, errno.EINVAL)

    with rigged(command_first, refusal, data(b"efgh")) as rig:
        assert rig.kernel.read(OTHER, 4, 4) == (0, b"abcd")
        assert rig.kernel.read(OTHER, 4, 4) == (0, b"efgh")


@pytest.mark.parametrize(
    ("told", "found"), [(errno.ENODEV, errno.ENODEV), (errno.EPERM, errno.EIO)]
)
def test_a_refusal(told: int, found: int) -> None:
    with rigged(refuse(told), data(b"abcd")) as rig:
        assert rig.kernel.read(OTHER, 4, 4) == (found, b"")
        assert rig.kernel.read(OTHER, 4, 4) == (0, b"abcd")


def test_a_late_reply_is_dropped() -> None:
    with rigged(held(data(b"OLD!")), data(b"new."), timeout=TIMEOUT) as rig:
        assert rig.kernel.read(OTHER, 4, 4) == (errno.ETIMEDOUT, b"")
        rig.peer.release.set()
        assert rig.kernel.read(OTHER, 4, 4) == (0, b"new.")
        rig.kernel.assert_silent()


def test_several_at_once() -> None:
    with rigged(held(data(b"0123")), *[data(b"abcd")] * 9) as rig:
        sent = {rig.kernel.send_read(OTHER, 4 * number, 4) for number in range(10)}
        rig.kernel.sync()
        rig.peer.release.set()
        found = [rig.kernel.reply() for _ in sent]
        assert {unique for unique, _, _ in found} == sent
        assert sorted(body for _, error, body in found if not error) == [b"0123", *[b"abcd"] * 9]


def test_an_interrupt_of_what_waits_for_a_reply() -> None:
    with rigged(held(data(b"abcd"))) as rig:
        unique = rig.kernel.send_read(OTHER, 0, 8)
        rig.kernel.interrupt(unique)
        rig.kernel.sync()
        rig.peer.release.set()
        assert rig.kernel.reply() == (unique, 0, b"abcd")
        rig.kernel.assert_silent()


def test_a_stop_and_a_close_in_the_midst() -> None:
    with rigged(held(data(b"abcd"))) as rig:
        unique = rig.kernel.send_read(OTHER, 4, 4)
        rig.assert_others_go_on()
        assert not rig.kernel.gate.stop(0.1)
        rig.client.close()
        found, error, _ = rig.kernel.reply()
        assert found == unique
        assert error
