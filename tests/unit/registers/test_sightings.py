# SPDX-License-Identifier: MIT
"""What a trace says of registers."""

import pytest

from barfs.registers.model import Block, Field, Register, Value
from barfs.registers.places import RegisterMap
from barfs.registers.sightings import Sightings

MODE = Field("mode", 1, 2, values=(Value("idle", 0), Value("burst", 2)))
CTRL = (
    Field("enable", 0, 1),
    MODE,
    Field("go", 4, 1, singlepulse=True),
    Field("error", 8, 1, onwrite="woclr"),
    Field("stop", 9, 1, onwrite="wclr"),
    Field("key", 12, 4, readable=False),
    Field("count", 16, 16),
)
SEEN = Block.of(
    "",
    0,
    [
        Register("ctrl", 0x10, 4, CTRL, dims=(2,), stride=4),
        Register("a", 0x20, 2, (Field("value", 0, 16),)),
        Register("b", 0x22, 2, (Field("value", 0, 16),)),
        Register("wide", 0x28, 8, (Field("low", 0, 8), Field("high", 56, 8)), 4),
        Register(
            "big", 0x30, 4, (Field("top", 24, 8), Field("end", 0, 8)), big_endian=True,
            high_first=True,
        ),
        Register("plain", 0x34, 4, (Field("", 0, 32),)),
    ],
)  # fmt: skip


@pytest.fixture
def sightings() -> Sightings:
    return Sightings(RegisterMap(SEEN, "test"))


def test_a_read_shows_its_fields_and_a_write_what_it_changes(sightings: Sightings) -> None:
    assert sightings.tell(0x14, 4, 0x0007_0100, written=False) == (
        "ctrl1 enable[0]=0 mode[2:1]=idle go[4]=0 error[8]=1 stop[9]=0 count[31:16]=7"
    )
    assert sightings.tell(0x14, 4, 0x0008_0005, written=True) == (
        "ctrl1 enable[0]=0->1 mode[2:1]=idle->burst stop[9]=0 key[15:12]=0 count[31:16]=7->8"
    )
    assert sightings.tell(0x14, 4, 0x0008_0005, written=True) == "ctrl1 stop[9]=0"


def test_a_write_shows_all_fields_until_a_value_was_seen(sightings: Sightings) -> None:
    first = sightings.tell(0x10, 4, 0x0001_0110, written=True)
    assert first == (
        "ctrl0 enable[0]=0 mode[2:1]=idle go[4]=1 error[8]=1 stop[9]=0 key[15:12]=0 count[31:16]=1"
    )
    # What was written to a field that acts on it is not what it then has.
    assert sightings.tell(0x10, 4, 0x0001_0112, written=True) == (
        "ctrl0 mode[2:1]=idle->1 go[4]=1 error[8]=1 stop[9]=0"
    )


def test_an_access_that_failed_has_a_name_alone(sightings: Sightings) -> None:
    assert sightings.tell(0x10, 4, None, written=False) == "ctrl0"
    assert sightings.tell(0x34, 4, 0x1234, written=True) == "plain"
    assert sightings.tell(0x100, 4, 0, written=False) == ""


def test_accesses_of_other_widths_than_the_register_has(sightings: Sightings) -> None:
    assert sightings.tell(0x20, 4, 0x0002_0001, written=False) == (
        "a value[15:0]=1; b value[15:0]=2"
    )
    assert sightings.tell(0x28, 4, 0x11, written=False) == "wide low[7:0]=0x11"
    assert sightings.tell(0x2C, 4, 0x22 << 24, written=True) == "wide high[63:56]=0x22"
    assert sightings.tell(0x28, 8, 0x33 << 56 | 0x11, written=True) == (
        "wide high[63:56]=0x22->0x33"
    )
    assert sightings.tell(0x12, 2, 9, written=False) == "ctrl0 count[31:16]=9"
    assert sightings.tell(0x13, 1, 1, written=False) == "ctrl0"


def test_a_big_endian_register(sightings: Sightings) -> None:
    assert sightings.tell(0x30, 4, 0x0400_0001, written=False) == "big top[31:24]=1 end[7:0]=4"
    assert sightings.tell(0x30, 1, 2, written=True) == "big top[31:24]=1->2"
    assert sightings.tell(0x33, 1, 5, written=True) == "big end[7:0]=4->5"
