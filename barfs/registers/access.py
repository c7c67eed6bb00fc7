# SPDX-License-Identifier: MIT
"""The registers of an open device, by name.

    device.registers["bar0.SCRATCH"]            a BoundRegister; the region may be left out
    device.registers["dma.chan[2].ctrl.mode"]   a BoundField
    device.registers["dma"], device.registers.dma.chan[2].ctrl      groups, and attributes

    register.read()                             a Value: a number with the fields as attributes
    register.write(0x13)
    register.read_fields()                      {"enable": 1, "mode": <burst: 2>}
    register.write_fields(enable=1, mode="burst")

Rule 1: every access is one of its region's own (`Region.read32` and the like), so whatever the
        device was opened with holds here, too.
Rule 2: what reads before it writes, and what takes several accesses, does so under a lock of the
        register: two writers of one register lose nothing.
Rule 3: maps are found and compiled once, when they are first asked for.
"""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from barfs.errors import AccessTimeout
from barfs.registers import fields
from barfs.registers.errors import NoSuchElement, NoSuchName, NotAlone
from barfs.registers.find import Choice, Named, find_maps, user_folders
from barfs.registers.model import Field, Register
from barfs.registers.places import Place, RegisterMap
from barfs.registers.shipped import Ids, MapSource


class RegionAccess(Protocol):
    """What a region has to offer: `barfs.Region`, or a region's file in a mount."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def read8(self, offset: int) -> int: ...
    def read16(self, offset: int) -> int: ...
    def read32(self, offset: int) -> int: ...
    def read64(self, offset: int) -> int: ...
    def write8(self, offset: int, value: int) -> None: ...
    def write16(self, offset: int, value: int) -> None: ...
    def write32(self, offset: int, value: int) -> None: ...
    def write64(self, offset: int, value: int) -> None: ...


def load(region: RegionAccess, offset: int, width: int) -> int:
    """One access. Raises AccessError."""
    read: Callable[[int], int] = getattr(region, f"read{8 * width}")
    return read(offset)


def store(region: RegionAccess, offset: int, width: int, value: int) -> None:
    """One access. Raises AccessError."""
    write: Callable[[int, int], None] = getattr(region, f"write{8 * width}")
    write(offset, value)


class FieldValue(int):
    """The number in a field. `str` gives the name that the enumeration has for it, if any."""

    field: Field

    @classmethod
    def of(cls, field: Field, number: int) -> "FieldValue":
        made = cls(number)
        made.field = field
        return made

    def __str__(self) -> str:
        return fields.show(self.field, int(self))

    def __repr__(self) -> str:
        name = str(self)
        return name if name[0].isdigit() else f"<{name}: {int(self)}>"


class Value(int):
    """What a register held. Its fields are attributes, and items where a number has the name.

    >>> register = Register("ctrl", 0, 4, (Field("enable", 0, 1), Field("mode", 1, 2)))
    >>> value = Value.of(register, 5)
    >>> value, value.mode, value["enable"]
    (0x00000005, 2, 1)
    """

    register: Register

    @classmethod
    def of(cls, register: Register, number: int) -> "Value":
        made = cls(number)
        made.register = register
        return made

    def __getattr__(self, name: str) -> FieldValue:
        field = None if name.startswith("__") or name == "register" else self.register.field(name)
        if field is None:
            raise AttributeError(f"there is no field {name}")
        return FieldValue.of(field, fields.extract(field, int(self)))

    def __getitem__(self, name: str) -> FieldValue:
        field = self.register.field(name)
        if field is None:
            raise KeyError(name)
        return FieldValue.of(field, fields.extract(field, int(self)))

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(field.name for field in self.register.fields)]

    def __str__(self) -> str:
        return fields.show_register(self.register, int(self))

    __repr__ = __str__


class _Locks:
    """A lock for each register, as long as it is in use."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._making = threading.Lock()
        self._locks: weakref.WeakValueDictionary[tuple[str, int], _Held] = (
            weakref.WeakValueDictionary()
        )

    def of(self, region: str, offset: int) -> "_Held":
        with self._making:
            lock = self._locks.get((region, offset))
            if lock is None:
                lock = self._locks[region, offset] = _Held(region, offset, self.timeout)
            return lock


class _Held:
    """A lock that is not waited for longer than an access may take."""

    def __init__(self, region: str, offset: int, timeout: float) -> None:
        self._region = region
        self._offset = offset
        self._timeout = timeout
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=min(self._timeout, threading.TIMEOUT_MAX)):
            raise AccessTimeout(
                "another access to this register has not come back",
                region=self._region,
                offset=self._offset,
            )

    def __exit__(self, *_error: object) -> None:
        self._lock.release()


@dataclass(frozen=True, slots=True)
class BoundRegister:
    """A register of an open device."""

    place: Place
    region: RegionAccess
    _locks: _Locks

    @property
    def name(self) -> str:
        """Its path with its region: `bar0.dma.chan[2].ctrl`."""
        return f"{self.region.name}.{self.place.path}"

    @property
    def timeout(self) -> float:
        """Seconds that one access may take."""
        return self._locks.timeout

    @property
    def register(self) -> Register:
        """What the description says of it."""
        return self.place.register

    def __repr__(self) -> str:
        return f"<{self.name} at {self.place.offset:#x}>"

    def __getattr__(self, name: str) -> "BoundField":
        field = None if name.startswith("__") else self.register.field(name)
        if field is None:
            raise AttributeError(f"{self.name} has no field {name}")
        return BoundField(self, field)

    def __dir__(self) -> list[str]:
        return [*object.__dir__(self), *(field.name for field in self.register.fields)]

    def read(self) -> Value:
        """Read it: one access, or several where it is wider than one. Raises AccessError."""
        parts = fields.accesses(self.register)
        if len(parts) == 1:
            return Value.of(self.register, self._read(parts))
        with self._locks.of(self.region.name, self.place.offset):
            return Value.of(self.register, self._read(parts))

    def write(self, value: int) -> None:
        """Write all of it, without a read. Raises NotAValue, ValueTooLarge, AccessError."""
        value = fields.number_of(self.register, value)
        with self._locks.of(self.region.name, self.place.offset):
            self._write(fields.accesses(self.register), value)

    def read_fields(self) -> dict[str, FieldValue]:
        """Read it, and give its readable fields by name."""
        value = self.read()
        return {field.name: value[field.name] for field in self.register.fields if field.readable}

    def write_fields(self, **values: int | str) -> None:
        """Write these fields, each a number or a name of its enumeration, and nothing else.

        Makes one read, where one is needed, and one write. Raises NotAlone where a neighbour has
        no value that changes nothing, NoSuchName, NotAValue, ValueTooLarge, AccessError.
        """
        plan = fields.plan_write(self.register, self._numbers(values))
        with self._locks.of(self.region.name, self.place.offset):
            old = self._read(plan.reads)
            self._write(plan.writes, plan.compose(old))

    def _numbers(self, values: Mapping[str, int | str]) -> dict[str, int]:
        found = {}
        for name, value in values.items():
            field = self.register.field(name)
            if field is None:
                known = ", ".join(each.name for each in self.register.fields) or "no fields"
                raise NoSuchName(f"{self.name} has no field {name}; it has {known}")
            found[name] = fields.number_of(field, value)
        return found

    def _read(self, parts: Iterable[fields.Access]) -> int:
        parts = tuple(parts)
        start = self.place.offset
        words = [load(self.region, start + part.offset, part.width) for part in parts]
        return fields.to_value(self.register, parts, words)

    def _write(self, parts: Iterable[fields.Access], value: int) -> None:
        parts = tuple(parts)
        words = fields.to_words(self.register, parts, value)
        for part, word in zip(parts, words, strict=True):
            store(self.region, self.place.offset + part.offset, part.width, word)


@dataclass(frozen=True, slots=True)
class BoundField:
    """A field of a register of an open device."""

    parent: BoundRegister
    field: Field

    @property
    def name(self) -> str:
        return f"{self.parent.name}.{self.field.name}"

    def __repr__(self) -> str:
        return f"<{self.name}, bits {self.field.bits}>"

    def read(self) -> FieldValue:
        """Read the register, and give the field. Raises AccessError, NotAlone."""
        if not self.field.readable:
            raise NotAlone(f"{self.name} cannot be read")
        return self.parent.read()[self.field.name]

    def write(self, value: int | str) -> None:
        """`BoundRegister.write_fields` with this field."""
        self.parent.write_fields(**{self.field.name: value})


@dataclass(frozen=True, slots=True)
class BoundGroup:
    """A block, the registers of a region, or an array; what is in it are its attributes."""

    place: Place
    region: RegionAccess
    _locks: _Locks
    array: str = ""

    def __repr__(self) -> str:
        return f"<{'.'.join(filter(None, (self.region.name, self.place.path, self.array)))}>"

    def __getattr__(self, name: str) -> "Bound":
        if name.startswith("__") or self.array or isinstance(self.place.node, Register):
            raise AttributeError(name)
        number = self.place.node.children.numbers.get(name, -1)
        if number in self.place.node.children.arrays:
            return BoundGroup(self.place, self.region, self._locks, name)
        found = self.place.child(name)
        if found is None:
            raise AttributeError(f"{self!r} has no {name}")
        return self._bound(found)

    def __getitem__(self, index: int | tuple[int, ...]) -> "Bound":
        """An element of an array: `chan[2]`, `lane[2, 0]`."""
        indices = index if isinstance(index, tuple) else (index,)
        if not all(isinstance(position, int) for position in indices):
            raise TypeError(f"an element of {self!r} must be chosen by ints, not by {index!r}")
        name = self.array + "".join(f"[{position}]" for position in indices)
        found = self.place.child(name) if self.array else None
        if found is None:
            raise IndexError(f"{self!r} has no element {index}")
        return self._bound(found)

    def __dir__(self) -> list[str]:
        inside = () if isinstance(self.place.node, Register) else self.place.node.children.names
        return [*object.__dir__(self), *(() if self.array else inside)]

    def _bound(self, place: Place) -> "Bound":
        return bound(place, self.region, self._locks)


Bound = BoundRegister | BoundField | BoundGroup


def bound(place: Place, region: RegionAccess, locks: _Locks) -> Bound:
    """What a place of a map is on a device."""
    if not isinstance(place.node, Register):
        return BoundGroup(place, region, locks)
    register = BoundRegister(replace(place, field=None), region, locks)
    return register if place.field is None else BoundField(register, place.field)


class DeviceRegisters(Mapping[str, Bound]):
    """The registers of a device, by path: a mapping, and attributes.

    Iterating gives the paths of all registers, with their regions. A path without a region is
    looked for in every region, in configuration space last. Raises NoSuchName, which says what
    there is.

        >>> import barfs
        >>> with barfs.open("demo") as device:
        ...     scratch = device.registers["bar0.SCRATCH"]
        ...     scratch.write(0x0BADC0DE)
        ...     print(scratch.read(), device.registers.bar0.INVERT.read())
        ...     print(device.registers["LEVEL"], list(device.registers)[:2])
        ...     vendor = device.registers["config.VENDOR_ID"]
        ...     print(vendor.read())
        0x0badc0de 0xffffffff
        <bar0.LEVEL at 0x1c> ['bar0.ID', 'bar0.SCRATCH']
        0x1234
    """

    def __init__(
        self,
        sources: Mapping[str, MapSource],
        regions: Mapping[str, RegionAccess],
        timeout: float,
        named: Sequence[Named] = (),
    ) -> None:
        self.sources = dict(sources)
        self.named = tuple(named)
        self.timeout = timeout
        self._regions = regions
        self._locks = _Locks(timeout)

    def __getitem__(self, path: str) -> Bound:
        region, place = self.find(path)
        return bound(place, self._regions[region], self._locks)

    def __iter__(self) -> Iterator[str]:
        for region in self.sources:
            yield from (f"{region}.{place.path}" for place in self.map(region).registers())

    def __len__(self) -> int:
        return sum(1 for _path in self)

    def __contains__(self, path: object) -> bool:
        try:
            return isinstance(path, str) and self.find(path) is not None
        except NoSuchName:
            return False

    def __bool__(self) -> bool:
        return bool(self.sources)

    def __getattr__(self, name: str) -> Bound:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self[name]
        except NoSuchName as error:
            raise AttributeError(str(error)) from None

    def __dir__(self) -> list[str]:
        return [*object.__dir__(self), *self.sources]

    def __repr__(self) -> str:
        return f"<registers of {', '.join(self.sources) or 'no region'}>"

    def map(self, region: str) -> RegisterMap:
        """The map of a region; may read the device to make it."""
        return self.sources[region].load()

    def at(self, region: str, place: Place) -> Bound:
        """What a place of the region's map is."""
        return bound(place, self._regions[region], self._locks)

    def find(self, path: str) -> tuple[str, Place]:
        """The region and the place of a path. Raises NoSuchName."""
        region, rest = split_region(path, self.sources)
        if region:
            return region, self.map(region).find(rest)
        found: list[tuple[str, Place]] = []
        errors: list[NoSuchName] = []
        for region in sorted(self.sources, key=lambda name: name == "config"):
            if region == "config" and found:
                break
            try:
                found.append((region, self.map(region).find(path)))
            except NoSuchName as error:
                errors.append(error)
        if len(found) > 1:
            names = " or ".join(f"{region}.{place.name}" for region, place in found)
            raise NoSuchName(f"{path} is in several regions; write {names}")
        if found:
            return found[0]
        errors.sort(key=lambda error: not isinstance(error, NoSuchElement))
        raise errors[0] if errors else NoSuchName(f"{path}: the device has no register map")

    def match(self, pattern: str) -> Iterator[tuple[str, Place]]:
        """The registers and fields that a pattern names. Raises NoSuchName if there are none."""
        region, rest = split_region(pattern, self.sources)
        regions = [region] if region else sorted(self.sources, key=lambda name: name == "config")
        count, wrong_index = 0, None
        for each in regions:
            if each == "config" and count:
                break
            try:
                for place in self.map(each).match(rest):
                    count += 1
                    yield each, place
            except NoSuchElement as error:
                wrong_index = wrong_index or error
            except NoSuchName:
                continue
        if not count and wrong_index:
            raise wrong_index
        if not count:
            known = ", ".join(self.sources) or "no region"
            raise NoSuchName(f"{pattern} matches no register; there are maps of {known}")


def split_region(path: str, regions: Iterable[str]) -> tuple[str, str]:
    """The region that a path begins with, "" for none, and the rest.

    >>> split_region("bar0.dma.ctrl", ["bar0"]), split_region("dma.ctrl", ["bar0"])
    (('bar0', 'dma.ctrl'), ('', 'dma.ctrl'))

    Raises NoSuchName for what is no text, or an empty one.
    """
    if not isinstance(path, str):
        raise NoSuchName(f"a register must be named by a text like bar0.ctrl, not by {path!r}")
    if not path.strip("./"):
        raise NoSuchName(
            "the name of a register must not be empty; write a path like bar0.ctrl, or * for all"
        )
    for region in regions:
        if path == region or path.startswith((f"{region}.", f"{region}/")):
            return region, path[len(region) + 1 :]
    return "", path


def bind(
    regions: Mapping[str, RegionAccess],
    attributes: Mapping[str, str],
    choice: Choice | None = None,
    *,
    timeout: float = 5.0,
    folders: Iterable[Path] | None = None,
    warn: Callable[[str], object] = lambda warning: None,
) -> DeviceRegisters:
    """The registers of a device, by what sysfs says of its ids and by the user's choice.

    Raises DescriptionError, UsageError.
    """
    ids = Ids(
        *(
            int(attributes.get(name, "0"), 16)
            for name in ("vendor", "device", "subsystem_vendor", "subsystem_device", "class")
        )
    )
    found = find_maps(
        choice or Choice(),
        ids,
        {name: region.size for name, region in regions.items()},
        lambda region, offset, width: load(regions[region], offset, width),
        user_folders() if folders is None else folders,
    )
    for warning in found.warnings:
        warn(warning)
    ordered = {name: found.maps[name] for name in regions if name in found.maps}
    return DeviceRegisters(ordered, regions, timeout, found.named)
