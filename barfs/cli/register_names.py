# SPDX-License-Identifier: MIT
"""The registers of a device by name: those of a mount, or of a device that is opened.

Rule 1: in a mount, the files of registers are written, whose writers lose nothing to each other.
Rule 2: a register whose read has side effects is read when it is named itself, not when a pattern
        or a block includes it.
"""

import argparse
import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from barfs.attached.mounts import find_device
from barfs.cli.edge import tell
from barfs.cli.register_file import RegisterError
from barfs.errors import UsageError
from barfs.fuse.mounted_registers import MountedRegion, mounted_registers
from barfs.opening import DeviceName
from barfs.registers import fields
from barfs.registers.access import BoundField, BoundRegister, DeviceRegisters
from barfs.registers.errors import NoSuchName
from barfs.registers.find import Choice, parse_choice
from barfs.registers.places import Place
from barfs.text.system_errors import reason


def add_registers_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--registers",
        metavar="DESCRIPTION",
        action="append",
        default=[],
        help="of a region's registers: [REGION[+OFFSET]=]FILE, more than once, or off, like the "
        "mount option registers= (default: as in the mount that holds the device, or what is "
        "installed)",
    )


def chosen_registers(choice: argparse.Namespace) -> Choice | None:
    """What `--registers` says; None where it is not there. Raises UsageError."""
    return parse_choice(choice.registers) if choice.registers else None


@dataclass(frozen=True, slots=True)
class Found:
    """A register or a field that a name, a pattern or a block gave; `itself` if it was named."""

    region: str
    place: Place
    itself: bool

    @property
    def why_not_read(self) -> str:
        """The reason not to read it, "" for none."""
        if not (self.place.field or self.place.register).readable:
            return "write-only"
        if self.place.register.read_has_effects and not self.itself:
            return "not read: that has side effects; name it to read it"
        return ""


@dataclass(frozen=True, slots=True)
class NamedRegisters:
    """The registers of a device; `directory` is where a mount has it, if one has.

    `own`: by the descriptions of the mount, not by others.
    """

    registers: DeviceRegisters
    directory: Path | None
    own: bool = True

    def found(self, patterns: Iterable[str]) -> Iterator[Found]:
        """What the patterns give, in their order. Raises NoSuchName for one that gives nothing."""
        for pattern in patterns:
            itself = None
            with contextlib.suppress(NoSuchName):
                region, place = self.registers.find(pattern)
                itself = region, place.name
            for region, place in self.registers.match(pattern):
                yield Found(region, place, itself == (region, place.name))

    def check(self, region: str, place: Place, text: str) -> int:
        """The number that a text is. Raises the errors of a write that would be refused."""
        number = fields.parse(place.field or place.register, text)
        if self.directory is not None and not self.own:
            raise UsageError(
                f"{region}.{place.path} is written by the description of the mount; leave out "
                "--registers, or mount the device with -o registers="
            )
        if place.field is not None:
            writes = fields.plan_write(place.register, {place.field.name: number}).writes
        elif not place.register.writable:
            raise RegisterError(f"{region}.{place.path} cannot be written")
        else:
            writes = fields.accesses(place.register)
        bound = self.registers.at(region, place)
        mounted = (bound.parent if isinstance(bound, BoundField) else bound).region
        if isinstance(mounted, MountedRegion):
            for access in writes:
                mounted.check_single(place.offset + access.offset, access.width)
        return number

    def write(self, region: str, place: Place, number: int) -> None:
        """Write a register or a field. Raises BarfsError."""
        if self.directory is None:
            bound = self.registers.at(region, place)
            assert isinstance(bound, BoundRegister | BoundField)
            bound.write(number)
            return
        field = f".{place.field.name}" if place.field else ""
        path = self.directory / "registers" / region / f"{place.files}{field}"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, f"{number:#x}".encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise RegisterError(f"{path}: {reason(error)}") from error


@contextlib.contextmanager
def registers_of(text: str, choice: Choice | None = None) -> Iterator[NamedRegisters]:
    """The registers of a mounted device's directory, or of a DEVICE. Raises BarfsError."""
    if os.path.isdir(text):
        directory: Path | None = Path(os.path.realpath(text))
        name = None
    else:
        name = DeviceName.parse(text)
        directory = find_device(name.source)
    if directory is not None:
        with mounted_registers(directory, choice) as registers:
            yield NamedRegisters(registers, directory, choice is None)
        return
    from barfs.daemon.logs import log_to_stderr
    from barfs.opening import open_implicitly

    assert name is not None
    log_to_stderr()
    with open_implicitly(name, tell, choice) as device:
        yield NamedRegisters(device.registers, None)
