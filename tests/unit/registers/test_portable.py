# SPDX-License-Identifier: MIT
"""Maps as JSON, from barfs and from elsewhere."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs.registers.model import Block, Field, Memory, Node, Register, Value, children_of
from barfs.registers.places import RegisterMap
from barfs.registers.portable import from_json, to_json
from tests.unit.registers.test_packed import REGISTERS, blocks, one_of_a_name

MODE = Field("mode", 1, 2, values=(Value("idle", 0, "text"), Value("burst", 2)))
FIFO = Field("value", 0, 32, onread="ruser", onwrite="wuser", description="text")
ROOT = Block.of(
    "",
    0,
    [
        Block.of(
            "chan",
            0x100,
            [
                Register("ctrl", 0, 4, (MODE,), description="text"),
                Register("fifo", 4, 4, (FIFO,), dims=(2, 2), stride=4),
            ],
            dims=(3,),
            stride=0x40,
        ),
        Register("big", 0x400, 8, (Field("", 0, 64),), 4, big_endian=True, high_first=True),
        Memory("buffer", 0x800, 64, 4, children_of([]), writable=False),
    ],
)


def shape(root: Block) -> list[tuple[object, ...]]:
    """All that names, values and accesses depend on."""
    return [
        (
            place.path,
            place.offset,
            place.register.width,
            place.register.access_width,
            place.register.big_endian,
            [(part.name, part.bits, part.access, part.onread, part.onwrite, part.singlepulse,
              part.write_once, [(value.name, value.value) for value in part.values])
             for part in place.register.parts],
        )
        for place in RegisterMap(root, "test").registers()
    ]  # fmt: skip


def test_a_map_comes_back_without_its_descriptions() -> None:
    text = to_json(ROOT)
    found = from_json(text)
    assert shape(found) == shape(ROOT)
    assert found.children.get("buffer") == ROOT.children.get("buffer")
    assert "text" not in text


@given(st.lists(st.recursive(REGISTERS, blocks, max_leaves=6), max_size=4).map(one_of_a_name))
def test_every_map_comes_back(nodes: list[Node]) -> None:
    root = Block.of("", 0, nodes)
    assert shape(from_json(to_json(root))) == shape(root)
    assert to_json(from_json(to_json(root))) == to_json(root)


def put(*path: str | int, value: Any) -> Callable[[Any], None]:
    def change(record: Any) -> None:
        *way, last = path
        for step in way:
            record = record[step]
        record[last] = value

    return change


CTRL = ("root", 6, 0, 6, 0)


@pytest.mark.parametrize(
    "change",
    [
        put("root", value=None),
        put("root", value=[]),
        put("root", 0, value="register"),
        put("root", 0, value="house"),
        put("root", 6, 0, 1, value="../etc"),
        put("root", 6, 0, 1, value=7),
        put("root", 6, 0, 2, value=1.5),
        put("root", 6, 0, 2, value=-4),
        put("root", 6, 0, 2, value=1 << 64),
        put("root", 6, 0, 3, value=[-1]),
        put("root", 6, 0, 3, value=[1 << 62]),
        put("root", 6, 0, 4, value="64"),
        put("root", 6, 1, 1, value="chan"),
        put(*CTRL, 5, value=0),
        put(*CTRL, 5, value=1 << 20),
        put(*CTRL, 6, value=99),
        put(*CTRL, 7, value=3),
        put("parts", 0, 0, 1, value=True),
        put("parts", 0, 0, 2, value=0),
        put("parts", 0, 0, 3, value="rwx"),
        put("parts", 0, 0, 4, value="explode"),
        put("parts", 0, 0, 7, value=[["idle"]]),
        put("parts", 0, 0, 7, value=[["idle", "0"]]),
        put("parts", 0, value=[]),
        put("parts", value=5),
    ],
)
def test_a_text_of_another_program_is_refused(change: Callable[[Any], None]) -> None:
    record = json.loads(to_json(ROOT))
    change(record)
    with pytest.raises(ValueError, match=r"\S"):
        from_json(json.dumps(record))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"parts": [], "root": ["block"]}'])
def test_what_is_no_map_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        from_json(text)
