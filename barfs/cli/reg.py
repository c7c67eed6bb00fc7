# SPDX-License-Identifier: MIT
"""The command `reg`: registers by name."""

import argparse
import sys
from typing import Any

from barfs.cli.edge import tell
from barfs.cli.exit_codes import EXIT_FAILED
from barfs.cli.help import explain
from barfs.cli.register_names import (
    NamedRegisters,
    add_registers_option,
    chosen_registers,
    registers_of,
)
from barfs.errors import BarfsError, UsageError
from barfs.registers import fields
from barfs.registers.access import BoundField, BoundRegister
from barfs.registers.places import Place
from barfs.text import dump_json, printable, with_hex


def add_reg(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--map",
        action="store_true",
        help="print offsets, names, widths, access and fields, without reading registers",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print a JSON list, with numbers also as hexadecimal text",
    )
    add_registers_option(parser)
    parser.add_argument(
        "device",
        metavar="DEVICE",
        help="as for barfs mount, or a device's directory in a mount",
    )
    parser.add_argument(
        "names",
        metavar="NAME[=VALUE]",
        nargs="*",
        help="a register or field, [REGION.]PATH, also with * and ?; =VALUE, a number or the name "
        "of one, writes it (default: all registers)",
    )
    explain(
        parser,
        "barfs reg demo bar0",
        "barfs reg ~/bar/bus/0000:01:00.0 'dma.chan*.status' config.COMMAND",
        "barfs reg ~/bar/bus/0000:01:00.0 dma.chan2.ctrl.mode=burst",
        "barfs reg --map --json 0000:01:00.0",
        details="Shows registers with their fields, or writes them; first checks all values. A "
        "register whose read has side effects is read when it is named itself, not when a pattern "
        "or a block includes it. Writing a field leaves the other fields alone, or is refused. "
        "If no barfs mount holds the device, it is opened for this command and a notice is "
        "printed.",
    )
    parser.set_defaults(run=_reg)


def _reg(choice: argparse.Namespace) -> int:
    with registers_of(choice.device, chosen_registers(choice)) as named:
        if choice.map and any("=" in name for name in choice.names):
            raise UsageError("--map writes nothing; leave out =VALUE")
        writes = [_write_of(named, text) for text in choice.names if "=" in text]
        patterns = [text for text in choice.names if "=" not in text]
        for region, place, number in writes:
            named.write(region, place, number)
        if writes and not patterns:
            return 0
        return _show(choice, named, patterns)


def _write_of(named: NamedRegisters, text: str) -> tuple[str, Place, int]:
    name, _equals, value = text.partition("=")
    region, place = named.registers.find(name)
    if not isinstance(named.registers.at(region, place), BoundRegister) and place.field is None:
        raise UsageError(f"{name} must be a register or a field to be written")
    return region, place, named.check(region, place, value)


def _show(choice: argparse.Namespace, named: NamedRegisters, patterns: list[str]) -> int:
    failed = False
    objects: list[dict[str, Any]] = []
    for found in named.found(patterns or list(named.registers.sources)):
        region, place = found.region, found.place
        value: int | None = None
        remark = "" if choice.map else found.why_not_read
        if not choice.map and not remark:
            try:
                value = _read(named, region, place)
            except BarfsError as error:
                tell(f"barfs: {error}")
                failed, remark = True, "cannot be read"
        if choice.json:
            objects.append(_object(region, place, value))
        else:
            print(printable(_line(region, place, value, remark)))
    if choice.json:
        sys.stdout.write(dump_json(objects))
    return EXIT_FAILED if failed else 0


def _read(named: NamedRegisters, region: str, place: Place) -> int:
    bound = named.registers.at(region, place)
    assert isinstance(bound, BoundRegister | BoundField)
    register = bound if isinstance(bound, BoundRegister) else bound.parent
    return int(register.read())


def _line(region: str, place: Place, value: int | None, remark: str) -> str:
    start = f"{region}+{place.offset:#010x} {place.shown}"
    register, field = place.register, place.field
    if value is not None:
        if field is not None:
            return f"{start} {fields.show(field, fields.extract(field, value))}"
        text = f"{start} {fields.show_register(register, value)}"
        return f"{text}  {fields.show_fields(register, value)}".rstrip()
    if remark:
        return f"{start} -  ({remark})"
    if field is not None:
        return f"{start} [{field.bits}] {field.access}"
    parts = " ".join(f"{part.name}[{part.bits}]" for part in register.fields)
    return f"{start} {8 * register.width} {register.access}  {parts}".rstrip()


def _object(region: str, place: Place, value: int | None) -> dict[str, Any]:
    register, field = place.register, place.field
    what = field or register
    found: dict[str, Any] = {
        "region": region,
        "name": place.shown,
        **with_hex(offset=place.offset),
        "bits": field.width if field else 8 * register.width,
        "access": what.access,
        "description": what.description,
    }
    if field is not None:
        found["low"] = field.low
        if value is not None:
            number = fields.extract(field, value)
            found |= with_hex(value=number) | {"text": fields.show(field, number)}
        return found
    if value is not None:
        found |= with_hex(value=value)
    found["fields"] = [
        {"name": part.name, "low": part.low, "bits": part.width, "access": part.access}
        | (
            with_hex(value=fields.extract(part, value))
            if value is not None and part.readable
            else {}
        )
        for part in register.fields
    ]
    return found
