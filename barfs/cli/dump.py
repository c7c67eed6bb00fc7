# SPDX-License-Identifier: MIT
"""The commands for dumps of whole devices: `dump` and `diff`."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from barfs.cli.edge import tell
from barfs.cli.exit_codes import EXIT_DIFFERENT
from barfs.cli.help import explain
from barfs.cli.operands import is_name, ranges_of
from barfs.cli.register_names import add_registers_option, chosen_registers
from barfs.daemon.logs import log_to_stderr
from barfs.dump.capture import SIDE_EFFECTS, NamedSource, Piece, RegionReader, Skip, source_of
from barfs.dump.comparison import Change, changes
from barfs.dump.file import Dump, DumpWriter, new_dump
from barfs.errors import UsageError
from barfs.layout import Layout
from barfs.opening import DeviceName
from barfs.pci import region_index
from barfs.ranges import Range, clip, parse_range
from barfs.registers.fields import show_changes
from barfs.text import printable

_BAR_LENGTH = 30
_MOST_NAMED = 8


def add_dump(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("device", metavar="DEVICE", help="as for barfs mount")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, required=True, help="the file to write"
    )
    parser.add_argument(
        "--skip",
        metavar="REGION[:RANGE]",
        action="append",
        default=[],
        help="do not read this, because that has side effects or takes too long; RANGE may be a "
        "name, as for barfs md",
    )
    add_registers_option(parser)
    explain(
        parser,
        "barfs dump demo -o before.dump --skip bar0:0x18+4",
        "barfs dump 0000:01:00.0 -o card.dump --skip rom --registers bar0=card.rdl",
        details="Reads every byte at most once, besides what says where registers are, through the "
        "barfs mount that holds the device. If none does, the device is opened for this command "
        "and a notice is printed. Registers whose read has side effects, as their description "
        "says, are left out and listed, unless --registers off; so are ranges that the policy or "
        "the device refuses to read; where many registers in a row fail, only some of the "
        "following ones are tried. FILE keeps its old contents until the new ones are complete, "
        "and keeps its owner, its mode and symbolic links; other hard links keep the old contents. "
        "Only the owner may read a new FILE. If FILE is a FIFO, a device or /dev/stdout, the dump "
        "is written to it.",
    )
    parser.set_defaults(run=_dump)


def _dump(choice: argparse.Namespace) -> int:
    log_to_stderr()
    name = DeviceName.parse(choice.device)
    registers = chosen_registers(choice)
    wanted = [_skip(text) for text in choice.skip]
    with (
        new_dump(choice.output) as dump,  # before the device is opened, which may reset it
        source_of(name, tell, registers) as source,
    ):
        skips = [skip for each in wanted for skip in _resolved(each, source)]
        for layout in source.layouts.values():
            _save(dump, source, layout, skips)
    return 0


def _save(dump: DumpWriter, source: NamedSource, layout: Layout, skips: list[Skip]) -> None:
    region = layout.region
    names = source.registers.map(region) if region in source.registers.sources else None
    effects = list(names.root.with_effects()) if names else []
    spans = [Range(place.offset, place.end) for place in effects]
    reader = RegionReader(source, layout, skips, spans)
    dump.add(layout, _with_progress(region, layout.size, reader.pieces()), reader.holes)
    if names:
        dump.name(source.registers, region)
    for hole in reader.holes:
        if hole.reason != SIDE_EFFECTS:
            tell(f"{region}: {hole.start:#x}-{hole.end - 1:#x} is left out: {hole.reason}")
    holes = [hole for hole in reader.holes if hole.reason == SIDE_EFFECTS]
    left_out = [
        f"{place.shown} at {place.offset:#x}"
        for place, span in zip(effects, spans, strict=True)
        if next(clip(holes, span), None)
    ]
    if left_out:
        more = len(left_out) - _MOST_NAMED
        text = ", ".join(left_out[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        tell(f"{region}: left out, since a read has side effects: {text}")


@dataclass(frozen=True, slots=True)
class _Name:
    """Registers of a region, by name, that are not to be read."""

    region: str
    name: str


def _skip(text: str) -> Skip | _Name:
    region, colon, span = text.partition(":")
    region_index(region)
    if is_name(span):
        return _Name(region, span)
    return Skip(region, parse_range(span, default_size=4) if colon else None)


def _resolved(skip: Skip | _Name, source: NamedSource) -> Iterator[Skip]:
    """Raises UsageError for what the device does not have."""
    if skip.region not in source.layouts:
        raise UsageError(f"{source.name} has no {skip.region}; it has {', '.join(source.layouts)}")
    if isinstance(skip, _Name):
        for _region, span in ranges_of(source.registers, skip.region, skip.name):
            yield from _resolved(Skip(skip.region, span), source)
        return
    size = source.layouts[skip.region].size
    if skip.span and skip.span.end > size:
        raise UsageError(f"--skip must be inside {skip.region}, which has {size:#x} bytes")
    yield skip


def _with_progress(region: str, size: int, pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same pieces, with a progress bar if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield from pieces
        return
    shown = -1
    with contextlib.closing(_Line()) as line:
        for offset, data in pieces:
            yield offset, data
            done = offset + len(data)
            if (part := done * _BAR_LENGTH // size) != shown:
                shown = part
                line.show(region, part, done * 100 // size)
        line.show(region, _BAR_LENGTH, 100)  # the end may be left out, or known to be zeros


class _Line:
    """A line of a terminal that is overwritten, and erased at the end."""

    def show(self, region: str, part: int, percent: int) -> None:
        text = f"\r{region:<8} [{'#' * part:<{_BAR_LENGTH}}] {percent:3}%"
        print(text, end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def add_diff(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", metavar="A", type=Path, help="the first dump")
    parser.add_argument("after", metavar="B", type=Path, help="the second dump")
    explain(
        parser,
        "barfs diff before.dump after.dump",
        details="Shows the names of registers and the fields that differ, where barfs dump knew "
        "them. Exits like diff(1): 0 if the dumps are equal, 1 if they differ, 2 on an error.",
    )
    parser.set_defaults(run=_diff)


def _diff(choice: argparse.Namespace) -> int:
    different = False
    with Dump(choice.before) as before, Dump(choice.after) as after:
        for line in _unlike(before, after):
            print(printable(line))
            different = True
        for change in changes(before, after):
            digits = 2 * change.width
            line = (
                f"{change.region}+{change.offset:#010x}: "
                f"{change.before:0{digits}x} -> {change.after:0{digits}x}"
            )
            print(printable(f"{line}  {_named(change)}".rstrip()))
            different = True
    return EXIT_DIFFERENT if different else 0


def _named(change: Change) -> str:
    if change.place is None:
        return ""
    what = show_changes(change.place.register, change.before, change.after)
    return f"{change.place.shown} {what}"


def _unlike(before: Dump, after: Dump) -> Iterator[str]:
    """The differences of two dumps other than values."""
    names = (*before.layouts, *(name for name in after.layouts if name not in before.layouts))
    for name in names:
        if name not in after.layouts or name not in before.layouts:
            yield f"{name}: only in the {'first' if name in before.layouts else 'second'}"
            continue
        sizes = before.layouts[name].size, after.layouts[name].size
        if sizes[0] != sizes[1]:
            yield f"{name}: {sizes[0]:#x} bytes -> {sizes[1]:#x} bytes"
        for which, here, there in (("first", before, after), ("second", after, before)):
            known = set(there.holes[name])
            for hole in here.holes[name]:
                if hole not in known:
                    where = f"{name}+{hole.start:#010x}-{hole.end - 1:#x}"
                    yield f"{where}: not in the {which}: {hole.reason}"
