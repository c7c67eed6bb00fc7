# SPDX-License-Identifier: MIT
"""A map as one string of bytes, of which a lookup decodes the nodes on its way.

    pack(root)          bytes
    unpack(data)        the root, whose children are decoded when they are looked up

A record is a marshalled tuple; children come before their block, the root last, and the last eight
bytes say where it begins. Equal field lists are one record.

Rule 1: pure. Whether the bytes can be trusted is for `cache` to say: marshal is not for strangers'.
"""

import array
import dataclasses
import marshal
import struct
from collections.abc import Callable
from typing import Any

from barfs.registers.children import Children
from barfs.registers.model import Block, Field, Memory, Node, Register, Value

_VERSION = 4
"""Of marshal: the newest that all Pythons since 3.4 write and read."""
_END = struct.Struct("<Q")


def pack(root: Block) -> bytes:
    """The bytes of a map."""
    writer = _Writer()
    position = writer.node(root)
    return b"".join([*writer.chunks, _END.pack(position)])


def unpack(data: bytes) -> Block:
    """The root of what `pack` wrote."""
    (position,) = _END.unpack_from(data, len(data) - _END.size)
    root = _node(memoryview(data), position)
    assert isinstance(root, Block)
    return root


class _Writer:
    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self._size = 0
        self._parts: dict[tuple[Field, ...], int] = {}

    def node(self, node: Node) -> int:
        if isinstance(node, Register):
            link = self._parts.get(node.parts)
            if link is None:
                link = self._parts[node.parts] = self._add(tuple(map(_plain, node.parts)))
        else:
            link = self._children(node.children)
        values = [
            link if entry.name in ("parts", "children") else getattr(node, entry.name)
            for entry in dataclasses.fields(node)
        ]
        return self._add((type(node).__name__, *values))

    def _children(self, children: Children[Node]) -> int:
        positions = array.array("Q", map(self.node, children))
        starts = array.array("Q", children.starts)
        ends = array.array("Q", children.ends)
        return self._add(
            (
                children.names,
                children.arrays,
                starts.tobytes(),
                ends.tobytes(),
                positions.tobytes(),
            )
        )

    def _add(self, record: Any) -> int:
        chunk = marshal.dumps(record, _VERSION)
        position = self._size
        self.chunks.append(chunk)
        self._size += len(chunk)
        return position


def _plain(field: Field) -> tuple[Any, ...]:
    return (
        *(getattr(field, entry.name) for entry in dataclasses.fields(field)[:-2]),
        tuple((value.name, value.value, value.description) for value in field.values),
        field.description,
    )


def _node(data: memoryview, position: int) -> Node:
    kind, *values = marshal.loads(data[position:])
    link = _LINKS[kind]
    if kind == "Register":
        values[link] = tuple(
            _FIELD(*facts[:-2], tuple(Value(*value) for value in facts[-2]), facts[-1])
            for facts in marshal.loads(data[values[link] :])
        )
        return Register(*values)
    values[link] = _children(data, values[link])
    return Memory(*values) if kind == "Memory" else Block(*values)


def _children(data: memoryview, position: int) -> Children[Node]:
    names, arrays, *tables = marshal.loads(data[position:])
    starts, ends, positions = (array.array("Q", table) for table in tables)
    return Children(names, arrays, starts, ends, lambda number: _node(data, positions[number]))


def _link(kind: type) -> int:
    names = [entry.name for entry in dataclasses.fields(kind)]
    return names.index("parts" if kind is Register else "children")


_FIELD: Callable[..., Field] = Field
_LINKS = {kind.__name__: _link(kind) for kind in (Block, Register, Memory)}
