# SPDX-License-Identifier: MIT
"""The commands for single registers: `md`, `mw`, `rmw`, `poll`."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from barfs.cli.help import explain
from barfs.cli.operands import Span, register_of, span_of, spans_of
from barfs.cli.register_file import WIDTHS, RegisterError, Registers, parse_value
from barfs.errors import UsageError
from barfs.text import dump_json, with_hex

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


def _digits(value: int, width: int) -> str:
    return f"{value:0{2 * width}x}"


def add_md(parser: argparse.ArgumentParser) -> None:
    _add_common(
        parser,
        "barfs md /mnt/bar/bus/0000:01:00.0/bar0 0x100+0x40",
        "barfs md -q demo:bar0 0x1000-0x103f",
        "barfs md demo:bar0 '0x1c[7:4]'",
        "barfs md /mnt/bar/bus/0000:01:00.0/bar0 'dma.chan*.ctrl'",
        details="Prints the offset, the values and the bytes as text, like U-Boot's md. A block or "
        "a pattern leaves out registers whose read has side effects.",
    )
    parser.add_argument(
        "range",
        metavar="RANGE",
        help="0x100+0x40 (start+size) or 0x100-0x13f (first-last byte), also with k, M, G; 0x100 "
        "is one register, 0x100[15:8] some of its bits; or the name of a register, of a field, of "
        "bits, NAME[7:4], or of a block, or a pattern with * and ? for several",
    )
    parser.set_defaults(run=_md)


def _md(choice: argparse.Namespace) -> int:
    with spans_of(choice, choice.range) as target:
        if choice.dry_run:
            return target.rehearse(
                f"read {span.width} bytes at {offset:#x}"
                for span in target.spans
                for offset in span.offsets
            )
        values: list[dict[str, Any]] = []
        with target.open(os.O_RDONLY) as registers:
            for span in target.spans:
                found = _show(registers, span, quiet=choice.json)
                values += (_object(span, offset, found[offset]) for offset in found)
    if not choice.json:
        return 0
    if len(values) == 1 and target.spans[0].bits:
        return _print_json(choice, **values[0])
    return _print_json(choice, values=values)


def _show(registers: Registers, span: Span, *, quiet: bool) -> dict[int, int]:
    """Read the registers, and print them as they come; returns the values by offset."""
    found: list[int] = []
    by_rows = not quiet and span.bits is None
    try:
        for offset in span.offsets:
            found.append(registers.read(offset, span.width))
            if by_rows and len(found) * span.width % _ROW == 0:
                _print_row(span.start, found, span.width)
    finally:
        if by_rows and len(found) * span.width % _ROW:
            _print_row(span.start, found, span.width)
    if span.bits and not quiet:
        print(f"{span.start:08x}{span.bits}: {span.bits.of(found[0]):x}")
    return dict(zip(span.offsets, found, strict=True))


def _object(span: Span, offset: int, value: int) -> dict[str, Any]:
    if span.bits is None:
        return with_hex(offset=offset, value=value)
    return {
        "bits": [span.bits.high, span.bits.low],
        **with_hex(offset=offset, value=span.bits.of(value)),
    }


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
        help="offset of the first register, in bytes, or its name",
    )
    parser.add_argument(
        "values",
        metavar="VALUE",
        nargs="+",
        help="for the first register and those after it",
    )
    parser.set_defaults(run=_mw)


def _mw(choice: argparse.Namespace) -> int:
    with span_of(choice, choice.offset, len(choice.values)) as (target, span):
        if span.bits:
            raise UsageError(f"mw writes whole registers; change {choice.offset} with barfs rmw")
        values = [parse_value(value, span.width) for value in choice.values]
        writes = list(zip(span.offsets, values, strict=True))
        if choice.dry_run:
            return target.rehearse(
                f"write 0x{_digits(value, span.width)} at {offset:#x}" for offset, value in writes
            )
        with target.open(os.O_WRONLY) as registers:
            for offset, value in writes:
                registers.write(offset, span.width, value)
    if choice.json:
        written = [with_hex(offset=offset, value=value) for offset, value in writes]
        return _print_json(choice, written=written)
    return 0


def _add_mask_and_value(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "offset",
        metavar="OFFSET",
        help="of the register, or its name; 0x10[15:8], NAME[7:4] and a field's name include the "
        "mask",
    )
    parser.add_argument("mask", metavar="MASK", help="bits that count; omit it after OFFSET[..]")
    parser.add_argument("value", metavar="VALUE", nargs="?", help="value of these bits")


def _mask_and_value(choice: argparse.Namespace, span: Span) -> tuple[int, int]:
    """The mask, and the value shifted to its place under it."""
    bits = span.bits
    field = span.place.field if span.place is not None else None
    if field is not None and choice.value is not None:
        raise UsageError("use FIELD VALUE, without MASK")
    if (bits is None) != (choice.value is not None):
        raise UsageError("use OFFSET MASK VALUE or OFFSET[HIGH:LOW] VALUE")
    if bits is None:
        mask, value = (parse_value(text, span.width) for text in (choice.mask, choice.value))
        if value & ~mask:
            raise UsageError(f"the value {value:#x} has bits outside the mask {mask:#x}")
        return mask, value
    if field is not None:
        from barfs.registers.fields import parse

        return bits.mask, parse(field, choice.mask) << bits.low
    return bits.mask, bits.place(choice.mask)


def add_rmw(parser: argparse.ArgumentParser) -> None:
    _add_common(
        parser,
        "barfs rmw /mnt/bar/bus/0000:01:00.0/bar0 0x10 0xff00 0x1200",
        "barfs rmw demo:bar0 '0x1100[15:8]' 0x12",
        "barfs rmw /mnt/bar/bus/0000:01:00.0/bar0 dma.chan0.ctrl.mode burst",
        details="Makes one read, then one write, and prints the value before and after. Of a "
        "register that is named, writes to the other fields what changes nothing.",
    )
    _add_mask_and_value(parser)
    parser.set_defaults(run=_rmw)


def _rmw(choice: argparse.Namespace) -> int:
    with register_of(choice, choice.offset) as (target, span):
        mask, value = _mask_and_value(choice, span)
        if span.place is not None:
            mask, value = _with_neighbours(span.place, mask, value)
        offset, width = span.start, span.width
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


def _with_neighbours(place: "Place", mask: int, value: int) -> tuple[int, int]:
    """The mask and the value that write these bits, and to the others what changes nothing."""
    from barfs.registers.fields import plan_bits, plan_write

    register = place.register
    if not register.readable or register.read_has_effects:
        raise UsageError(f"{place.shown} cannot be read first; use barfs reg")
    if place.field is not None:
        plan = plan_write(register, {place.field.name: value >> place.field.low})
    else:
        plan = plan_bits(register, mask, value)
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
    if not 0 <= choice.timeout < float("inf"):
        raise UsageError(f"--timeout must be a number of seconds, not {choice.timeout}")
    with register_of(choice, choice.offset) as (target, span):
        mask, value = _mask_and_value(choice, span)
        offset, width = span.start, span.width
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
