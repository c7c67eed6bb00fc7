# SPDX-License-Identifier: MIT
"""A map as JSON, for files that travel: what names and values need, without the descriptions.

    to_json(root)       text
    from_json(text)     the root; ValueError for any other text

    {"parts": [PARTS, ...], "root": BLOCK}
    PARTS               a list of [name, low, width, access, onread, onwrite, flags, values]
    BLOCK               ["block", name, offset, dims, stride, size, [NODE, ...]]
    a memory            ["memory", name, offset, dims, stride, size, [NODE, ...], width, access]
    a register          ["register", name, offset, dims, stride, width, number of its PARTS,
                         access width, flags]

Rule 1: a text may be from anywhere: each of its numbers is one, and the model checks the rest.
"""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, get_args

from barfs.registers.model import (
    WIDEST_REGISTER,
    Block,
    Field,
    Memory,
    Node,
    OnRead,
    OnWrite,
    Register,
    Value,
    children_of,
)

_ACCESSES = ("rw", "r-", "-w", "--")
_LARGEST = 1 << 8 * WIDEST_REGISTER
_SINGLEPULSE, _WRITE_ONCE = 1, 2
_BIG_ENDIAN, _HIGH_FIRST = 1, 2


def to_json(root: Block) -> str:
    """The map as text."""
    texts: dict[str, int] = {}

    @functools.cache
    def number_of(parts: tuple[Field, ...]) -> int:
        """Parts that differ in their descriptions alone are the same here."""
        return texts.setdefault(_dump(list(map(_plain_field, parts))), len(texts))

    plain = _plain(root, number_of)
    return f'{{"root":{_dump(plain)},"parts":[{",".join(texts)}]}}'


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _plain(node: Node, number_of: Callable[[tuple[Field, ...]], int]) -> list[Any]:
    start: list[Any] = [node.name, node.offset, list(node.dims), node.stride]
    if isinstance(node, Register):
        number = number_of(node.parts)
        flags = _BIG_ENDIAN * node.big_endian | _HIGH_FIRST * node.high_first
        return ["register", *start, node.width, number, node.access_width, flags]
    inside = [_plain(child, number_of) for child in node.children]
    if isinstance(node, Memory):
        return ["memory", *start, node.size, inside, node.width, node.access]
    return ["block", *start, node.size, inside]


def _plain_field(field: Field) -> list[Any]:
    flags = _SINGLEPULSE * field.singlepulse | _WRITE_ONCE * field.write_once
    values = [[value.name, value.value] for value in field.values]
    actions = [field.onread, field.onwrite]
    return [field.name, field.low, field.width, field.access, *actions, flags, values]


def from_json(text: str) -> Block:
    """The map of a text. Raises ValueError."""
    try:
        record = json.loads(text)
        parts = [tuple(map(_field, fields)) for fields in record["parts"]]
        root = _node(record["root"], parts)
    except (TypeError, KeyError, IndexError, RecursionError) as error:
        raise ValueError(f"no map of registers: {error}") from None
    if not isinstance(root, Block):
        raise ValueError("no map of registers: its root must be a block")
    return root


def _node(facts: Sequence[Any], parts: Sequence[tuple[Field, ...]]) -> Node:
    kind, name, offset, dims, stride, *rest = facts
    _check_text(name)
    index = tuple(map(_number, dims))
    _number(offset), _number(stride)
    if kind == "register":
        width, number, access_width, flags = map(_number, rest)
        return Register(
            name,
            offset,
            width,
            parts[number],
            access_width,
            index,
            stride,
            big_endian=bool(flags & _BIG_ENDIAN),
            high_first=bool(flags & _HIGH_FIRST),
        )
    size, inside, *more = rest
    children = children_of(_node(child, parts) for child in inside)
    if kind == "memory":
        width, access = more
        readable, writable = _access(access)
        return Memory(
            name, offset, _number(size), _number(width), children, readable, writable, index, stride
        )
    if kind != "block" or more:
        raise ValueError(f"no map of registers: {kind!r} must be block, register or memory")
    return Block(name, offset, _number(size), children, index, stride)


def _field(facts: Sequence[Any]) -> Field:
    name, low, width, access, onread, onwrite, flags, values = facts
    _check_text(name)
    readable, writable = _access(access)
    if onread not in (None, *get_args(OnRead)) or onwrite not in (None, *get_args(OnWrite)):
        raise ValueError(f"no map of registers: {name} has an unknown side effect")
    for text, number in values:
        _check_text(text)
        _number(number)
    return Field(
        name,
        _number(low),
        _number(width),
        readable,
        writable,
        onread,
        onwrite,
        singlepulse=bool(_number(flags) & _SINGLEPULSE),
        write_once=bool(flags & _WRITE_ONCE),
        values=tuple(Value(*value) for value in values),
    )


def _access(text: Any) -> tuple[bool, bool]:
    if text not in _ACCESSES:
        raise ValueError(f"no map of registers: an access must be one of {', '.join(_ACCESSES)}")
    return "r" in text, "w" in text


def _number(value: Any) -> int:
    if type(value) is not int or abs(value) >= _LARGEST:
        raise ValueError("no map of registers: a number is none, or too large")
    return value


def _check_text(value: Any) -> None:
    if type(value) is not str:
        raise ValueError("no map of registers: a name must be a text")
