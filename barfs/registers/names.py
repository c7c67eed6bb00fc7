# SPDX-License-Identifier: MIT
"""Names of nodes and fields, and the indices of arrays."""

import itertools
import re
from collections.abc import Iterable, Iterator

Index = tuple[int, ...]

LONGEST_NAME = 100
"""A register's, its index and a field's make one file name, of at most 255 bytes."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class ModelError(ValueError):
    """Facts that contradict each other; front ends add the file and the line."""


def check_name(name: str) -> None:
    """Raises ModelError unless the name is an identifier of a length that a file can have."""
    if not _NAME.fullmatch(name):
        raise ModelError(f"the name {name!r} must be letters, digits and _, with no digit first")
    if len(name) > LONGEST_NAME:
        raise ModelError(f"the name {name[:20]}... must have at most {LONGEST_NAME} characters")


def unique_names(names: Iterable[str]) -> list[str]:
    """Names made of others: identifiers, none too long, none twice.

    >>> unique_names(["CR 1", "CR_1", "0x40", "", "../etc"])
    ['CR_1', 'CR_1_2', '_0x40', '_', '___etc']
    """
    found: list[str] = []
    taken: set[str] = set()
    counts: dict[str, int] = {}
    for name in names:
        clean = re.sub(r"[^A-Za-z0-9_]", "_", name) or "_"
        clean = f"_{clean}" if clean[0].isdigit() else clean
        unique = clean = clean[:LONGEST_NAME]
        while unique in taken:
            counts[clean] = counts.get(clean, 1) + 1
            unique = f"{clean[: LONGEST_NAME - 8]}_{counts[clean]}"
        taken.add(unique)
        found.append(unique)
    return found


def bracket(name: str, index: Index) -> str:
    """`chan[2][0]`, as paths have it."""
    return name + "".join(f"[{position}]" for position in index)


def indices(dims: Index) -> Iterator[Index]:
    """All indices of an array, the last the fastest; one empty index for what is none.

    >>> list(indices((2, 2)))
    [(0, 0), (0, 1), (1, 0), (1, 1)]
    """
    return itertools.product(*map(range, dims))
