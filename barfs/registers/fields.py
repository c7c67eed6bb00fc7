# SPDX-License-Identifier: MIT
"""What to read and to write so that a field changes and its neighbours do not.

    decode(register, value)              {"mode": 2, ...}
    show(field, number)                  "burst", "0x2"
    parse(field or register, text)       a number; NotAValue, ValueTooLarge
    read_accesses(register)              the accesses that read a register, in their order
    show_fields(register, value)         "enable[0]=1 mode[2:1]=burst"
    show_changes(register, old, new)     "mode[2:1]=idle->burst"
    plan_write(register, {"mode": 2})    a FieldWrite: reads, compose(value), writes; NotAlone
    plan_bits(register, 0xf0, 0x30)      the same for bits, whatever fields they belong to
    to_value(register, accesses, words), to_words(register, accesses, value)
    from_bytes(register, 2, data)        as much of the value as some bytes have

Rule 1: pure. A word is what one access transfers, as a little-endian number, the way regions read.
Rule 2: a register wider than its access width is read and written from the lowest address up, and
        a field write touches only the words in which the fields lie.
Rule 3: nothing happens to a neighbour. Its neutral value is 0 (woclr, woset, wot, singlepulse), 1
        (wzc, wzs, wzt) or the value read (rw). Without one, the write is refused. Bits of no field
        are written as read, or as 0 where the register cannot be read without side effects.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from barfs.registers.errors import NotAlone, NotAValue, ValueTooLarge
from barfs.registers.model import Field, Register

_ZEROS = ("woclr", "woset", "wot")
_ONES = ("wzc", "wzs", "wzt")


@dataclass(frozen=True, slots=True)
class Access:
    """One access: `offset` from the register's start and `width` in bytes; its bits of the value
    begin at `low`."""

    offset: int
    width: int
    low: int

    @property
    def mask(self) -> int:
        """Its bits in the register."""
        return (1 << 8 * self.width) - 1 << self.low


@dataclass(frozen=True, slots=True)
class FieldWrite:
    """Read `reads`, then write what `compose` makes of it to `writes`.

    `reads` is empty where all bits are known. Otherwise it is `writes`.
    """

    register: Register
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]
    fixed: int
    kept: int

    def compose(self, value: int = 0) -> int:
        """The register's value to write, from the one that was read."""
        return value & self.kept | self.fixed


def accesses(register: Register, mask: int | None = None) -> tuple[Access, ...]:
    """The accesses that hold bits of `mask`, of all of the register by default, in their order.

    >>> [access.low for access in accesses(Register("r", 0, 8, (Field("", 0, 64),), 4))]
    [0, 32]
    """
    width, found = register.access_width, []
    for offset in range(0, register.width, width):
        low = 8 * (register.width - width - offset if register.high_first else offset)
        access = Access(offset, width, low)
        if mask is None or access.mask & mask:
            found.append(access)
    return tuple(found)


def to_value(register: Register, parts: Iterable[Access], words: Iterable[int]) -> int:
    """The register's value of the words that were read; bits of no access are 0."""
    value = 0
    for access, word in zip(parts, words, strict=True):
        value |= _swapped(register, access, word) << access.low
    return value


def to_words(register: Register, parts: Iterable[Access], value: int) -> list[int]:
    """The words to write."""
    return [_swapped(register, access, (value & access.mask) >> access.low) for access in parts]


def from_bytes(register: Register, start: int, data: bytes) -> tuple[int, int]:
    """The part of the value that is in bytes from `start` of the register on, and its mask.

    >>> value, mask = from_bytes(Register("r", 0, 4, (Field("", 0, 32),)), 2, bytes(8))
    >>> value, hex(mask)
    (0, '0xffff0000')
    """
    value = mask = 0
    for part in accesses(register):
        first = max(start, part.offset)
        last = min(start + len(data), part.offset + part.width)
        if first >= last:
            continue
        chunk = data[first - start : last - start]
        behind = part.offset + part.width - last if register.big_endian else first - part.offset
        number = int.from_bytes(chunk, "big" if register.big_endian else "little")
        value |= number << part.low + 8 * behind
        mask |= (1 << 8 * len(chunk)) - 1 << part.low + 8 * behind
    return value, mask


def _swapped(register: Register, access: Access, word: int) -> int:
    if not register.big_endian:
        return word
    return int.from_bytes(word.to_bytes(access.width, "little"), "big")


def decode(register: Register, value: int) -> dict[str, int]:
    """The numbers of the readable fields that have names."""
    return {field.name: extract(field, value) for field in register.fields if field.readable}


def extract(field: Field, value: int) -> int:
    """The field's number in the register's value."""
    return (value & field.mask) >> field.low


def show(field: Field, number: int) -> str:
    """The name of a number, or the number: hexadecimal where it has more than one digit.

    >>> show(Field("mode", 0, 2), 3), show(Field("count", 0, 8), 16)
    ('3', '0x10')
    """
    for value in field.values:
        if value.value == number:
            return value.name
    return str(number) if number < 10 else f"{number:#x}"


def show_register(register: Register, value: int) -> str:
    """The whole value, with all of its digits."""
    return f"0x{value:0{2 * register.width}x}"


def show_fields(register: Register, value: int, mask: int | None = None) -> str:
    """The readable fields that have all of their bits in `mask`, by default of the register.

    >>> show_fields(Register("r", 0, 4, (Field("done", 0, 1), Field("count", 8, 8))), 0x1001)
    'done[0]=1 count[15:8]=0x10'
    """
    return " ".join(
        f"{field.name}[{field.bits}]={show(field, extract(field, value))}"
        for field in register.fields
        if field.readable and (mask is None or not field.mask & ~mask)
    )


def show_changes(register: Register, old: int, new: int) -> str:
    """The readable fields that differ, with both numbers.

    >>> show_changes(Register("r", 0, 4, (Field("done", 0, 1), Field("count", 8, 8))), 0, 0x1000)
    'count[15:8]=0->0x10'
    """
    return " ".join(
        f"{field.name}[{field.bits}]={show(field, extract(field, old))}"
        f"->{show(field, extract(field, new))}"
        for field in register.fields
        if field.readable and (old ^ new) & field.mask
    )


def parse(what: Field | Register, text: str) -> int:
    """A number, 0x, 0b, 0o or decimal, or the name of one. Spaces around it do not count.

    Raises NotAValue, ValueTooLarge.

    >>> parse(Field("mode", 0, 2), " 0b10\\n")
    2
    """
    text = text.strip()
    for value in what.values if isinstance(what, Field) else ():
        if value.name == text:
            return value.value
    try:
        if not (text[:1].isdecimal() and text.isascii()) or "_" in text:
            raise ValueError
        number = int(text, 0)
    except ValueError:
        names = (
            ", ".join(value.name for value in what.values[:8]) if isinstance(what, Field) else ""
        )
        also = f" or one of {names}" if names else ""
        raise NotAValue(
            f"{what.name} must be a number like 19, 0x13 or 0b10011{also}, not {text[:40]!r}"
        ) from None
    check_fits(what, number)
    return number


def number_of(what: Field | Register, value: object) -> int:
    """The number that a program gave: an int, or for a field, a text as `parse` takes it.

    Raises NotAValue, ValueTooLarge.
    """
    if isinstance(value, str) and isinstance(what, Field):
        return parse(what, value)
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        wanted = "an int or the text of one" if isinstance(what, Field) else "an int"
        raise NotAValue(f"{what.name} must be {wanted}, not {value!r}") from None
    check_fits(what, number)
    return number


def check_fits(what: Field | Register, number: int) -> None:
    """Raises ValueTooLarge for a number with more bits than the field or register has."""
    bits = what.width if isinstance(what, Field) else 8 * what.width
    if number < 0 or number >> bits:
        raise ValueTooLarge(f"{what.name} has {bits} bits, which {number:#x} does not fit into")


def acts(field: Field) -> bool:
    """Whether a write does something to the field other than to set its value."""
    return field.onwrite is not None or field.singlepulse


def neutral(field: Field) -> int | None:
    """The number that does nothing when it is written to such a field; None if there is none.

    >>> neutral(Field("irq", 4, 2, onwrite="woclr")), neutral(Field("irq", 4, 2, onwrite="wzc"))
    (0, 3)
    """
    if field.onwrite in _ZEROS or (field.singlepulse and field.onwrite is None):
        return 0
    if field.onwrite in _ONES and not field.singlepulse:
        return (1 << field.width) - 1
    return None


def plan_write(register: Register, values: Mapping[str, int]) -> FieldWrite:
    """How to write these fields, by name, and nothing else.

    Raises NotAlone where a neighbour would notice, ValueTooLarge, KeyError for an unknown name.
    """
    fields = {field.name: field for field in register.fields}
    written = [fields[name] for name in values]
    own = fixed = 0
    for field, number in zip(written, values.values(), strict=True):
        check_fits(field, number)
        if not field.writable:
            raise NotAlone(f"{register.name}.{field.name} cannot be written", field.name)
        if own & field.mask:
            raise NotAlone(f"{field.name} shares bits with another field that is written")
        own |= field.mask
        fixed |= number << field.low
    return _plan(register, own, fixed, written, [part.mask for part in register.parts])


def plan_bits(register: Register, mask: int, number: int) -> FieldWrite:
    """How to write these bits of a register, and nothing else.

    `number` has its bits in the mask. A field that the mask covers in part keeps its other bits.
    Raises NotAlone.
    """
    if not register.writable:
        raise NotAlone(f"{register.name} cannot be written")
    written = [part for part in register.parts if not part.mask & ~mask]
    return _plan(register, mask, number, written, [part.mask & ~mask for part in register.parts])


def _plan(
    register: Register, own: int, fixed: int, written: Sequence[Field], masks: Iterable[int]
) -> FieldWrite:
    """Write `fixed` to the bits `own`; `masks` are the bits that each part has to keep."""
    writes = accesses(register, own)
    touched = sum(access.mask for access in writes)
    others = [
        (part, mask)
        for part, mask in zip(register.parts, masks, strict=True)
        if part.writable and part.mask & touched and part not in written
    ]
    zeros, ones, kept = _neutral(register, written, others, own)
    fixed |= ones & touched & ~own
    unknown = touched & ~own & ~zeros & ~ones
    if not unknown:
        return FieldWrite(register, (), writes, fixed, 0)
    if register.readable and not register.read_has_effects:
        return FieldWrite(register, writes, writes, fixed, unknown)
    if kept & unknown:
        neighbour = next(part for part, mask in others if mask & kept & unknown)
        reader = next((part for part in register.parts if part.onread), neighbour)
        reason = f"has to be read first, and reading changes {reader.name}"
        raise _refusal(register, written, neighbour, reason)
    return FieldWrite(register, (), writes, fixed, 0)


def _neutral(
    register: Register,
    written: Sequence[Field],
    others: Iterable[tuple[Field, int]],
    own: int,
) -> tuple[int, int, int]:
    """The bits of neighbours that are neutral as 0, as 1, and as read. Raises NotAlone."""
    zeros = ones = kept = 0
    for part, mask in others:
        if part.write_once:
            raise _refusal(register, written, part, "can be written once")
        nothing = neutral(part)
        if nothing == 0:
            zeros |= mask
        elif nothing is not None:
            ones |= mask
        elif acts(part):
            raise _refusal(register, written, part, f"any write changes ({part.onwrite})")
        elif not part.readable:
            raise _refusal(register, written, part, "cannot be read")
        else:
            kept |= mask
        if mask & own or zeros & ones | zeros & kept | ones & kept:
            raise _refusal(register, written, part, "shares bits with another field")
    return zeros, ones, kept


def _refusal(register: Register, written: Iterable[Field], part: Field, reason: str) -> NotAlone:
    names = ", ".join(field.name for field in written if field.name) or "these bits"
    return NotAlone(
        f"{names} cannot be written without {part.name or 'the others'}, which {reason}; "
        f"write the whole register {register.name}",
        part.name,
    )
