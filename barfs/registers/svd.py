# SPDX-License-Identifier: MIT
"""CMSIS-SVD: the registers of a processor's peripherals.

Rule 1: addresses are those of the processor. A BAR shows an aligned power of two of them, at least
        64 KiB: the smallest that holds every peripheral. Offsets count from its start.
Rule 2: an element that is `derivedFrom` another has what it does not say itself from that one.
Rule 3: names become identifiers. `name%s` or `name[%s]` with the indices 0, 1, 2 ... is an array,
        any other use of `%s` is as many nodes.

The format: CMSIS-SVD 1.3, "SVD Description (*.svd) Format".
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from barfs.registers.model import (
    Block,
    Field,
    Node,
    Register,
    Value,
    children_of,
)
from barfs.registers.names import LONGEST_NAME, Index, ModelError, unique_names
from barfs.registers.report import Compiled, Report
from barfs.registers.svd_texts import (
    BadElement,
    access_of,
    all_in,
    bits_of,
    counts_from_zero,
    dim_indices,
    each_in,
    elements,
    first_text,
    number_in,
    number_of,
    one_line,
    onread_of,
    onwrite_of,
    parse_number,
    text_of,
    value_numbers,
)
from barfs.registers.xml_reader import Element, read

T = TypeVar("T")

_SMALLEST_BAR = 16
_MOST_NAMES = 4096
"""Of one element whose dimensions are spelled out."""


def compile_svd(path: Path) -> Compiled:
    """Raises DescriptionError."""
    report = Report(path)
    return import_device(read(path, report), report)


def import_device(device: Element, report: Report) -> Compiled:
    """The map of a `<device>`. Raises DescriptionError."""
    if device.tag != "device":
        raise report.fail(device.line, f"must be a CMSIS-SVD <device>, not <{device.tag}>")
    root = _Importer(device, report).root()
    report.check()
    return Compiled(root, (report.path,), tuple(report.warnings))


@dataclass(frozen=True, slots=True)
class _Group:
    """Properties that an element passes on to those in it."""

    size: int = 32
    access: str = "read-write"
    reset: int | None = None
    onread: str | None = None
    onwrite: str | None = None


class _Importer:
    def __init__(self, device: Element, report: Report) -> None:
        self._device = device
        self._report = report
        self._peripherals = {
            text_of(each, "name"): each for each in each_in(device, "peripherals", "peripheral")
        }
        self._enumerations = {
            name: each
            for each in all_in(device, "enumeratedValues")
            if (name := text_of(each, "name"))
        }
        self._interned: dict[tuple[Field, ...], tuple[Field, ...]] = {}

    def root(self) -> Block:
        unit = self._try(lambda: number_in(self._device, "addressUnitBits", 8), 8)
        if unit != 8:
            self._report.error(self._device.line, f"addressUnitBits must be 8, not {unit}")
        group = self._try(lambda: self._group([self._device], _Group()), _Group())
        nodes: list[Node] = []
        for element in each_in(self._device, "peripherals", "peripheral"):
            nodes += self._try(partial(self._peripheral, element, group), [])
        if not nodes:
            raise self._report.fail(self._device.line, "must have a peripheral with registers")
        low = min(node.offset for node in nodes)
        high = max(node.offset + max(_extent(node), 1) for node in nodes)
        bits = max((low ^ (high - 1)).bit_length(), _SMALLEST_BAR)
        base = low >> bits << bits
        names = unique_names(node.name for node in nodes)
        placed = [
            replace(node, name=name, offset=node.offset - base)
            for node, name in zip(nodes, names, strict=True)
        ]
        return Block("", 0, high - base, children_of(placed))

    def _try(self, make: Callable[[], T], otherwise: T) -> T:
        try:
            return make()
        except BadElement as bad:
            self._report.error(bad.line, str(bad))
        return otherwise

    def _peripheral(self, element: Element, group: _Group) -> list[Node]:
        chain = self._chain(element, self._sibling_peripheral)
        group = self._group(chain, group)
        registers = next(
            (found for each in chain if (found := each.find("registers")) is not None), None
        )
        children = self._children(registers, group) if isinstance(registers, Element) else []
        return self._placed(element, chain, "baseAddress", self._block_of(children))

    def _block_of(self, children: list[Node]) -> "Callable[[str, int, Index, int, str], Node]":
        own = children_of(children)

        def make(name: str, offset: int, dims: Index, stride: int, description: str) -> Node:
            size = min(own.end, stride) if dims and stride else own.end
            return Block(name, offset, size, own, dims, stride, description)

        return make

    def _children(self, parent: Element, group: _Group) -> list[Node]:
        nodes: list[Node] = []
        for element in elements(parent):
            if element.tag == "register":
                nodes += self._try(partial(self._register, element, parent, group), [])
            elif element.tag == "cluster":
                nodes += self._try(partial(self._cluster, element, parent, group), [])
        names = unique_names(node.name for node in nodes)
        return [
            node if node.name == name else replace(node, name=name)
            for node, name in zip(nodes, names, strict=True)
        ]

    def _cluster(self, element: Element, parent: Element, group: _Group) -> list[Node]:
        chain = self._chain(element, self._finder(parent, "cluster"))
        group = self._group(chain, group)
        inner = next((each for each in chain if _has_registers(each)), element)
        return self._placed(
            element, chain, "addressOffset", self._block_of(self._children(inner, group))
        )

    def _register(self, element: Element, parent: Element, group: _Group) -> list[Node]:
        chain = self._chain(element, self._finder(parent, "register"))
        group = self._group(chain, group)
        if group.size < 8:  # bits of a bit-band: no access is smaller than a byte
            group = replace(group, size=8)
        if group.size not in (8, 16, 32, 64):
            raise BadElement(element, f"size must be 8, 16, 32 or 64 bits, not {group.size}")
        parts = self._fields(chain, group) or (self._whole(element, group),)
        parts = self._interned.setdefault(parts, parts)

        def make(name: str, offset: int, dims: Index, stride: int, description: str) -> Node:
            return Register(name, offset, group.size // 8, parts, 0, dims, stride, description)

        return self._placed(element, chain, "addressOffset", make)

    def _whole(self, element: Element, group: _Group) -> Field:
        readable, writable, once = access_of(element, group.access)
        return Field(
            "",
            0,
            group.size,
            readable,
            writable,
            onread_of(element, group.onread) if readable else None,
            onwrite_of(element, group.onwrite) if writable else None,
            write_once=once,
            reset=group.reset,
        )

    def _fields(self, chain: list[Element], group: _Group) -> tuple[Field, ...]:
        holder = next((found for each in chain if (found := each.find("fields")) is not None), None)
        if not isinstance(holder, Element):
            return ()
        made: list[Field] = []
        for element in elements(holder):
            if element.tag == "field":
                made += self._try(partial(self._field, element, holder, group), [])
        names = unique_names(field.name for field in made)
        return tuple(
            field if field.name == name else replace(field, name=name)
            for field, name in zip(made, names, strict=True)
        )

    def _field(self, element: Element, parent: Element, group: _Group) -> list[Field]:
        chain = self._chain(element, self._finder(parent, "field"))
        low, width = bits_of(element, chain)
        readable, writable, once = access_of(element, first_text(chain, "access") or group.access)
        onread = onread_of(element, first_text(chain, "readAction") or group.onread)
        onwrite = onwrite_of(element, first_text(chain, "modifiedWriteValues") or group.onwrite)
        reset = None if group.reset is None else group.reset >> low & (1 << width) - 1
        names, increment = self._names(element, chain, number_in(element, "dimIncrement", 0))
        try:
            return [
                Field(
                    name,
                    low + number * increment,
                    width,
                    readable,
                    writable,
                    onread if readable else None,
                    onwrite if writable else None,
                    False,
                    once,
                    reset if not number else None,
                    self._values(chain, width),
                    one_line(first_text(chain, "description")),
                )
                for number, name in enumerate(unique_names(names))
            ]
        except ModelError as error:
            raise BadElement(element, str(error)) from None

    def _values(self, chain: list[Element], width: int) -> tuple[Value, ...]:
        made: dict[int, Value] = {}
        for holder in (found for each in chain for found in each.findall("enumeratedValues")):
            assert isinstance(holder, Element)
            base = holder.get("derivedFrom")
            if base is not None:
                found = self._enumerations.get(base.rpartition(".")[2])
                if found is None:
                    raise BadElement(holder, f"derivedFrom names no enumeratedValues: {base}")
                holder = found
            for element in each_in(holder, None, "enumeratedValue"):
                for number in value_numbers(element, width):
                    name = unique_names([text_of(element, "name") or f"_{number}"])[0]
                    made.setdefault(
                        number, Value(name, number, one_line(text_of(element, "description")))
                    )
            if made:
                break
        return tuple(made.values())

    def _placed(
        self,
        element: Element,
        chain: list[Element],
        where: str,
        make: Callable[[str, int, Index, int, str], Node],
    ) -> list[Node]:
        """The node, or the nodes where its dimensions are spelled out."""
        text = first_text([element], where) or first_text(chain, where)
        if text is None:
            raise BadElement(element, f"must have <{where}>")
        offset = parse_number(element, where, text)
        description = one_line(first_text(chain, "description"))
        stride = number_of(chain, "dimIncrement", 0)
        name = first_text(chain, "name") or ""
        dim = number_of([element], "dim", 0) or number_of(chain, "dim", 0)
        try:
            plain = re.fullmatch(r"([^%]*?)(?:\[%s\]|%s)", name)
            if dim and plain and plain[1] and counts_from_zero(first_text(chain, "dimIndex"), dim):
                short = unique_names([plain[1].rstrip("[") or "_"])[0]
                return [make(short, offset, (dim,), stride, description)]
            names, _increment = self._names(element, chain, stride)
            return [
                make(clean[:LONGEST_NAME], offset + number * stride, (), 0, description)
                for number, clean in enumerate(unique_names(names))
            ]
        except ModelError as error:
            raise BadElement(element, str(error)) from None

    def _names(self, element: Element, chain: list[Element], step: int) -> tuple[list[str], int]:
        name = first_text(chain, "name")
        if not name:
            raise BadElement(element, "must have a <name>")
        dim = number_of(chain, "dim", 0)
        if not dim:
            return [name.replace("[%s]", "").replace("%s", "")], 0
        if dim > _MOST_NAMES:
            raise BadElement(
                element, f"dim must be at most {_MOST_NAMES} for the name {name}, not {dim}"
            )
        indices = dim_indices(element, first_text(chain, "dimIndex"), dim)
        if "%s" not in name:
            name += "%s"
        return [name.replace("[%s]", "%s").replace("%s", index) for index in indices], step

    def _group(self, chain: list[Element], outer: _Group) -> _Group:
        size, reset = (number_of(chain, key, None) for key in ("size", "resetValue"))
        return _Group(
            outer.size if size is None else size,
            first_text(chain, "access") or outer.access,
            outer.reset if reset is None else reset,
            first_text(chain, "readAction") or outer.onread,
            first_text(chain, "modifiedWriteValues") or outer.onwrite,
        )

    def _chain(self, element: Element, find: Callable[[str], Element | None]) -> list[Element]:
        """The element, then what it is derived from, the nearest first."""
        chain = [element]
        while (base := chain[-1].get("derivedFrom")) is not None:
            found = find(base)
            if found is None:
                raise BadElement(chain[-1], f"derivedFrom names no <{element.tag}>: {base}")
            if found in chain:
                raise BadElement(element, f"derivedFrom leads back to <{element.tag}> {base}")
            chain.append(found)
        return chain

    def _sibling_peripheral(self, name: str) -> Element | None:
        return self._peripherals.get(name)

    def _finder(self, parent: Element, tag: str) -> Callable[[str], Element | None]:
        def find(path: str) -> Element | None:
            *outer, name = path.split(".")
            scope: Element | None = parent
            if outer:
                scope = self._peripherals.get(outer[0])
                for each in outer[1:]:
                    scope = None if scope is None else _named(scope, None, each)
            return None if scope is None else _named(scope, tag, name)

        return find


def _named(scope: Element, tag: str | None, name: str) -> Element | None:
    """A register, cluster or field in it, at any depth: files leave out clusters in such paths."""
    for tags in ("register", "cluster", "field") if tag is None else (tag,):
        for element in scope.iter(tags):
            if isinstance(element, Element) and text_of(element, "name") == name:
                return element
    return None


def _has_registers(element: Element) -> bool:
    return element.find("register") is not None or element.find("cluster") is not None


def _extent(node: Node) -> int:
    return children_of([replace(node, offset=0)]).end
