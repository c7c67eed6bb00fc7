# SPDX-License-Identifier: MIT
"""Dumps of devices whose registers have names."""

import zipfile
from dataclasses import astuple
from pathlib import Path
from typing import cast

import pytest

from barfs.dump.capture import RegionReader, Skip
from barfs.dump.comparison import Change, changes
from barfs.dump.file import BLOCK, Dump, DumpError, Hole, new_dump
from barfs.ranges import Range
from barfs.registers.access import DeviceRegisters
from barfs.registers.find import Named
from barfs.registers.model import Block, Field, Register
from barfs.registers.places import RegisterMap
from tests.unit.dump.test_dump import SIZE, FakeSource, contents, layout, write

NAMES = Block.of(
    "",
    0,
    [
        Register("ctrl", 0x10, 4, (Field("mode", 4, 4), Field("count", 16, 16))),
        Register("low", 0x20, 2, (Field("value", 0, 16),)),
        Register("wide", 0x28, 8, (Field("end", 56, 8),), 4),
        Register("command", 0x34, 4, (Field("go", 0, 1, readable=False),)),
        Register("split", BLOCK - 4, 8, (Field("", 0, 64),), 4),
    ],
)


class Names:
    """Registers as `DeviceRegisters` has them: those of bar0, by a file."""

    named = (Named(Path("card.rdl"), "bar0"),)

    def map(self, region: str) -> RegisterMap:
        return RegisterMap(NAMES, region)


def named(path: Path, data: bytes, *holes: Hole) -> Dump:
    with new_dump(path) as dump:
        dump.add(layout(size=len(data)), [(0, data)], holes)
        dump.name(cast(DeviceRegisters, Names()), "bar0")
    return Dump(path)


def test_changes_have_names_and_the_width_of_the_register(tmp_path: Path) -> None:
    old, new = bytearray(2 * BLOCK), bytearray(2 * BLOCK)
    new[0x10:0x14] = b"\x20\0\3\0"
    new[0x20:0x24] = b"\1\0\2\0"
    new[0x2F] = 5
    new[0x30] = new[0x34] = 1
    new[BLOCK - 4 : BLOCK + 4] = b"splitten"
    with (
        write(tmp_path / "a", (layout(size=len(old)), bytes(old), [])) as before,
        named(tmp_path / "b", bytes(new)) as after,
    ):
        assert before.registers("bar0") is None
        found = list(changes(before, after))
        expected = [
            ("ctrl", 0x10, 4, 0x30020),
            ("low", 0x20, 2, 1),
            ("", 0x20, 4, 0x20001),  # its upper half has no name
            ("wide", 0x28, 8, 5 << 56),
            ("", 0x30, 4, 1),
            ("", 0x34, 4, 1),  # what cannot be read has no value
            ("", BLOCK - 4, 4, 0x696C7073),
            ("", BLOCK, 4, 0x6E657474),
        ]
        assert [
            (change.place.shown if change.place else "", change.offset, change.width, change.after)
            for change in found
        ] == expected
        back = [(change.before, change.after) for change in changes(after, before)]
        assert back == [(change.after, change.before) for change in found]


def test_a_register_of_which_a_part_was_not_read_has_no_value(tmp_path: Path) -> None:
    new = bytearray(SIZE)
    new[0x28] = 1
    with (
        named(tmp_path / "a", bytes(SIZE), Hole(0x2C, 0x30, "policy")) as before,
        named(tmp_path / "b", bytes(new)) as after,
    ):
        assert list(changes(before, after)) == [Change("bar0", 0x28, 4, 0, 1)]


def test_registers_whose_read_has_side_effects_are_holes() -> None:
    source = FakeSource(layout(size=0x40))
    (shown,) = source.layouts.values()
    reader = RegionReader(source, shown, [Skip("bar0", Range(0x20, 0x28))], [
        Range(8, 0x0C), Range(0x0C, 0x10), Range(0x24, 0x30), Range(0x38, 0x3A)
    ])  # fmt: skip
    taken = {at + n for at, piece in reader.pieces() for n in range(len(piece))}
    assert reader.holes == [
        Hole(8, 0x10, "side-effects"),
        Hole(0x20, 0x28, "skipped"),
        Hole(0x28, 0x30, "side-effects"),
        Hole(0x38, 0x3A, "side-effects"),
    ]
    assert taken == set(range(0x40)) - {
        at for hole in reader.holes for at in range(*astuple(hole)[:2])
    }
    # What is left of a chunk is not read as one access of 8 bytes.
    assert {count for _at, count in source.reads if count <= 8} == {2, 4}


@pytest.mark.parametrize(
    "names", ["[]", "{", '{"parts": [], "root": ["block", "", 0, [], 0, 9, 3]}']
)
def test_names_of_another_program(tmp_path: Path, names: str) -> None:
    path = tmp_path / "a"
    with named(path, bytes(SIZE)) as dump:
        pass
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, names if name == "bar0.registers" else data)
    with Dump(path) as dump:
        with pytest.raises(DumpError, match="the names of bar0 cannot be read"):
            dump.registers("bar0")
        assert contents(dump) == bytes(SIZE)
