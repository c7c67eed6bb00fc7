# SPDX-License-Identifier: MIT
"""The register model: facts about registers, whatever language describes them.

    RegisterMap(root, source)            barfs.registers.places: the lookups
      Block(name, offset, children)      addrmap, regfile, peripheral, cluster
        Register(name, offset, width, parts)
          Field(name, low, width, ...)   its `values` are its enumeration
        Memory(name, offset, size, ...)

    map.find("dma.chan[2].ctrl")         a Place: a block, a register or a memory with its indices
    map.find("dma.chan[2].ctrl.mode")    the same, with `place.field`
    map.match("dma.chan*.status")        Places, in the order of the description
    map.registers()                      Places of all registers, arrays expanded
    map.at(offset, size)                 Places of the registers that these bytes touch
    map.root.names(), map.root.child("chan2")       the tree as files (`dma/chan2/ctrl`)

Rule 1: pure. No file, no device, no access.
Rule 2: offsets are bytes from the start of the parent, widths of registers and memories bytes,
        widths and positions of fields bits, bit 0 the least significant of the register's value.
Rule 3: arrays are one node with `dims` and one `stride`, the last index the fastest; elements
        exist only in what a lookup gives.
Rule 4: names are identifiers (`[A-Za-z_][A-Za-z0-9_]*`) and unique among siblings. A front end
        whose language allows more makes them so with `unique_names`.
Rule 5: a register that has no fields has one part without a name, which says how it is accessed.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from barfs.registers.children import Children
from barfs.registers.names import Index, ModelError, check_name

OnRead = Literal["rclr", "rset", "ruser"]
OnWrite = Literal["woset", "woclr", "wot", "wzs", "wzc", "wzt", "wclr", "wset", "wuser"]

WIDEST_REGISTER = 512
"""In bytes."""
_END = 1 << 63


@dataclass(frozen=True, slots=True)
class Value:
    """One name of an enumeration."""

    name: str
    value: int
    description: str = ""


@dataclass(frozen=True, slots=True)
class Field:
    """Bits `[low, low + width)` of a register; side effects as in SystemRDL 2.0, section 9.6.

    `write_once`: only the first write after a reset counts. `values` is the enumeration.
    """

    name: str
    low: int
    width: int
    readable: bool = True
    writable: bool = True
    onread: OnRead | None = None
    onwrite: OnWrite | None = None
    singlepulse: bool = False
    write_once: bool = False
    reset: int | None = None
    values: tuple[Value, ...] = ()
    description: str = ""

    def __post_init__(self) -> None:
        if self.name:
            check_name(self.name)
        if self.low < 0 or self.width < 1:
            raise ModelError(f"field {self.name} must have at least one bit, from 0 on")

    @property
    def high(self) -> int:
        """The last bit that belongs to it."""
        return self.low + self.width - 1

    @property
    def mask(self) -> int:
        """Its bits in the register."""
        return (1 << self.width) - 1 << self.low

    @property
    def bits(self) -> str:
        """`7:4`, or `3` for a single bit."""
        return str(self.low) if self.width == 1 else f"{self.high}:{self.low}"

    @property
    def access(self) -> str:
        """`rw`, `r-`, `-w` or `--`, as in a layout."""
        return _access(self.readable, self.writable)


@dataclass(frozen=True, slots=True)
class Register:
    """A register, or an array of them where `dims` is not empty.

    `access_width` is the width of one access, in bytes: a wider register is made of several words,
    the first at the lowest address. It holds the low bits, or the high ones where `high_first`.
    In a `big_endian` register the bytes of a word are swapped; such a one is `high_first`, too.
    """

    name: str
    offset: int
    width: int
    parts: tuple[Field, ...]
    access_width: int = 0
    dims: Index = ()
    stride: int = 0
    description: str = ""
    external: bool = False
    big_endian: bool = False
    high_first: bool = False

    def __post_init__(self) -> None:
        check_name(self.name)
        if not 1 <= self.width <= WIDEST_REGISTER:
            raise ModelError(
                f"register {self.name} must have 8 to {8 * WIDEST_REGISTER} bits, "
                f"not {8 * self.width}"
            )
        if not self.access_width:
            object.__setattr__(self, "access_width", min(self.width, 8))
        if self.access_width not in (1, 2, 4, 8) or self.width % self.access_width:
            raise ModelError(
                f"register {self.name} of {8 * self.width} bits must be accessed in 8, 16, 32 or "
                f"64 bits that divide them, not in {8 * self.access_width}"
            )
        if self.offset % self.access_width or (self.dims and self.stride % self.access_width):
            raise ModelError(
                f"register {self.name} at {self.offset:#x} must lie at a multiple of its access "
                f"width, {self.access_width} bytes"
            )
        if not self.parts:
            raise ModelError(f"register {self.name} must have a part")
        for field in self.parts:
            if field.high >= 8 * self.width:
                raise ModelError(
                    f"field {self.name}.{field.name} must lie in the {8 * self.width} bits of its "
                    f"register, not in {field.bits}"
                )
        _check_array(self.name, self.offset, self.dims, self.stride, self.width)
        _check_parts(self)

    @property
    def fields(self) -> tuple[Field, ...]:
        """The parts that have names."""
        return tuple(part for part in self.parts if part.name)

    def field(self, name: str) -> Field | None:
        return next((part for part in self.parts if part.name == name != ""), None)

    @property
    def size(self) -> int:
        """Of one element."""
        return self.width

    @property
    def mask(self) -> int:
        """All of its bits."""
        return (1 << 8 * self.width) - 1

    @property
    def readable(self) -> bool:
        return any(part.readable for part in self.parts)

    @property
    def writable(self) -> bool:
        return any(part.writable for part in self.parts)

    @property
    def read_has_effects(self) -> bool:
        return any(part.onread for part in self.parts)

    @property
    def access(self) -> str:
        """`rw`, `r-`, `-w` or `--`, as in a layout."""
        return _access(self.readable, self.writable)


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory in a map: `size` bytes in entries of `width` bytes. `children` lie in it."""

    name: str
    offset: int
    size: int
    width: int
    children: "Children[Node]"
    readable: bool = True
    writable: bool = True
    dims: Index = ()
    stride: int = 0
    description: str = ""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.size < 1:
            raise ModelError(f"memory {self.name} must have at least one byte")
        _check_array(self.name, self.offset, self.dims, self.stride, self.size)

    @property
    def access(self) -> str:
        """Like a register's."""
        return _access(self.readable, self.writable)


@dataclass(frozen=True, slots=True)
class Block:
    """What groups registers: addrmap and regfile, peripheral and cluster. The root's name is ""."""

    name: str
    offset: int
    size: int
    children: "Children[Node]"
    dims: Index = ()
    stride: int = 0
    description: str = ""

    def __post_init__(self) -> None:
        if self.name:
            check_name(self.name)
        _check_array(self.name, self.offset, self.dims, self.stride, self.size)

    @classmethod
    def of(
        cls,
        name: str,
        offset: int,
        nodes: "Iterable[Node]",
        *,
        dims: Index = (),
        stride: int = 0,
        description: str = "",
        size: int = 0,
    ) -> "Block":
        """A block of these nodes, as large as they need, or as `size` says."""
        children = children_of(nodes)
        size = max(size, children.end)
        return cls(name, offset, size, children, dims, stride or size, description)


Node = Block | Register | Memory


def children_of(nodes: Iterable[Node]) -> Children[Node]:
    """Children of nodes that are made. Raises ModelError for a name that two of them have."""
    made = tuple(nodes)
    return Children(
        tuple(node.name for node in made),
        {number: node.dims for number, node in enumerate(made) if node.dims},
        [node.offset for node in made],
        [node.offset + extent(node) for node in made],
        made.__getitem__,
    )


def extent(node: Node) -> int:
    """The bytes from the start of a node's first element to the end of its last.

    >>> extent(Register("r", 0, 4, (Field("", 0, 32),), dims=(2, 3), stride=8))
    44
    """
    return (math.prod(node.dims) - 1) * node.stride + node.size if node.dims else node.size


def element_offset(node: Node, index: Index) -> int:
    """Where the element is, counted from the node's own start.

    >>> element_offset(Register("r", 0, 4, (Field("", 0, 32),), dims=(2, 3), stride=8), (1, 1))
    32
    """
    number = 0
    for dim, position in zip(node.dims, index, strict=True):
        number = number * dim + position
    return number * node.stride


@dataclass(frozen=True, slots=True)
class Misplaced:
    """A register that does not lie at a multiple of its access width, and where it does lie."""

    path: str
    offset: int
    access_width: int

    def __str__(self) -> str:
        return (
            f"{self.path} at {self.offset:#x} must lie at a multiple of its access width, "
            f"{self.access_width} bytes"
        )


def first_misplaced(root: Node, offset: int = 0) -> Misplaced | None:
    """The first register, if any, that is misplaced where the root has this offset."""
    return _misplaced(root, "", offset, 0)


def _misplaced(node: Node, path: str, start: int, step: int) -> Misplaced | None:
    """`start` is the node's own; arrays around it have copies at multiples of `step` from there."""
    if node.dims and math.prod(node.dims) > 1:
        step = math.gcd(step, node.stride)
    if isinstance(node, Register):
        for offset in (start, start + step):
            if offset % node.access_width:
                return Misplaced(path, offset, node.access_width)
        return None
    for child in node.children:
        name = f"{path}.{child.name}" if path else child.name
        if found := _misplaced(child, name, start + child.offset, step):
            return found
    return None


def _access(readable: bool, writable: bool) -> str:
    return f"{'r' if readable else '-'}{'w' if writable else '-'}"


def _check_array(name: str, offset: int, dims: Index, stride: int, size: int) -> None:
    if any(dim < 1 for dim in dims):
        raise ModelError(f"the array {name} must have at least one element in each dimension")
    if dims and stride < size and math.prod(dims) > 1:
        raise ModelError(
            f"the elements of {name} must be at least {size:#x} bytes apart, not {stride:#x}"
        )
    span = (math.prod(dims) - 1) * stride + size if dims else size
    if offset < 0 or offset + span > _END:
        raise ModelError(f"{name} at {offset:#x} must lie below {_END:#x}")


def _check_parts(register: Register) -> None:
    names = [part.name for part in register.parts]
    if len(set(names)) != len(names) or ("" in names and len(names) > 1):
        twice = next((name for name in names if names.count(name) > 1), "")
        raise ModelError(f"the name {twice} must be given to one field of {register.name}, not two")
