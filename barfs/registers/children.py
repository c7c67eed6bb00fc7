# SPDX-License-Identifier: MIT
"""The nodes of one block, which are made when they are looked up, and the names of their files.

Rule 1: one file name, one node. Elements of an array whose names a sibling's could be keep their
        brackets (`chan[10]`, where `chan1` is an array, too), and no identifier has brackets.
Rule 2: what lookups need of every node is here without making it: its name, its dims, and the bytes
        from the start of the first element to the end of the last.
"""

import bisect
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, overload

from barfs.registers.names import Index, ModelError, bracket, indices

T = TypeVar("T")

_DIGITS = re.compile(r"(?:0|[1-9][0-9]*)(?:_(?:0|[1-9][0-9]*))*", re.ASCII)
_LAST_DIGITS = re.compile(r"[0-9_]*\Z", re.ASCII)
_BRACKETS = re.compile(r"([A-Za-z0-9_]+)((?:\[[0-9]{1,20}\])+)", re.ASCII)
_LONGEST_INDEX = 60


class Children(Sequence[T]):
    """Nodes in the order of the description; `load` makes the one of a number.

    `arrays` has the dims of those that are arrays, by number, and `ends` are exclusive.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        arrays: dict[int, Index],
        starts: Sequence[int],
        ends: Sequence[int],
        load: Callable[[int], T],
    ) -> None:
        self.names = names
        self.arrays = arrays
        self.starts = starts
        self.ends = ends
        self.numbers = {name: number for number, name in enumerate(names)}
        if len(self.numbers) != len(names):
            twice = next(name for i, name in enumerate(names) if self.numbers[name] != i)
            raise ModelError(f"the name {twice} must be given once in a block, not twice")
        self._load = load

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[T]:
        return map(self._load, range(len(self.names)))

    @overload
    def __getitem__(self, number: int) -> T: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[T]: ...
    def __getitem__(self, number: int | slice) -> T | Sequence[T]:
        if isinstance(number, slice):
            return [self._load(each) for each in range(*number.indices(len(self.names)))]
        return self._load(range(len(self.names))[number])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Children) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(self.names)

    @property
    def end(self) -> int:
        return max(self.ends, default=0)

    def dims(self, number: int) -> Index:
        """Empty for what is no array."""
        return self.arrays.get(number, ())

    def get(self, name: str) -> T | None:
        number = self.numbers.get(name)
        return None if number is None else self._load(number)

    def touching(self, start: int, end: int) -> list[int]:
        """The numbers of the nodes that may have bytes in `[start, end)`, in order."""
        order, starts, farthest = self._by_start
        found = []
        position = bisect.bisect_left(starts, end) - 1
        while position >= 0 and farthest[position] > start:
            if self.ends[order[position]] > start:
                found.append(order[position])
            position -= 1
        return sorted(found)

    @functools.cached_property
    def _by_start(self) -> tuple[list[int], list[int], list[int]]:
        """Numbers by start; their starts; and how far these and all before them reach."""
        order = sorted(range(len(self.names)), key=self.starts.__getitem__)
        starts = [self.starts[number] for number in order]
        farthest = list(itertools.accumulate((self.ends[number] for number in order), max))
        return order, starts, farthest

    def file_name(self, number: int, index: Index) -> str:
        """The name of one element, or of a node that is no array."""
        name = self.names[number]
        if number in self.bracketed:
            return bracket(name, index)
        return name + "_".join(map(str, index))

    def file_names(self) -> Iterator[tuple[str, int, Index]]:
        """Every name, with the number and the index of its node."""
        for number in range(len(self.names)):
            for index in indices(self.dims(number)):
                yield self.file_name(number, index), number, index

    def look_up(self, name: str) -> tuple[int, Index] | None:
        """The number and the index of what has this name, as a file or with brackets."""
        number = self.numbers.get(name)
        if number is not None and number not in self.arrays:
            return number, ()
        if found := _BRACKETS.fullmatch(name):
            number = self.numbers.get(found[1], -1)
            index = tuple(int(text) for text in found[2][1:-1].split("]["))
            return (number, index) if _is_in(index, self.dims(number)) else None
        for number, index in self._elements(name):
            if number not in self.bracketed:
                return number, index
        return None

    @functools.cached_property
    def bracketed(self) -> frozenset[int]:
        """The arrays whose elements keep their brackets."""
        return frozenset(self._find_bracketed()) if self.arrays else frozenset()

    def _find_bracketed(self) -> Iterator[int]:
        for name, number in self.numbers.items():
            if number not in self.arrays:
                yield from (array for array, _index in self._elements(name))
                continue
            for base, rest in _splits(name):
                other = self.numbers.get(base, -1)
                if other in self.arrays and _may_meet(
                    self.arrays[other], rest, self.arrays[number]
                ):
                    yield from (other, number)

    def _elements(self, name: str) -> Iterator[tuple[int, Index]]:
        """The elements of arrays that could have this name."""
        for base, rest in _splits(name):
            number = self.numbers.get(base, -1)
            if number in self.arrays and _DIGITS.fullmatch(rest):
                index = tuple(map(int, rest.split("_")))
                if _is_in(index, self.arrays[number]):
                    yield number, index


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """The ways to see digits and underscores at the end as an index."""
    found = _LAST_DIGITS.search(name)
    last = found.start() if found else len(name)
    for position in range(max(last, len(name) - _LONGEST_INDEX, 1), len(name)):
        yield name[:position], name[position:]


def _may_meet(dims: Index, rest: str, others: Index) -> bool:
    """Whether `x` + an index in `dims` can be `x` + `rest` + an index in `others`."""
    if len(dims) > 1 or len(others) > 1:
        return True
    return rest.isdecimal() and rest[0] != "0" and int(f"{rest}0") < dims[0]


def _is_in(index: Index, dims: Index) -> bool:
    return len(index) == len(dims) > 0 and all(map(int.__lt__, index, dims))
