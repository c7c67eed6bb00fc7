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
    table = { bar = 0, offset = 0x2000 }     # 16 bytes per vector
    pba = { bar = 0, offset = 0x2800 }       # one bit per vector, in units of 8 bytes
    mappable = false              # optional: whether the table may be mapped (MSIX_MAPPABLE)

    [[region]]                    # one per region: BARs, rom, config, region9 ... region63
    name = "bar0"
    size = 0x10000                # bytes; a power of two for BARs and rom
    flags = ["read", "write", "mmap"]        # optional; default read and write, rom: read
    areas = [                     # optional: sparse areas, with "mmap" only; without the key the
        { offset = 0x1000, size = 0x1000 },  # whole region is mappable, with `[]` none of it
    ]
    prefetchable = true           # optional: false
    bits = 64                     # optional: 32; a 64-bit BAR also takes the next number
    io = true                     # optional: false; the BAR's register says I/O
    initial = [                   # optional: contents at the start; all other bytes are 0
        { offset = 0x00, u32 = 0x010000ed }, # u8, u16, u32, u64: a number, little-endian
        { offset = 0x10, hex = "de ad be ef" },
        { offset = 0x20, text = "hello" },
        { offset = 0x100, fill = 0xff, size = 0x100 },    # without size: to the end
        { offset = 0x1000, file = "rom.bin" },            # relative to this file
    ]

`offset` defaults to 0. Later initial contents overwrite earlier ones. The device builds the ids,
BAR registers and capabilities of its configuration space from the rest of the description; describe
`config` only to make it 256 bytes instead of 4096, or to overwrite parts of it with `initial` (an
interrupt pin at 0x3d gives the device INTx). BARs get addresses as firmware would assign them. A
function level reset (PCI Express or Advanced Features) restores the initial state, as a reset by
message does.

Rule 1: an unknown key is an error.
Rule 2: each error is one line that names the file, the place in it and the key.
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
    """A TOML table and its place in the file, which its errors name."""

    place: str
    values: dict[str, Any]

    def check_keys(self, known: Iterable[str]) -> None:
        for key in self.values:
            if key not in known:
                raise self.error(key, f"is not a key; the keys here are {', '.join(known)}")

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
        """The tables in the list `key`; empty without it."""
        found = []
        for position, value in enumerate(self.get(key, list, [])):
            if type(value) is not dict:
                raise self.error(f"{key}[{position}]", "must be a table")
            found.append(_Table(f"{self.place}: {key}[{position}]", value))
        return found

    def table(self, key: str) -> "_Table":
        return _Table(f"{self.place}: {key}", self.get(key, dict))

    def build(self, make: Callable[..., T], **values: Any) -> T:
        """Make a spec; its errors get this place as a prefix."""
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
    """Read a description. Errors begin with `name`; `folder` is where `file` contents are.

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
        raise table.error("size", f"must be at most {LARGEST_REGION:#x}, not {size:#x}")
    flags = table.get("flags", list, ["read"] if index == ROM_INDEX else ["read", "write"])
    for flag in flags:
        if flag not in _FLAGS:
            raise table.error("flags", f"must be read, write or mmap, not {flag!r}")
    bits = table.number("bits", 32)
    if bits not in (32, 64):
        raise table.error("bits", f"must be 32 or 64, not {bits}")
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
        raise table.error("size", "applies to fill only")
    offset = table.number("offset", 0)
    if kind in _NUMBERS:
        data = _little_endian(table, kind, _NUMBERS[kind])
    elif kind == "fill":
        size = table.number("size", max(region_size - offset, 0))
        if size > _LARGEST_CONTENTS:
            raise table.error("size", f"must be at most {_LARGEST_CONTENTS:#x}, not {size:#x}")
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
        raise table.error(key, f"{value:#x} does not fit in {8 * width} bits")
    return value.to_bytes(width, "little")


def _file_content(table: _Table, region_size: int, folder: Path) -> bytes:
    path = folder / os.fsdecode(table.get("file", str).encode())
    try:
        with path.open("rb") as file:
            # One byte more than fits: enough to notice that the file is too long.
            return file.read(min(region_size, _LARGEST_CONTENTS) + 1)
    except (OSError, ValueError) as error:
        raise table.error("file", f"{path} cannot be read: {reason(error)}") from None
