# SPDX-License-Identifier: MIT
"""The registers of a device by name: those of a mount, or of a device that is opened.

Rule 1: in a mount, values are read through the regions' files, and written through the files of
        registers, whose writers lose nothing to each other.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from barfs.attach import DeviceName
from barfs.cli.edge import tell
from barfs.cli.register_file import Place as File
from barfs.cli.register_file import RegisterError, Registers, check_widths
from barfs.errors import UsageError
from barfs.fuse.mounts import MountInfo, find_device, layouts_in
from barfs.registers import fields
from barfs.registers.access import BoundField, BoundRegister, DeviceRegisters, bind
from barfs.registers.find import parse_choice
from barfs.registers.model import Register
from barfs.registers.places import Place
from barfs.text.system_errors import reason

_IDS = ("vendor", "device", "subsystem_vendor", "subsystem_device", "class")


class MountedRegion:
    """A region's file in a mount, as `barfs.registers.access` wants regions."""

    def __init__(self, path: Path, size: int) -> None:
        self.name = path.name
        self.size = size
        self._path = path
        self._stack = contextlib.ExitStack()

    @functools.cached_property
    def _file(self) -> Registers:
        return self._stack.enter_context(File.find(str(self._path)).open(os.O_RDONLY))

    def close(self) -> None:
        self._stack.close()

    def _read(self, offset: int, width: int) -> int:
        check_widths(offset, offset + width, width, self._file.places)
        return self._file.read(offset, width)

    def read8(self, offset: int) -> int:
        return self._read(offset, 1)

    def read16(self, offset: int) -> int:
        return self._read(offset, 2)

    def read32(self, offset: int) -> int:
        return self._read(offset, 4)

    def read64(self, offset: int) -> int:
        return self._read(offset, 8)

    def _refuse(self, offset: int, value: int) -> None:
        raise AssertionError("the files of registers are written")

    write8 = write16 = write32 = write64 = _refuse


@dataclass(frozen=True, slots=True)
class NamedRegisters:
    """The registers of a device; `directory` is where a mount has it, if one has."""

    registers: DeviceRegisters
    directory: Path | None

    def check(self, region: str, place: Place, text: str) -> int:
        """The number that a text is. Raises the errors of a write that would be refused."""
        number = fields.parse(place.field or place.register, text)
        if place.field is not None:
            fields.plan_write(place.register, {place.field.name: number})
        elif not place.register.writable:
            raise RegisterError(f"{region}.{place.path} cannot be written")
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
def registers_of(text: str) -> Iterator[NamedRegisters]:
    """The registers of a mounted device's directory, or of a DEVICE. Raises BarfsError."""
    if os.path.isdir(text):
        directory: Path | None = Path(os.path.realpath(text))
        name = None
    else:
        name = DeviceName.parse(text)
        directory = find_device(name.source)
    if directory is not None:
        with _mounted(directory) as registers:
            yield NamedRegisters(registers, directory)
        return
    from barfs.attach import open_implicitly
    from barfs.daemon.logs import log_to_stderr

    assert name is not None
    log_to_stderr()
    with open_implicitly(name, tell) as device:
        yield NamedRegisters(device.registers, None)


@contextlib.contextmanager
def _mounted(directory: Path) -> Iterator[DeviceRegisters]:
    info = MountInfo.read(directory.parent.parent) if len(directory.parts) > 2 else None
    if info is None or directory.name not in info.devices:
        raise UsageError(f"{directory} must be a device's directory in a mount, like .../bus/BDF")
    with contextlib.ExitStack() as stack:
        regions = {}
        for name, layout in layouts_in(directory).items():
            region = MountedRegion(directory / name, layout.size)
            stack.callback(region.close)
            regions[name] = region
        off = not (directory / "registers").is_dir()
        choice = parse_choice(["off"] if off else info.registers.get(directory.name, []))
        try:
            attributes = {name: (directory / name).read_text() for name in _IDS}
        except OSError as error:
            raise RegisterError(f"{directory}: {reason(error)}") from error
        yield bind(regions, attributes, choice, folders=())


def place_in(file: str, name: str) -> Place:
    """The register or field that a name is in a region's FILE in a mount: one access wide.

    Raises UsageError, NoSuchName, MountError.
    """
    path = File.find(file).path
    if path is None:
        raise UsageError(f"{name}: mount the device to use names here, or use barfs reg")
    path = Path(os.path.realpath(path))
    with registers_of(str(path.parent)) as named:
        if path.name not in named.registers.sources:
            raise UsageError(f"{name}: no description of the registers of {file} is known")
        place = named.registers.map(path.name).find(name)
    if not isinstance(place.node, Register):
        raise UsageError(f"{name} must be a register or a field")
    if len(fields.accesses(place.register)) > 1 or place.register.big_endian:
        raise UsageError(f"{name} is not one little-endian access; use barfs reg")
    return place


def shown_name(place: Place) -> str:
    """`dma.chan2.ctrl.mode`: as the files are named, for it goes through shells unquoted."""
    name = place.files.replace("/", ".")
    return f"{name}.{place.field.name}" if place.field else name


def shown_fields(register: Register, value: int) -> str:
    """`done[0]=1 count[15:8]=0`."""
    return " ".join(
        f"{field.name}[{field.bits}]={fields.show(field, fields.extract(field, value))}"
        for field in register.fields
        if field.readable
    )
