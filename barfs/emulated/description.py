# SPDX-License-Identifier: MIT
"""The description of a software device, in TOML.

    vendor = 0x1234               # ids as in configuration space; these three are required
    device = 0x11e8
    class = 0xff0000              # base class, subclass, programming interface
    revision = 0x10               # optional, like the next two: 0
    subsystem_vendor = 0x1af4
    subsystem_device = 0x1100

    [msix]                        # optional: the MSI-X capability
    vectors = 4
    table = { bar = 0, offset = 0x2000 }     # 16 bytes for each vector
    pba = { bar = 0, offset = 0x2800 }       # one bit for each, in whole 8 bytes
    mappable = false              # optional: whether the table may be mapped (MSIX_MAPPABLE)

    [[region]]                    # one for each region; BARs, rom, config, region9 ... region63
    name = "bar0"
    size = 0x10000                # bytes; a power of two for BARs and rom
    flags = ["read", "write", "mmap"]        # optional; default read and write, rom: read
    areas = [                     # optional: sparse areas. With "mmap" and without areas, all of
        { offset = 0x1000, size = 0x1000 },  # the region can be mapped; with `areas = []` nothing
    ]
    prefetchable = true           # optional: false
    bits = 64                     # optional: 32; a 64-bit BAR takes the next number, too
    io = true                     # optional: false; whether the BAR says that it is I/O
    initial = [                   # optional: contents at the start; everything else is 0
        { offset = 0x00, u32 = 0x010000ed }, # u8, u16, u32, u64: a number, little-endian
        { offset = 0x10, hex = "de ad be ef" },
        { offset = 0x20, text = "hello" },
        { offset = 0x100, fill = 0xff, size = 0x100 },    # without size: to the end
        { offset = 0x1000, file = "rom.bin" },            # relative to this file
    ]

`offset` is 0 where it is left out. Later initial contents go over earlier ones. The ids, the
registers of BARs and the capabilities in configuration space are made from the rest of the
description; a region `config` is needed only for 256 instead of 4096 bytes, or for `initial`
contents, which go over what was made (an interrupt pin at 0x3d gives the device INTx). Addresses
are given to BARs as firmware would. A function level reset (PCI Express or Advanced Features) puts
everything back to the start, as a reset by message does.

Rule 1: a key that is not in this text is an error, not ignored.
Rule 2: every error is one line that names the file, the place in it and the key.
"""

import os
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from barfs.emulated.spec import (
    LARGEST_REGION,
    Content,
    DescriptionError,
    DeviceSpec,
    RegionSpec,
)
from barfs.errors import UsageError
from barfs.pci import ROM_INDEX, MsixCapability, region_index
from barfs.text.system_errors import reason
from barfs.uapi import SparseArea

_LARGEST_CONTENTS = 1 << 28
_FLAGS = ("read", "write", "mmap")
_NUMBERS = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}
_KIND_NAMES = {
    int: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Table:
    """A TOML table and where it stands; gives out its keys, and complains by name."""

    place: str
    values: dict[str, Any]

    def check_keys(self, known: Iterable[str]) -> None:
        for key in self.values:
            if key not in known:
                raise self.error(key, f"is not a key here; there are {', '.join(known)}")

    def error(self, key: str, problem: str) -> DescriptionError:
        return DescriptionError(f"{self.place}: {key}: {problem}")

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        value = self.values.get(key, default)
        if value is None:
            raise self.error(key, "is missing")
        if type(value) is not kind:
            raise self.error(key, f"must be {_KIND_NAMES[kind]}")
        return value

    def number(self, key: str, default: int | None = None) -> int:
        value = self.get(key, int, default)
        if value < 0:
            raise self.error(key, "must not be negative")
        return value

    def tables(self, key: str) -> "list[_Table]":
        """The tables in the list `key`, none if it is missing."""
        found = []
        for position, value in enumerate(self.get(key, list, [])):
            if type(value) is not dict:
                raise self.error(f"{key}[{position}]", "must be a table")
            found.append(_Table(f"{self.place}: {key}[{position}]", value))
        return found

    def table(self, key: str) -> "_Table":
        return _Table(f"{self.place}: {key}", self.get(key, dict))

    def build(self, make: Callable[..., T], **values: Any) -> T:
        """Make a spec; what it complains about gets this place in front."""
        try:
            return make(**values)
        except DescriptionError as error:
            raise DescriptionError(f"{self.place}: {error}") from None


def load(path: str) -> DeviceSpec:
    """Read the description in the file `path`. Raises DescriptionError."""
    try:
        text = Path(path).read_bytes().decode()
    except OSError as error:
        raise DescriptionError(f"{path}: cannot be read: {reason(error)}") from error
    except ValueError:
        raise DescriptionError(f"{path}: is not UTF-8 text, as TOML must be") from None
    return parse(text, name=path, folder=Path(path).parent)


def parse(text: str, *, name: str, folder: Path) -> DeviceSpec:
    """Read a description. `name` stands in errors, `folder` is where `file` contents are.

    Raises DescriptionError.
    """
    try:
        root = _Table(name, tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DescriptionError(f"{name}: is not TOML: {error}") from None
    root.check_keys(
        (
            "vendor",
            "device",
            "class",
            "revision",
            "subsystem_vendor",
            "subsystem_device",
            "msix",
            "region",
        )
    )
    msix = root.table("msix") if "msix" in root.values else None
    return root.build(
        DeviceSpec,
        vendor=root.number("vendor"),
        device=root.number("device"),
        class_code=root.number("class"),
        revision=root.number("revision", 0),
        subsystem_vendor=root.number("subsystem_vendor", 0),
        subsystem_device=root.number("subsystem_device", 0),
        regions=tuple(_region(table, folder) for table in root.tables("region")),
        msix=None if msix is None else _msix(msix),
        msix_mappable=msix is not None and msix.get("mappable", bool, False),
    )


def _msix(table: _Table) -> MsixCapability:
    table.check_keys(("vectors", "table", "pba", "mappable"))
    places = table.table("table"), table.table("pba")
    for place in places:
        place.check_keys(("bar", "offset"))
    return MsixCapability(
        vectors=table.number("vectors"),
        table_bar=places[0].number("bar"),
        table_offset=places[0].number("offset"),
        pba_bar=places[1].number("bar"),
        pba_offset=places[1].number("offset"),
    )


def _region(table: _Table, folder: Path) -> RegionSpec:
    table.check_keys(("name", "size", "flags", "areas", "prefetchable", "bits", "io", "initial"))
    name = table.get("name", str)
    try:
        index = region_index(name)
    except UsageError as error:
        raise table.error("name", str(error)) from None
    table = _Table(f"{table.place} ({name})", table.values)
    size = table.number("size")
    if size > LARGEST_REGION:
        raise table.error("size", f"{size:#x} is more than {LARGEST_REGION:#x}")
    flags = table.get("flags", list, ["read"] if index == ROM_INDEX else ["read", "write"])
    for flag in flags:
        if flag not in _FLAGS:
            raise table.error("flags", f"{flag!r} is none of {', '.join(_FLAGS)}")
    bits = table.number("bits", 32)
    if bits not in (32, 64):
        raise table.error("bits", f"{bits} is neither 32 nor 64")
    areas = None
    if "areas" in table.values:
        areas = tuple(_area(area) for area in table.tables("areas"))
    return table.build(
        RegionSpec,
        index=index,
        size=size,
        readable="read" in flags,
        writable="write" in flags,
        mappable="mmap" in flags,
        areas=areas,
        is_io=table.get("io", bool, False),
        is_64bit=bits == 64,
        prefetchable=table.get("prefetchable", bool, False),
        contents=tuple(_content(item, size, folder) for item in table.tables("initial")),
    )


def _area(table: _Table) -> SparseArea:
    table.check_keys(("offset", "size"))
    return SparseArea(table.number("offset"), table.number("size"))


def _content(table: _Table, region_size: int, folder: Path) -> Content:
    """One entry of `initial`: an offset and exactly one kind of contents."""
    kinds = (*_NUMBERS, "hex", "text", "fill", "file")
    table.check_keys(("offset", "size", *kinds))
    found = [kind for kind in kinds if kind in table.values]
    if len(found) != 1:
        raise table.error("initial", f"must have exactly one of {', '.join(kinds)}")
    kind = found[0]
    if "size" in table.values and kind != "fill":
        raise table.error("size", "goes with fill only")
    offset = table.number("offset", 0)
    if kind in _NUMBERS:
        data = _little_endian(table, kind, _NUMBERS[kind])
    elif kind == "fill":
        size = table.number("size", max(region_size - offset, 0))
        if size > _LARGEST_CONTENTS:
            raise table.error("size", f"at most {_LARGEST_CONTENTS:#x} bytes can be filled")
        data = _little_endian(table, "fill", 1) * size
    elif kind == "hex":
        try:
            data = bytes.fromhex(table.get("hex", str))
        except ValueError:
            raise table.error("hex", 'must be pairs of digits like "de ad be ef"') from None
    elif kind == "text":
        data = table.get("text", str).encode()
    else:
        data = _file_content(table, region_size, folder)
    return Content(offset, data)


def _little_endian(table: _Table, key: str, width: int) -> bytes:
    value = table.number(key)
    if value >= 1 << 8 * width:
        raise table.error(key, f"{value:#x} does not fit into {8 * width} bits")
    return value.to_bytes(width, "little")


def _file_content(table: _Table, region_size: int, folder: Path) -> bytes:
    path = folder / os.fsdecode(table.get("file", str).encode())
    try:
        with path.open("rb") as file:
            # One byte more than fits, so that a file that is too long is noticed, not read.
            return file.read(min(region_size, _LARGEST_CONTENTS) + 1)
    except (OSError, ValueError) as error:
        raise table.error("file", f"{path} cannot be read: {reason(error)}") from None
