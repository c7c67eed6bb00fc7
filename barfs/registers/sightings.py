# SPDX-License-Identifier: MIT
"""What accesses that were seen say of registers: their names, and what a write changes.

    sightings = Sightings(registers)
    sightings.tell(0x4100, 4, 0x3, written=True)        "dma.chan0.ctrl mode[2:1]=idle->single"
    sightings.tell(0x4100, 4, None, written=False)      "dma.chan0.ctrl": an access that failed

Rule 1: pure. Nothing is read to find out more; a value is known as far as it was seen.
Rule 2: what was written to a field that acts on it (woclr, singlepulse and the like) is told, where
        it is not neutral, and is no value that the field then has.
"""

from barfs.registers import fields
from barfs.registers.model import Register
from barfs.registers.places import Place, RegisterMap

_MOST_KNOWN = 1 << 16
"""Registers whose values are kept; a trace may run for weeks."""


class Sightings:
    """Of the registers of one region."""

    def __init__(self, registers: RegisterMap) -> None:
        self._registers = registers
        self._known: dict[str, tuple[int, int]] = {}

    def tell(self, offset: int, width: int, word: int | None, *, written: bool) -> str:
        """The registers that an access touched, each with its fields; "" where none is known.

        `word` is what was transferred, None by an access that failed.
        """
        data = b"" if word is None else word.to_bytes(width, "little")
        return "; ".join(
            self._of(place, offset, data, written) for place in self._registers.at(offset, width)
        )

    def _of(self, place: Place, offset: int, data: bytes, written: bool) -> str:
        register = place.register
        value, mask = fields.from_bytes(register, offset - place.offset, data)
        old, known = self._known.get(place.files, (0, 0))
        if written:
            text = _written(register, value, mask, old, known)
            mask &= _kept(register)
        else:
            text = fields.show_fields(register, value, mask)
            mask &= sum(part.mask for part in register.parts if part.readable)
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        if mask:
            self._known[place.files] = (old & ~mask | value & mask, known | mask)
        return f"{place.shown} {text}".rstrip()


def _written(register: Register, value: int, mask: int, old: int, known: int) -> str:
    texts = []
    for field in register.fields:
        number, before = (fields.extract(field, each) for each in (value, old))
        if not field.writable or field.mask & ~mask:
            continue
        if fields.acts(field):
            if number == fields.neutral(field):
                continue
        elif not field.mask & ~known:
            if number != before:
                change = f"{fields.show(field, before)}->{fields.show(field, number)}"
                texts.append(f"{field.name}[{field.bits}]={change}")
            continue
        texts.append(f"{field.name}[{field.bits}]={fields.show(field, number)}")
    return " ".join(texts)


def _kept(register: Register) -> int:
    """The bits that are then as they were written."""
    return sum(part.mask for part in register.parts if part.writable and not fields.acts(part))
