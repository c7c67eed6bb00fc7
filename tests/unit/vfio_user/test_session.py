# SPDX-License-Identifier: MIT
"""The short way of a session for register reads, against the general one."""

import contextlib
import itertools
import struct
from collections.abc import Iterator

import pytest

from barfs.emulated.device import SoftwareDevice
from barfs.emulated.spec import Content, DeviceSpec, RegionSpec
from barfs.errors import BusFault
from barfs.vfio_user import messages as m
from barfs.vfio_user import wire
from barfs.vfio_user.session import Session
from tests.support.raw import encode_command

MOST = 64
FIRST = b"\1\0\0\0"
"""A first read of the count, in 4 bytes."""
REGIONS = (
    RegionSpec(0, 0x1000, contents=(Content(0, bytes(range(256))),)),
    RegionSpec(1, 0x1000, readable=False),
)


class Registers:
    """A count of reads at 0x800..0x808; a fault at 0x808; a bug at 0x810."""

    def __init__(self) -> None:
        self.reads = 0

    def read(self, offset: int, width: int) -> int:
        if offset >= 0x810:
            return 1 << 64
        if offset >= 0x808:
            raise BusFault
        self.reads += 1
        return self.reads % 256

    def write(self, offset: int, width: int, value: int) -> None:
        pass

    def reset(self) -> None:
        self.reads = 0


@contextlib.contextmanager
def session(*, negotiate: bool = True) -> Iterator[Session]:
    with contextlib.closing(SoftwareDevice(DeviceSpec(1, 2, 3, regions=REGIONS))) as device:
        device.attach(0, 0x800, 0x820, Registers())
        made = Session(device)
        if negotiate:
            answer(made, encode_command(0, m.Version(max_transfer=MOST)))
        yield made


def answer(made: Session, data: bytes) -> bytes:
    """The replies by the general way."""
    decoder = wire.Decoder(wire.SERVER_LIMIT)
    decoder.feed(data)
    replies = b""
    while (message := decoder.next_message()) is not None:
        replies += made.answer(message)[0]
    return replies


READ = encode_command(7, m.RegionRead(0, 0x800, 4))
PLACES = (0, 4, 0x7FC, 0x7FE, 0x800, 0x804, 0x808, 0x810, 0xFFC, 0x1000, 1 << 63)
COUNTS = (0, 1, 2, 3, 4, 8, 16, MOST, MOST + 1, 1 << 31)
UNUSUAL = (
    b"",
    READ[:-1],
    READ + b"m",
    READ + READ,
    *(
        READ[:position] + bytes([value]) + READ[position + 1 :]
        for position in range(2, wire.HEADER.size)
        for value in (0, 1, 9, 10, 16, 0x20, 255)
    ),
)


def compare(data: bytes) -> bool:
    """Ask both ways, then look at both devices; returns whether the short one answered."""
    with session() as short, session() as general:
        found = short.answer_read(data)
        if found:
            assert found == answer(general, data)
            assert answer(short, READ) == answer(general, READ)
        else:
            assert answer(short, READ)[-4:] == FIRST
        return bool(found)


@pytest.mark.parametrize("region", range(4))
def test_a_usual_read_is_answered_as_by_the_general_way(region: int) -> None:
    for place, count in itertools.product(PLACES, COUNTS):
        short = compare(encode_command(258, m.RegionRead(region, place, count)))
        assert short == (0 < count <= MOST), (place, count)


def test_anything_else_is_left_to_the_general_way() -> None:
    answered = {data for data in UNUSUAL if compare(data)}
    # The errno of a command has no meaning.
    assert answered == {
        data for data in UNUSUAL if len(data) == len(READ) and data[:12] == READ[:12]
    }


def test_before_version_there_is_no_short_way() -> None:
    with session(negotiate=False) as made:
        assert made.answer_read(encode_command(1, m.RegionRead(0, 0, 4))) == b""


def test_a_bug_in_a_behaviour_is_logged_and_costs_its_access(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with session() as made:
        found = made.answer_read(encode_command(1, m.RegionRead(0, 0x810, 4)))
        assert struct.unpack("=HHIII", found) == (1, wire.Number.REGION_READ, 16, 0x21, 5)
        assert "OverflowError" in caplog.text
        assert made.answer_read(encode_command(2, m.RegionRead(0, 4, 4)))[-4:] == b"\4\5\6\7"
