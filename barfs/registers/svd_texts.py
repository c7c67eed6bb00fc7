# SPDX-License-Identifier: MIT
"""The texts of CMSIS-SVD: numbers, bits, accesses, indices of dimensions.

The format: CMSIS-SVD 1.3, "SVD Description (*.svd) Format".
"""

import re
from collections.abc import Iterator
from typing import TypeVar

from barfs.registers.model import OnRead, OnWrite
from barfs.registers.xml_reader import Element

T = TypeVar("T")

_MOST_VALUES = 64
_ACCESS = {
    "read-only": (True, False, False),
    "write-only": (False, True, False),
    "read-write": (True, True, False),
    "writeOnce": (False, True, True),
    "read-writeOnce": (True, True, True),
    # From before 1.0, and still in use.
    "write": (False, True, False),
    "read": (True, False, False),
}
_ON_READ: dict[str, OnRead] = {
    "clear": "rclr",
    "set": "rset",
    "modify": "ruser",
    "modifyExternal": "ruser",
}
_ON_WRITE: dict[str, OnWrite | None] = {
    "oneToClear": "woclr",
    "oneToSet": "woset",
    "oneToToggle": "wot",
    "zeroToClear": "wzc",
    "zeroToSet": "wzs",
    "zeroToToggle": "wzt",
    "clear": "wclr",
    "set": "wset",
    "modify": None,
}
_NUMBER = re.compile(r"\+?(0x[0-9a-f]+|#[01]+|0b[01]+|[0-9]+)([kmgt]?)", re.I | re.ASCII)
_BIT_RANGE = re.compile(r"\[([0-9]{1,5}):([0-9]{1,5})\]", re.ASCII)
_PLACES = ("bitRange", "lsb", "bitOffset")
_INDEX_RANGE = re.compile(r"([0-9]{1,6})-([0-9]{1,6})|([A-Z])-([A-Z])", re.ASCII)


class BadElement(Exception):
    """What is wrong with one element; told once, and the element is left out."""

    def __init__(self, element: Element, text: str) -> None:
        self.line = element.line
        super().__init__(text)


def elements(parent: Element) -> Iterator[Element]:
    return (each for each in parent if isinstance(each, Element))


def each_in(parent: Element, holder: str | None, tag: str) -> Iterator[Element]:
    path = tag if holder is None else f"{holder}/{tag}"
    return (each for each in parent.iterfind(path) if isinstance(each, Element))


def all_in(parent: Element, tag: str) -> Iterator[Element]:
    return (each for each in parent.iter(tag) if isinstance(each, Element))


def text_of(element: Element, tag: str) -> str | None:
    text = element.findtext(tag)
    return text.strip() or None if text else None


def first_text(chain: list[Element], tag: str) -> str | None:
    return next((text for each in chain if (text := text_of(each, tag))), None)


def one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def number_in(element: Element, tag: str, default: int) -> int:
    return number_of([element], tag, default)


def number_of(chain: list[Element], tag: str, default: T) -> "int | T":
    for element in chain:
        if (text := text_of(element, tag)) is not None:
            return parse_number(element, tag, text)
    return default


def parse_number(element: Element, tag: str, text: str) -> int:
    found = _NUMBER.fullmatch(text) if len(text) < 100 else None
    if found is None:
        raise BadElement(element, f"<{tag}> must be a number like 16 or 0x10, not {text[:40]!r}")
    digits = found[1].lower().replace("#", "0b")
    number = int(digits, 0) if digits[:2] in ("0x", "0b") else int(digits)
    return number << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[found[2].lower()]


def bits_of(element: Element, chain: list[Element]) -> tuple[int, int]:
    """The lowest bit and the count of a field, in any of the three ways to write them."""
    nearest = next((each for each in chain if any(text_of(each, tag) for tag in _PLACES)), None)
    if nearest is None:
        raise BadElement(element, "must have <bitRange>, <bitOffset> or <lsb>")
    if (text := text_of(nearest, "bitRange")) is not None:
        found = _BIT_RANGE.fullmatch(text)
        if found is None:
            raise BadElement(element, f"<bitRange> must be like [7:4], not {text[:40]!r}")
        high, low = int(found[1]), int(found[2])
    elif text_of(nearest, "lsb") is not None:
        low = number_of(chain, "lsb", 0)
        high = number_of(chain, "msb", low)
    else:
        low = number_of(chain, "bitOffset", 0)
        high = low + number_of(chain, "bitWidth", 1) - 1
    if high < low:
        raise BadElement(
            element, f"must end at a bit not below its first, not at {high} below {low}"
        )
    return low, high - low + 1


def access_of(element: Element, access: str) -> tuple[bool, bool, bool]:
    found = next((kind for kind in _ACCESS if kind.lower() == access.lower()), None)
    if found is None:
        raise BadElement(
            element, f"<access> must be {', '.join(list(_ACCESS)[:5])}, not {access[:40]!r}"
        )
    return _ACCESS[found]


def onread_of(element: Element, action: str | None) -> OnRead | None:
    if action is not None and action not in _ON_READ:
        raise BadElement(
            element, f"<readAction> must be {', '.join(_ON_READ)}, not {action[:40]!r}"
        )
    return None if action is None else _ON_READ[action]


def onwrite_of(element: Element, action: str | None) -> OnWrite | None:
    if action is not None and action not in _ON_WRITE:
        raise BadElement(
            element, f"<modifiedWriteValues> must be {', '.join(_ON_WRITE)}, not {action[:40]!r}"
        )
    return None if action is None else _ON_WRITE[action]


def value_numbers(element: Element, width: int) -> list[int]:
    """The numbers of an enumerated value; `x` in a binary one is either digit."""
    text = (text_of(element, "value") or "").lower()
    if not text:
        return []  # isDefault: all the others
    pattern = re.fullmatch(r"(?:#|0b)([01x]+)", text)
    if pattern is None or "x" not in pattern[1]:
        number = parse_number(element, "value", text)
        return [number] if number < 1 << width else []
    if 1 << pattern[1].count("x") > _MOST_VALUES:
        return []
    found = [0]
    for digit in pattern[1]:
        found = [
            number << 1 | bit
            for number in found
            for bit in ((0, 1) if digit == "x" else (int(digit),))
        ]
    return found


def counts_from_zero(text: str | None, dim: int) -> bool:
    """Whether the indices of a dimension are 0, 1, 2 ..."""
    if text is None:
        return True
    found = _INDEX_RANGE.fullmatch(text)
    if found and found[1]:
        return (int(found[1]), int(found[2])) == (0, dim - 1)
    indices = text.split(",")
    return len(indices) == dim and all(
        index.strip() == str(number) for number, index in enumerate(indices)
    )


def dim_indices(element: Element, text: str | None, dim: int) -> list[str]:
    if text is None:
        return [str(number) for number in range(dim)]
    found = _INDEX_RANGE.fullmatch(text)
    if found and found[1]:
        indices = [str(number) for number in range(int(found[1]), int(found[2]) + 1)]
    elif found:
        indices = [chr(code) for code in range(ord(found[3]), ord(found[4]) + 1)]
    else:
        indices = [index.strip() for index in text.split(",")]
    if len(indices) != dim:
        raise BadElement(
            element, f"<dimIndex> must name the {dim} elements of <dim>, not {len(indices)}"
        )
    return indices
