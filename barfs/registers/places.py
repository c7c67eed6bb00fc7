# SPDX-License-Identifier: MIT
"""A register map as users name it: paths, patterns, files, and what lies at an offset.

Rule 1: pure, and lazy: a lookup makes the nodes on its way, nothing else.
Rule 2: paths are `dma.chan[2].ctrl.mode`, or as files are named: `dma/chan2/ctrl.mode`. Both are
        taken everywhere; the first is what is shown.
"""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from barfs.registers.errors import NoSuchElement, NoSuchName
from barfs.registers.model import Block, Field, Node, Register, element_offset
from barfs.registers.names import Index, bracket, indices

_SEPARATORS = re.compile(r"[./]")
_INDICES = re.compile(r"((?:\[(?:[0-9]{1,20}|\*)\])+)\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Place:
    """A node at its place in a region, or a field of the register there.

    `path` is `dma.chan[2].ctrl`, `files` is `dma/chan2/ctrl`; both without the field. `offset` is
    in the region, in bytes.
    """

    node: Node
    path: str
    files: str
    offset: int
    field: Field | None = None

    @property
    def name(self) -> str:
        """The path, with the field."""
        return f"{self.path}.{self.field.name}" if self.field else self.path

    @property
    def file_name(self) -> str:
        """The last part of `files`, with the field: `ctrl.mode`."""
        name = self.files.rpartition("/")[2]
        return f"{name}.{self.field.name}" if self.field else name

    @property
    def shown(self) -> str:
        """`dma.chan2.ctrl.mode`: as files are named, for it goes through shells unquoted."""
        name = self.files.replace("/", ".")
        return f"{name}.{self.field.name}" if self.field else name

    @property
    def end(self) -> int:
        """Where the node ends in the region."""
        return self.offset + self.node.size

    @property
    def register(self) -> Register:
        assert isinstance(self.node, Register)
        return self.node

    def names(self) -> Iterator[str]:
        """The names of the files in a block: of blocks, registers, and fields (`ctrl.mode`)."""
        if isinstance(self.node, Register) or self.field:
            return
        known: dict[int, tuple[str, ...]] = {}
        for name, number, _index in self.node.children.file_names():
            yield name
            if number not in known:
                node = self.node.children[number]
                fields = node.fields if isinstance(node, Register) else ()
                known = {number: tuple(field.name for field in fields)}
            for field in known[number]:
                yield f"{name}.{field}"

    def child(self, name: str) -> "Place | None":
        """What this file name leads to: `chan2`, `ctrl`, `ctrl.mode`; in a register, a field."""
        if isinstance(self.node, Register):
            return None if self.field else self._with_field(name)
        name, _dot, field_name = name.partition(".")
        found = self.node.children.look_up(name)
        if found is None:
            return None
        place = self._element(*found)
        if not _dot:
            return place
        return place._with_field(field_name)

    def children(self) -> Iterator["Place"]:
        """Blocks, registers and memories in it, arrays expanded, without fields."""
        if isinstance(self.node, Register):
            return
        for number, node in enumerate(self.node.children):
            for index in indices(node.dims):
                yield self._element(number, index, node)

    def fields(self) -> Iterator["Place"]:
        """The fields of a register that have names."""
        if isinstance(self.node, Register):
            for field in self.node.fields:
                yield replace(self, field=field)

    def registers(self) -> Iterator["Place"]:
        """It, or all registers in it."""
        if isinstance(self.node, Register):
            yield self
            return
        for child in self.children():
            yield from child.registers()

    def with_effects(self) -> Iterator["Place"]:
        """The registers in it whose read has side effects."""
        if isinstance(self.node, Register):
            if self.node.readable and self.node.read_has_effects:
                yield self
            return
        for number, node in enumerate(self.node.children):
            for index in indices(node.dims):
                found = list(self._element(number, index, node).with_effects())
                if not found:  # the elements of an array are alike
                    break
                yield from found

    def _element(self, number: int, index: Index, node: Node | None = None) -> "Place":
        assert not isinstance(self.node, Register)
        children = self.node.children
        node = children[number] if node is None else node
        name = bracket(node.name, index)
        files = children.file_name(number, index)
        return Place(
            node,
            f"{self.path}.{name}" if self.path else name,
            f"{self.files}/{files}" if self.files else files,
            self.offset + node.offset + element_offset(node, index),
        )

    def _with_field(self, name: str) -> "Place | None":
        field = self.node.field(name) if isinstance(self.node, Register) else None
        return None if field is None else replace(self, field=field)

    def _within(self, start: int, end: int) -> Iterator["Place"]:
        """The registers that touch `[start, end)` of the region."""
        if isinstance(self.node, Register):
            yield self
            return
        children = self.node.children
        for number in children.touching(start - self.offset, end - self.offset):
            node = children[number]
            for index in _elements_within(node, start - self.offset, end - self.offset):
                yield from self._element(number, index, node)._within(start, end)


class RegisterMap:
    """The registers of one region. `root` is its place; `source` says where it comes from.

    >>> from barfs.registers.model import Block, Field, Register
    >>> ctrl = Register("ctrl", 4, 4, (Field("enable", 0, 1), Field("mode", 1, 2)))
    >>> dma = Block.of("dma", 0x100, [Block.of("chan", 0, [ctrl], dims=(4,), stride=0x10)])
    >>> registers = RegisterMap(Block.of("", 0, [dma]), "card.rdl")
    >>> hex(registers.find("dma.chan[2].ctrl").offset), registers.find("dma/chan2/ctrl").path
    ('0x124', 'dma.chan[2].ctrl')
    >>> [place.name for place in registers.match("dma.chan*.ctrl.en*")][:2]
    ['dma.chan[0].ctrl.enable', 'dma.chan[1].ctrl.enable']
    >>> [place.path for place in registers.at(0x116, 4)]
    ['dma.chan[1].ctrl']
    """

    def __init__(self, root: Block, source: str, offset: int = 0) -> None:
        self.root = Place(root, "", "", offset + root.offset)
        self.source = source

    @classmethod
    def joined(cls, maps: "Iterable[RegisterMap]") -> "RegisterMap":
        """One map of several for one region. Raises ModelError where two have a name in common."""
        maps = list(maps)
        if len(maps) == 1:
            return maps[0]
        nodes = [
            replace(node, offset=node.offset + each.root.offset)
            for each in maps
            if isinstance(each.root.node, Block)
            for node in each.root.node.children
        ]
        return cls(Block.of("", 0, nodes), ", ".join(each.source for each in maps))

    def find(self, path: str) -> Place:
        """What has this path. Raises NoSuchName, which says what there is instead."""
        place = self.root
        for segment in _segments(path):
            found = place.child(segment)
            if found is None:
                raise _wrong_index(path, place, segment) or NoSuchName(
                    _advice(path, place, segment)
                )
            place = found
        return place

    def match(self, pattern: str) -> Iterator[Place]:
        """Registers and fields whose paths match; a block that matches gives all its registers.

        `*` and `?` match within one name, `[2]` and `[*]` are indices. Raises NoSuchName when
        nothing matches.
        """
        segments = _segments(pattern)
        found = _matching(self.root, segments)
        first = next(found, None)
        if first is None:
            self._check_indices(pattern, segments)
            raise NoSuchName(f"{pattern} matches no register of {self.source}")
        yield first
        yield from found

    def _check_indices(self, pattern: str, segments: Iterable[str]) -> None:
        """Raises NoSuchElement for the first part with an index that its array does not have."""
        place = self.root
        for segment in segments:
            found = place.child(segment)
            if found is None:
                if "*" not in segment and (error := _wrong_index(pattern, place, segment)):
                    raise error
                return
            place = found

    def registers(self) -> Iterator[Place]:
        """All registers, arrays expanded, in the order of the description."""
        return self.root.registers()

    def at(self, offset: int, size: int = 1) -> list[Place]:
        """The registers that the bytes `[offset, offset + size)` of the region touch."""
        return list(self.root._within(offset, offset + size))


def _segments(path: str) -> list[str]:
    return _SEPARATORS.split(path.strip("/")) if path.strip("/") else []


def _matching(place: Place, segments: list[str]) -> Iterator[Place]:
    if not segments:
        yield from [place] if place.field else place.registers()
        return
    first, rest = segments[0], segments[1:]
    if isinstance(place.node, Register):
        if not rest and not place.field:
            yield from (
                each for each in place.fields() if each.field and _fits(each.field.name, first)
            )
        return
    children = place.node.children
    exact = children.look_up(first)
    if exact is not None:
        yield from _matching(place._element(*exact), rest)
        return
    wanted = _INDICES.search(first)
    name = first[: wanted.start()] if wanted else first
    for number, own in enumerate(children.names):
        whole = _fits(own, name)
        if not whole and (wanted or number not in children.arrays):
            continue
        for index in indices(children.dims(number)):
            if wanted:
                matches = whole and _index_matches(wanted[1], index)
            else:
                matches = whole or _fits(children.file_name(number, index), name)
            if matches:
                yield from _matching(place._element(number, index), rest)


def _fits(name: str, pattern: str) -> bool:
    """`*` and `?` alone are wildcards: brackets have indices."""
    return fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))


def _index_matches(wanted: str, index: Index) -> bool:
    texts = wanted[1:-1].split("][")
    return len(texts) == len(index) and all(
        text == "*" or int(text) == position for text, position in zip(texts, index, strict=True)
    )


def _elements_within(node: Node, start: int, end: int) -> Iterator[Index]:
    """The indices of the elements that touch `[start, end)` of the parent."""
    start, end = start - node.offset, end - node.offset
    if not node.dims:
        if start < node.size and end > 0:
            yield ()
        return
    count = 1
    for dim in node.dims:
        count *= dim
    stride = max(node.stride, 1)
    first = max((start - node.size) // stride + 1, 0)
    for number in range(first, min(-(-end // stride), count)):
        index = []
        for dim in reversed(node.dims):
            number, position = divmod(number, dim)
            index.append(position)
        yield tuple(reversed(index))


def _wrong_index(path: str, place: Place, segment: str) -> NoSuchElement | None:
    """The error of an array's name, if it is one."""
    base = segment.partition("[")[0]
    if isinstance(place.node, Register):
        return None
    number = place.node.children.numbers.get(base, -1)
    if number not in place.node.children.arrays:
        return None
    dims = place.node.children.dims(number)
    first, last = bracket(base, (0,) * len(dims)), bracket(base, tuple(dim - 1 for dim in dims))
    return NoSuchElement(f"{path}: write an element from {first} to {last}")


def _advice(path: str, place: Place, segment: str) -> str:
    where = place.path or "the map"
    if isinstance(place.node, Register):
        known = [field.name for field in place.node.fields] if not place.field else []
    else:
        known = [
            bracket(name, place.node.children.dims(number))
            for number, name in enumerate(place.node.children.names)
        ]
    close = difflib.get_close_matches(segment, known, 3, 0.4) or known[:6]
    more = "; " + ("did you mean " if known else "") + ", ".join(close) if close else ""
    return f"{path}: {where} has no {segment or 'empty name'}{more}"
