# SPDX-License-Identifier: MIT
"""The notation of the descriptions that ship with barfs.

    NAME OFFSET WIDTH[/ACCESS_WIDTH] [ACCESS] [: DESCRIPTION]
      FIELD HIGH[:LOW] ACCESS [NAME=NUMBER ...] [: DESCRIPTION]
        NAME=NUMBER ...                       more names of the field before

    ACCESS   r, w, rw; rw1c (writing 1 clears), rw1s (writing 1 sets), rwp (a pulse, reads as 0);
             re (a read changes it), wc (any write clears), rewc (both)

Offsets and widths are bytes. A register without fields has an access of its own. SystemRDL would
need its compiler wherever barfs runs, and some of these maps depend on what a device reads.
"""

import functools
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from barfs.registers.model import Field, Register, Value

_REGISTER = re.compile(r"(\w+) (\w+) (\d+)(?:/(\d+))?(?: (\w+))?(?: : (.*))?")
_FIELD = re.compile(r" +(\w+) (\d+)(?::(\d+))? (\w+)((?: \w+=\w+)*)(?: : (.*))?")
_VALUES = re.compile(r"    (?: ?\w+=\w+)+")
_ACCESS: dict[str, dict[str, Any]] = {
    "r": {"writable": False},
    "w": {"readable": False},
    "rw": {},
    "rw1c": {"onwrite": "woclr"},
    "rw1s": {"onwrite": "woset"},
    "rwp": {"singlepulse": True},
    "re": {"writable": False, "onread": "ruser"},
    "rew": {"onread": "ruser", "onwrite": "wuser"},
    "wc": {"onwrite": "wclr"},
    "rewc": {"onread": "ruser", "onwrite": "wclr"},
}


@functools.lru_cache(maxsize=64)
def registers(text: str) -> tuple[Register, ...]:
    """The registers of a text. Raises ValueError for a line that is neither of the two kinds."""
    found: list[tuple[re.Match[str], list[Field]]] = []
    for line in filter(str.strip, text.splitlines()):
        if match := _REGISTER.fullmatch(line):
            found.append((match, []))
        elif (match := _FIELD.fullmatch(line)) and found:
            found[-1][1].append(_field(match))
        elif _VALUES.fullmatch(line) and found and found[-1][1]:
            fields = found[-1][1]
            fields[-1] = replace(fields[-1], values=fields[-1].values + _values(line))
        else:
            raise ValueError(f"not in the notation: {line!r}")
    return tuple(_register(match, fields) for match, fields in found)


def array(nodes: Iterable[Register], count: int, stride: int) -> tuple[Register, ...]:
    """Each of the registers as an array."""
    return tuple(replace(node, dims=(count,), stride=stride) for node in nodes)


def _register(match: re.Match[str], fields: list[Field]) -> Register:
    name, offset, width, access_width, access, description = match.groups()
    if not fields:
        fields = [Field("", 0, 8 * int(width), **_ACCESS[access])]
    return Register(
        name,
        int(offset, 0),
        int(width),
        tuple(fields),
        int(access_width or 0),
        description=description or "",
    )


def _field(match: re.Match[str]) -> Field:
    name, high, low, access, values, description = match.groups()
    low = high if low is None else low
    return Field(
        name,
        int(low),
        int(high) - int(low) + 1,
        values=_values(values),
        description=description or "",
        **_ACCESS[access],
    )


def _values(text: str) -> tuple[Value, ...]:
    pairs = (each.partition("=") for each in text.split())
    return tuple(Value(name, int(number, 0)) for name, _equals, number in pairs)
