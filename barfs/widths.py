# SPDX-License-Identifier: MIT
"""Widths of accesses in bytes, and sets of them.

Rule 1: pure. A set is a tuple, the narrowest first, and is never empty.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from barfs.ranges import Range

Widths = tuple[int, ...]

WIDTHS: Widths = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class AllowedWidths(Range):
    """A range of a region in which accesses must have one of these widths."""

    widths: Widths


def widths_of(values: Iterable[Any]) -> Widths:
    """The set of some widths. Raises ValueError for anything else.

    >>> widths_of([8, 4, 4])
    (4, 8)
    """
    found = tuple(values)
    if not found or any(type(value) is not int or value not in WIDTHS for value in found):
        raise ValueError("widths must be some of 1, 2, 4 and 8")
    return tuple(sorted(set(found)))


def cut_width(widths: Sequence[int], limit: int) -> int:
    """The widest of `widths` within `limit`, or else the narrowest, as the engine has it
    (`transfer.h`).

    >>> cut_width((1, 2, 8), 4), cut_width((8,), 4)
    (2, 8)
    """
    return max((width for width in widths if width <= limit), default=min(widths))


def in_words(widths: Sequence[int]) -> str:
    """A set in a sentence.

    >>> in_words((1, 2, 4)), in_words((8,))
    ('1, 2 or 4 bytes', '8 bytes')
    """
    *most, last = map(str, widths)
    return f"{', '.join(most)} or {last} bytes" if most else f"{last} bytes"
