# SPDX-License-Identifier: MIT
"""OFFSET and RANGE: numbers, or the names of registers, fields and blocks.

    0x100   0x100+0x40   0x100-0x13f   0x100[15:8]
    dma.chan0.ctrl   dma.chan0.ctrl.mode   dma.chan0.ctrl[7:4]   dma.chan0   dma.chan0+0x40
    'dma.chan*.status'   'dma.chan[*].ctrl.mode'        where several are taken

Rule 1: a name is looked up in the registers of FILE's region: those of its mount, or of the device,
        which is then opened once for the name and for the accesses, as for all lines of a script.
Rule 2: a block or a pattern does not include registers whose read has side effects.
"""

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from barfs.cli.edge import tell
from barfs.cli.register_file import (
    WIDTHS,
    Bits,
    RegionFile,
    Registers,
    check_range,
    check_widths,
    split_bits,
)
from barfs.errors import UsageError
from barfs.ranges import Range, merge, parse_number, parse_range

if TYPE_CHECKING:
    from barfs.registers.access import DeviceRegisters
    from barfs.registers.places import Place, RegisterMap


@dataclass(frozen=True, slots=True)
class Span(Range):
    """Registers of `width` bytes, in a row; `bits` of one. `place` is what a name gave."""

    width: int
    bits: Bits | None = None
    place: "Place | None" = None

    @property
    def offsets(self) -> range:
        return range(self.start, self.end, self.width)


@dataclass(frozen=True, slots=True)
class Target:
    """The registers of FILE that a command is for."""

    file: RegionFile
    spans: Sequence[Span]

    def check(self, registers: Registers) -> None:
        """Raises UsageError for what is not inside FILE, or no access in its place."""
        size, places = registers.size, registers.places
        for span in self.spans:
            check_range(span.start, span.end, span.width, size)
            check_widths(span.start, span.end, span.width, places)


class Session:
    """The files, devices and descriptions that operations need: each is found and opened once."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._files: dict[str, tuple[RegionFile, int | None]] = {}
        self._held: dict[str, RegionFile] = {}
        self._opened: dict[tuple[str, int], Registers] = {}
        self._named: dict[str, DeviceRegisters] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def find(self, text: str) -> RegionFile:
        """A FILE. Raises UsageError."""
        return self._find(text)[0]

    def _find(self, text: str) -> tuple[RegionFile, int | None]:
        found = self._files.get(text)
        if found is None:
            file = RegionFile.find(text)
            size = None if file.path is None else os.stat(file.path).st_size
            found = self._files[text] = file, size
        return found

    def target(self, file: RegionFile, spans: Sequence[Span]) -> Target:
        """Raises UsageError for what is not inside FILE, if its size is known without a device."""
        size = self._find(file.text)[1]
        for span in spans:
            check_range(span.start, span.end, span.width, size)
        return Target(file, spans)

    def open(self, target: Target, flags: int) -> Registers:
        """The registers of a target, checked. Raises UsageError, DeviceError, RegisterError."""
        file = target.file
        registers = self._opened.get((file.text, flags))
        if registers is None:
            registers = self._stack.enter_context(self.held(file).open(flags))
            self._opened[file.text, flags] = registers
        target.check(registers)
        return registers

    def held(self, file: RegionFile) -> RegionFile:
        """The same, with its device open until the end of the session. Raises DeviceError."""
        if file.device is None:
            return file
        source = file.device.source
        if source not in self._held:
            self._held[source] = self._stack.enter_context(file.held())
        return dataclasses.replace(file, opened=self._held[source].opened)

    def mounted(self, directory: Path) -> "DeviceRegisters":
        """The registers of a device's directory in a mount. Raises BarfsError."""
        # Imported here: an offset needs no description.
        from barfs.fuse.mounted_registers import mounted_registers

        name = str(directory)
        if name not in self._named:
            self._named[name] = self._stack.enter_context(mounted_registers(directory))
        return self._named[name]


def spans_of(choice: argparse.Namespace, text: str, session: Session) -> Target:
    """What RANGE names, each part in the width that the command has, or that a name has itself.

    Raises UsageError, BarfsError.
    """
    if not is_name(text):
        number, bits = _split_bits(text, choice.width)
        found = parse_range(number, default_size=choice.width)
        if bits and found.size != choice.width:
            raise UsageError(f"RANGE must be one register to show bits of, not {text}")
        span = Span(found.start, found.end, choice.width, bits)
        return session.target(session.find(choice.file), [span])
    file, registers, text = _names_of(choice, text, session)
    spans = _named_spans(registers, text, choice.width)
    choice.width = spans[0].width
    return session.target(file, spans)


def span_of(
    choice: argparse.Namespace, text: str, session: Session, count: int = 1
) -> tuple[Target, Span]:
    """What OFFSET names, `count` registers from there on; their width is then the command's, too.

    Raises UsageError, BarfsError.
    """
    if not is_name(text):
        number, bits = _split_bits(text, choice.width)
        start = parse_number(number)
        span = Span(start, start + count * choice.width, choice.width, bits)
        return session.target(session.find(choice.file), [span]), span
    file, registers, text = _names_of(choice, text, session)
    span = _named_span(registers, text, choice.width)
    span = dataclasses.replace(span, end=span.start + count * span.width)
    choice.width = span.width
    return session.target(file, [span]), span


def register_of(choice: argparse.Namespace, text: str, session: Session) -> tuple[Target, Span]:
    """The one register that OFFSET names. Raises UsageError, BarfsError."""
    target, span = span_of(choice, text, session)
    if span.place is not None:
        from barfs.registers.model import Register

        if not isinstance(span.place.node, Register):
            raise UsageError(f"{text} must be a register or a field")
    return target, span


def is_name(text: str) -> bool:
    """Whether it is the name of a register, or a pattern, and no number."""
    return text[:1].isalpha() or text.startswith(("_", "*", "?"))


def ranges_of(
    registers: "DeviceRegisters", region: str | None, text: str
) -> list[tuple[str, Range]]:
    """The bytes that a name or a pattern stands for, with their regions; of a block, all of it.

    In one region, or in the one that the name begins with, or in any. Raises UsageError.
    """
    name, plus, size = text.partition("+")
    if region is not None and region not in registers.sources:
        raise UsageError(f"{text}: no description of the registers of {region} is known")
    if region is not None and not name.startswith((f"{region}.", f"{region}/")):
        name = f"{region}.{name}"
    if plus or not _is_pattern(name):
        found, place = registers.find(name)
        end = place.offset + parse_number(size) if plus else place.end
        return [(found, Range(place.offset, end))]
    return [(found, Range(place.offset, place.end)) for found, place in registers.match(name)]


def _names_of(
    choice: argparse.Namespace, text: str, session: Session
) -> tuple[RegionFile, "RegisterMap", str]:
    """FILE, the registers of its region, and the name in that region."""
    file = session.find(choice.file)
    if file.path is None:
        if choice.dry_run:
            raise UsageError(
                f"{text}: a name of a device that is not mounted cannot be looked up without "
                "opening it; leave out --dry-run, or give the offset"
            )
        file = session.held(file)
        assert file.opened is not None
        registers, region = file.opened.registers, file.region
    else:
        path = Path(os.path.realpath(file.path))
        registers, region = session.mounted(path.parent), path.name
    if region not in registers.sources:
        raise UsageError(f"{text}: no description of the registers of {choice.file} is known")
    found = registers.map(region)
    return file, found, text if found.root.child(region) else text.removeprefix(f"{region}.")


def _named_spans(registers: "RegisterMap", text: str, width: int) -> list[Span]:
    from barfs.registers.model import Block

    place = None if _is_pattern(text) else _place_of(registers, text)
    if not _is_pattern(text) and (place is None or not isinstance(place.node, Block)):
        return [_named_span(registers, text, width)]
    shown, left_out = [], []
    for place in registers.match(text):
        if not place.register.readable:
            left_out.append(f"{place.shown} is left out: it is write-only")
        elif place.register.read_has_effects:
            left_out.append(f"{place.shown} is left out: a read has side effects")
        else:
            shown.append(place)
    if not shown:
        raise UsageError(f"{text} has no register that can be read without side effects")
    for line in left_out:
        tell(line)
    if any(place.field for place in shown):
        return [_span_of_place(place) for place in shown]
    words = (Span(place.offset, place.end, place.register.access_width) for place in shown)
    return merge(sorted(words, key=lambda span: span.start))


def _named_span(registers: "RegisterMap", text: str, width: int) -> Span:
    """The one register that a name stands for, or where a block or a memory is."""
    from barfs.registers.model import Memory, Register

    if _is_pattern(text):
        raise UsageError(f"{text} must be one register; barfs md and barfs reg take patterns")
    name, plus, size = text.partition("+")
    place = _place_of(registers, name)
    if place is None:
        base, bits = split_bits(name)
        place = registers.find(base)
        if not isinstance(place.node, Register) or place.field:
            raise UsageError(f"{name} must be bits of a register, which {base} is not")
        width = _one_access(place)
        if bits is None or plus:
            raise UsageError(f"{text} must be a register or bits of one")
        bits.check(name, width)
        return Span(place.offset, place.end, width, bits, place)
    if isinstance(place.node, Register) and not plus:
        return _span_of_place(place)
    if place.field:
        raise UsageError(f"{text} must be a register or a block, with a size")
    node = place.node
    if isinstance(node, Register):
        width = _one_access(place)
    elif isinstance(node, Memory) and node.width in WIDTHS.values():
        width = node.width
    end = place.offset + parse_number(size) if plus else place.end
    return Span(place.offset, end, width, None, place)


def _split_bits(text: str, width: int) -> tuple[str, Bits | None]:
    number, bits = split_bits(text)
    if bits is not None:
        bits.check(text, width)
    return number, bits


def _place_of(registers: "RegisterMap", name: str) -> "Place | None":
    """None for what may be bits of a register, `ctrl[3]`, or for no name at all."""
    from barfs.registers.errors import NoSuchName

    try:
        return registers.find(name)
    except NoSuchName:
        return None


def _is_pattern(name: str) -> bool:
    return "*" in name or "?" in name


def _span_of_place(place: "Place") -> Span:
    return Span(place.offset, place.end, _one_access(place), _bits_of(place), place)


def _bits_of(place: "Place") -> Bits | None:
    return Bits(place.field.high, place.field.low) if place.field else None


def _one_access(place: "Place") -> int:
    """The width of a register that one access takes. Raises UsageError."""
    register = place.register
    if register.width != register.access_width or register.big_endian:
        raise UsageError(f"{place.shown} is not one little-endian access; use barfs reg")
    return register.width
