# SPDX-License-Identifier: MIT
"""The commands for single registers: `md`, `mw`, `rmw`, `poll`."""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from barfs.cli.help import explain
from barfs.cli.register_file import (
    WIDTHS,
    Bits,
    RegisterError,
    Registers,
    check_range,
    check_widths,
    parse_value,
    places_of,
    split_bits,
)
from barfs.cli.register_file import Place as File
from barfs.errors import UsageError
from barfs.ranges import parse_number, parse_range
from barfs.text import dump_json, printable, with_hex

if TYPE_CHECKING:
    from barfs.registers.places import Place

_EACH = (
    "Makes one access of the chosen width (of a name: its own) for each value, and refuses a "
    "width that the region does not allow there (see barfs layout). Values are little-endian. If "
    "no barfs mount holds the device, it is opened for this command and a notice is printed."
)
_ROW = 16
_PAUSE = 0.001


def _add_common(parser: argparse.ArgumentParser, *examples: str, details: str) -> None:
    group = parser.add_mutually_exclusive_group()
    for letter, width in WIDTHS.items():
        default = ", the default" if width == 4 else ""
        group.add_argument(
            f"-{letter}",
            dest="width",
            action="store_const",
            const=width,
            default=4,
            help=f"registers of {width} byte{'s' if width > 1 else ''}{default}",
        )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print a JSON object, with numbers also as hexadecimal text",
    )
    parser.add_argument(
        "-n", "--dry-run", action="store_true", help="print the accesses without making them"
    )
    parser.add_argument(
        "file", metavar="FILE", help="a region's file in a mount, or DEVICE:REGION, like demo:bar0"
    )
    explain(parser, *examples, details=f"{details} {_EACH}")


def _print_json(choice: argparse.Namespace, **values: Any) -> int:
    sys.stdout.write(dump_json({"file": choice.file, "width": choice.width, **values}))
    return 0


@dataclass(frozen=True, slots=True)
class _Target:
    """The registers `[start, end)` of FILE: whole, aligned, and inside it if its size is known."""

    place: File
    start: int
    end: int
    width: int

    @classmethod
    def find(cls, choice: argparse.Namespace, start: int, end: int) -> "_Target":
        place = File.find(choice.file)
        # The size of a file is known without touching a device.
        size = None if place.path is None else os.stat(place.path).st_size
        check_range(start, end, choice.width, size)
        return cls(place, start, end, choice.width)

    @contextlib.contextmanager
    def open(self, flags: int) -> Iterator[Registers]:
        with self.place.open(flags) as registers:
            check_range(self.start, self.end, self.width, registers.size)
            check_widths(self.start, self.end, self.width, registers.places)
            yield registers

    def rehearse(self, lines: Iterable[str]) -> int:
        """Print what would be done."""
        if self.place.path is not None:
            check_widths(self.start, self.end, self.width, places_of(self.place.path))
        if self.place.device is not None:
            print(printable(f"open {self.place.device.source}"))
        for line in lines:
            print(printable(f"{line} of {self.place.text}"))
        return 0


def _named(choice: argparse.Namespace, text: str) -> "Place | None":
    """The register or field of a name, whose width is chosen; None for an offset."""
    if not (text[:1].isalpha() or text.startswith("_")):
        return None
    # Imported here: an offset needs no description.
    from barfs.cli.register_names import place_in

    place = place_in(choice.file, text)
    choice.width = place.register.width
    return place


def _bits_of(place: "Place") -> Bits | None:
    return Bits(place.field.high, place.field.low) if place.field else None


def _digits(value: int, width: int) -> str:
    return f"{value:0{2 * width}x}"


def add_md(parser: argparse.ArgumentParser) -> None:
    _add_common(
        parser,
        "barfs md /mnt/bar/bus/0000:01:00.0/bar0 0x100+0x40",
        "barfs md -q demo:bar0 0x1000-0x103f",
        "barfs md demo:bar0 '0x1c[7:4]'",
        details="Prints the offset, the values and the bytes as text, like U-Boot's md.",
    )
    parser.add_argument(
        "range",
        metavar="RANGE",
        help="0x100+0x40 (start+size) or 0x100-0x13f (first-last byte), also with k, M, G; 0x100 "
        "is one register, 0x100[15:8] some of its bits; in a mount also a register's or field's "
        "name",
    )
    parser.set_defaults(run=_md)


def _md(choice: argparse.Namespace) -> int:
    place = _named(choice, choice.range)
    width = choice.width
    if place is not None:
        text, bits = str(place.offset), _bits_of(place)
    else:
        text, bits = split_bits(choice.range, width)
    span = parse_range(text, default_size=width)
    start, end = span.start, span.end
    if bits and end - start != width:
        raise UsageError(f"RANGE must be one register to show bits of, not {choice.range}")
    target = _Target.find(choice, start, end)
    offsets = range(start, end, width)
    if choice.dry_run:
        return target.rehearse(f"read {width} bytes at {offset:#x}" for offset in offsets)
    found: list[int] = []
    with target.open(os.O_RDONLY) as registers:
        try:
            for offset in offsets:
                found.append(registers.read(offset, width))
                if not choice.json and not bits and len(found) * width % _ROW == 0:
                    _print_row(start, found, width)
        finally:
            if len(found) * width % _ROW and not choice.json and not bits:
                _print_row(start, found, width)
    if bits:
        return _print_bits(choice, start, bits, found[0])
    if choice.json:
        pairs = zip(offsets, found, strict=True)
        values = [with_hex(offset=offset, value=value) for offset, value in pairs]
        return _print_json(choice, values=values)
    return 0


def _print_row(start: int, found: Sequence[int], width: int) -> None:
    """Print the last row of values, in the format of U-Boot's `md`."""
    count = (len(found) - 1) % (_ROW // width) + 1
    row = found[-count:]
    offset = start + (len(found) - count) * width
    data = b"".join(value.to_bytes(width, "little") for value in row)
    words = " ".join(_digits(value, width) for value in row)
    text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data)
    columns = _ROW // width * (2 * width + 1) - 1
    print(f"{offset:08x}: {words:<{columns}}    {text}")


def _print_bits(choice: argparse.Namespace, offset: int, bits: Bits, value: int) -> int:
    if choice.json:
        numbers = with_hex(offset=offset, value=bits.of(value))
        return _print_json(choice, bits=[bits.high, bits.low], **numbers)
    print(f"{offset:08x}{bits}: {bits.of(value):x}")
    return 0


def add_mw(parser: argparse.ArgumentParser) -> None:
    _add_common(
        parser,
        "barfs mw /mnt/bar/bus/0000:01:00.0/bar0 0x104 0x1",
        "barfs mw -w demo:bar0 0x1100 0xcafe 0xf00d",
        details="Does not read back what it writes.",
    )
    parser.add_argument(
        "offset",
        metavar="OFFSET",
        help="offset of the first register, in bytes, or, in a mount, its name",
    )
    parser.add_argument(
        "values",
        metavar="VALUE",
        nargs="+",
        help="for the first register and those after it",
    )
    parser.set_defaults(run=_mw)


def _mw(choice: argparse.Namespace) -> int:
    place = _named(choice, choice.offset)
    width = choice.width
    if place is not None:
        text, bits = str(place.offset), _bits_of(place)
    else:
        text, bits = split_bits(choice.offset, width)
    if bits:
        raise UsageError(f"mw writes whole registers; change {choice.offset} with barfs rmw")
    start = parse_number(text)
    values = [parse_value(value, width) for value in choice.values]
    end = start + len(values) * width
    target = _Target.find(choice, start, end)
    writes = list(zip(range(start, end, width), values, strict=True))
    if choice.dry_run:
        return target.rehearse(
            f"write 0x{_digits(value, width)} at {offset:#x}" for offset, value in writes
        )
    with target.open(os.O_WRONLY) as registers:
        for offset, value in writes:
            registers.write(offset, width, value)
    if choice.json:
        written = [with_hex(offset=offset, value=value) for offset, value in writes]
        return _print_json(choice, written=written)
    return 0


def _add_mask_and_value(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "offset",
        metavar="OFFSET",
        help="of the register; 0x10[15:8] includes the mask, as does, in a mount, a field's name",
    )
    parser.add_argument("mask", metavar="MASK", help="bits that count; omit it after OFFSET[..]")
    parser.add_argument("value", metavar="VALUE", nargs="?", help="value of these bits")


def _mask_and_value(choice: argparse.Namespace, place: "Place | None") -> tuple[int, int, int]:
    """The offset, the mask, and the value shifted to its place under the mask."""
    width = choice.width
    if place is not None and place.field is not None:
        if choice.value is not None:
            raise UsageError("use FIELD VALUE, without MASK")
        from barfs.registers.fields import parse

        number = parse(place.field, choice.mask)
        return place.offset, place.field.mask, number << place.field.low
    text, bits = split_bits(choice.offset, width) if place is None else (str(place.offset), None)
    offset = parse_number(text)
    if (bits is None) != (choice.value is not None):
        raise UsageError("use OFFSET MASK VALUE or OFFSET[HIGH:LOW] VALUE")
    if bits is None:
        mask, value = parse_value(choice.mask, width), parse_value(choice.value, width)
    else:
        mask, value = bits.mask, bits.place(choice.mask)
    if value & ~mask:
        raise UsageError(f"the value {value:#x} has bits outside the mask {mask:#x}")
    return offset, mask, value


def add_rmw(parser: argparse.ArgumentParser) -> None:
    _add_common(
        parser,
        "barfs rmw /mnt/bar/bus/0000:01:00.0/bar0 0x10 0xff00 0x1200",
        "barfs rmw demo:bar0 '0x1100[15:8]' 0x12",
        "barfs rmw /mnt/bar/bus/0000:01:00.0/bar0 dma.chan0.ctrl.mode burst",
        details="Makes one read, then one write, and prints the value before and after.",
    )
    _add_mask_and_value(parser)
    parser.set_defaults(run=_rmw)


def _rmw(choice: argparse.Namespace) -> int:
    place = _named(choice, choice.offset)
    offset, mask, value = _mask_and_value(choice, place)
    width = choice.width
    if place is not None and place.field is not None:
        mask, value = _with_neighbours(place, value >> place.field.low)
    target = _Target.find(choice, offset, offset + width)
    if choice.dry_run:
        changed = f"write (value & ~{mask:#x}) | {value:#x} at {offset:#x}"
        return target.rehearse([f"read {width} bytes at {offset:#x}", changed])
    with target.open(os.O_RDWR) as registers:
        old = registers.read(offset, width)
        new = old & ~mask | value
        registers.write(offset, width, new)
    if choice.json:
        return _print_json(choice, **with_hex(offset=offset, old=old, new=new))
    print(f"{offset:08x}: {_digits(old, width)} -> {_digits(new, width)}")
    return 0


def _with_neighbours(place: "Place", number: int) -> tuple[int, int]:
    """The mask and the value that write a field, and to its neighbours what changes nothing."""
    assert place.field is not None
    register = place.register
    if not register.readable or register.read_has_effects:
        raise UsageError(f"{place.name} cannot be read first; use barfs reg")
    from barfs.registers.fields import plan_write

    plan = plan_write(register, {place.field.name: number})
    return register.mask & ~plan.kept, plan.fixed


def add_poll(parser: argparse.ArgumentParser) -> None:
    _add_common(
        parser,
        "barfs poll /mnt/bar/bus/0000:01:00.0/bar0 0x10 0x1 0x1 --timeout 2",
        "barfs poll demo:bar0 '0x8[3:0]' 5",
        details="Reads about once a millisecond, and fails after the timeout.",
    )
    _add_mask_and_value(parser)
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=5.0,
        help="fail after this time (default 5)",
    )
    parser.set_defaults(run=_poll)


def _poll(choice: argparse.Namespace) -> int:
    place = _named(choice, choice.offset)
    offset, mask, value = _mask_and_value(choice, place)
    width = choice.width
    if not 0 <= choice.timeout < float("inf"):
        raise UsageError(f"--timeout must be a number of seconds, not {choice.timeout}")
    target = _Target.find(choice, offset, offset + width)
    if choice.dry_run:
        wanted = f"until value & {mask:#x} == {value:#x}"
        return target.rehearse([f"read {width} bytes at {offset:#x}, {wanted},"])
    with target.open(os.O_RDONLY) as registers:
        end = time.monotonic() + choice.timeout
        while (found := registers.read(offset, width)) & mask != value:
            if time.monotonic() >= end:
                raise RegisterError(
                    f"{choice.file}: {offset:#x} is 0x{_digits(found, width)} after "
                    f"{choice.timeout:g} s; its bits {mask:#x} are {found & mask:#x}, not "
                    f"{value:#x}"
                )
            time.sleep(_PAUSE)
    if choice.json:
        return _print_json(choice, **with_hex(offset=offset, value=found))
    print(f"{offset:08x}: {_digits(found, width)}")
    return 0
