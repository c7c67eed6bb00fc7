# SPDX-License-Identifier: MIT
"""The commands for single registers: `md`, `mw`, `rmw`, `poll`."""

import argparse
import sys
from functools import partial

from barfs.cli.help import explain
from barfs.cli.operands import Session
from barfs.cli.register_file import WIDTHS
from barfs.cli.register_operations import PREPARE, Prepare, rehearse

_EACH = (
    "Makes one access of the chosen width (of a name: its own) for each value, and refuses a "
    "width that the region does not allow there (see barfs layout). Values are little-endian. If "
    "no barfs mount holds the device, it is opened for this command and a notice is printed."
)


def _run(prepare: Prepare, choice: argparse.Namespace) -> int:
    with Session() as session:
        operation = prepare(choice, session)
        if choice.dry_run:
            rehearse(operation, sys.stdout)
        else:
            operation.run(session.open(operation.target, operation.flags), sys.stdout)
    return 0


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
    parser.set_defaults(run=partial(_run, PREPARE["md"]))


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
    parser.set_defaults(run=partial(_run, PREPARE["mw"]))


def _add_mask_and_value(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "offset",
        metavar="OFFSET",
        help="of the register, or its name; 0x10[15:8], NAME[7:4] and a field's name include the "
        "mask",
    )
    parser.add_argument("mask", metavar="MASK", help="bits that count; omit it after OFFSET[..]")
    parser.add_argument("value", metavar="VALUE", nargs="?", help="value of these bits")


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
    parser.set_defaults(run=partial(_run, PREPARE["rmw"]))


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
    parser.set_defaults(run=partial(_run, PREPARE["poll"]))
