# SPDX-License-Identifier: MIT
"""The command `watch`: the registers that change, as they do."""

import argparse
import datetime
import errno
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from barfs.cli.edge import put, tell
from barfs.cli.help import explain
from barfs.cli.register_names import (
    NamedRegisters,
    add_registers_option,
    chosen_registers,
    registers_of,
)
from barfs.errors import AccessError, DeviceGone, InvalidAccess, UsageError
from barfs.registers import fields
from barfs.registers.access import BoundField, BoundRegister
from barfs.registers.model import Field, Register

_LONGEST_INTERVAL = 86400
_MOST_NAMED = 8


def add_watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=float,
        default=0.1,
        help="time from one round of reads to the next (default 0.1)",
    )
    parser.add_argument(
        "--count", metavar="N", type=int, help="end after N changes (default: at ^C)"
    )
    add_registers_option(parser)
    parser.add_argument(
        "device",
        metavar="DEVICE",
        help="as for barfs mount, or a device's directory in a mount",
    )
    parser.add_argument(
        "patterns",
        metavar="PATTERN",
        nargs="+",
        help="registers, fields or blocks, [REGION.]PATH, also with * and ?",
    )
    explain(
        parser,
        "barfs watch ~/bar/bus/0000:01:00.0 'dma.*'",
        "barfs watch --interval 1 --count 1 demo bar0.SCRATCH config.COMMAND",
        details="Reads the registers again and again, and prints a line for each that has changed: "
        "the time, the place, the name, the values before and after, and the fields that differ. "
        "A change that is undone between two reads is not seen. A register whose read has side "
        "effects is read when it is named itself, not when a pattern or a block includes it. Ends "
        "at ^C, or when the device leaves. If no barfs mount holds the device, it is opened for "
        "this command and a notice is printed.",
    )
    parser.set_defaults(run=_watch)


def _watch(choice: argparse.Namespace) -> int:
    if not 0 <= choice.interval <= _LONGEST_INTERVAL:
        raise UsageError(
            f"--interval must be 0 to {_LONGEST_INTERVAL} seconds, not {choice.interval}"
        )
    if choice.count is not None and choice.count < 1:
        raise UsageError(f"--count must be 1 or more, not {choice.count}")
    with registers_of(choice.device, chosen_registers(choice)) as named:
        watched = _chosen(named, choice.patterns)
        watched = _begun(watched)
        tell(f"watching {len(watched)} register{'s' if len(watched) > 1 else ''}; ^C ends it")
        for line in itertools.islice(_changes(watched, choice.interval), choice.count):
            put(line)
    return 0


@dataclass(slots=True)
class _Watched:
    """A register with its last value, or the errno of its last read; all of it, or some fields."""

    bound: BoundRegister
    fields: list[Field] | None
    last: int | str = 0

    def begin(self) -> None:
        """Read it for the first time. Raises DeviceGone, and InvalidAccess, which will not end."""
        self.last = self._read()
        if isinstance(self.last, str):
            tell(f"barfs: {self.bound.name} cannot be read yet: {self.last}")

    def changes(self) -> Iterator[str]:
        """Read it once; what has changed since the last time. Raises DeviceGone, InvalidAccess."""
        before, after = self.last, self._read()
        if before == after:
            return
        self.last = after
        place, register = self.bound.place, self.bound.register
        time_and_place = f"{_now()} {self.bound.region.name}+{place.offset:#010x}"
        if self.fields is None:
            old, new = (_shown(register, value) for value in (before, after))
            what = ""
            if isinstance(before, int) and isinstance(after, int):
                what = fields.show_changes(register, before, after)
            yield f"{time_and_place} {place.shown} {old} -> {new}  {what}".rstrip()
            return
        for field in self.fields:
            old, new = (_shown(field, value) for value in (before, after))
            if old != new:
                yield f"{time_and_place} {place.shown}.{field.name} {old} -> {new}"

    def _read(self) -> int | str:
        try:
            return int(self.bound.read())
        except (DeviceGone, InvalidAccess):
            raise
        except AccessError as error:
            return errno.errorcode.get(error.errno, "EIO")


def _begun(watched: Sequence[_Watched]) -> list[_Watched]:
    """Those that can be read in their places. Raises the InvalidAccess of the last, if none can."""
    begun: list[_Watched] = []
    for each in watched:
        try:
            each.begin()
        except InvalidAccess as error:
            if not begun and each is watched[-1]:
                raise
            tell(f"barfs: {error}")
        else:
            begun.append(each)
    return begun


def _shown(what: Register | Field, value: int | str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(what, Register):
        return fields.show_register(what, value)
    return fields.show(what, fields.extract(what, value))


def _now() -> str:
    return datetime.datetime.now().isoformat(timespec="microseconds")


def _changes(watched: Sequence[_Watched], interval: float) -> Iterator[str]:
    due = time.monotonic()
    while True:
        now = time.monotonic()
        due = max(due + interval, now)
        time.sleep(due - now)
        for each in watched:
            yield from each.changes()


def _chosen(named: NamedRegisters, patterns: Iterable[str]) -> list[_Watched]:
    """Each register once. Raises UsageError where none of them is to be read."""
    chosen: dict[str, _Watched] = {}
    left_out: dict[str, list[str]] = {}
    for found in named.found(patterns):
        bound = named.registers.at(found.region, found.place)
        assert isinstance(bound, BoundRegister | BoundField)
        if why := found.why_not_read:
            left_out.setdefault(why, []).append(bound.name)
            continue
        field = found.place.field
        register = bound.parent if isinstance(bound, BoundField) else bound
        each = chosen.setdefault(register.name, _Watched(register, [] if field else None))
        if field is None:
            each.fields = None
        elif each.fields is not None and field not in each.fields:
            each.fields.append(field)
    for why, found_names in left_out.items():
        names = [name for name in found_names if name not in chosen]
        if not names:
            continue
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        text = f"{', '.join(names[:_MOST_NAMED])}{more}: {why}"
        if not chosen:
            raise UsageError(text)
        tell(text)
    return list(chosen.values())
