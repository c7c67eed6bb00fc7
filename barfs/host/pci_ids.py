# SPDX-License-Identifier: MIT
"""Names of vendors, devices and classes, from the pci.ids file that the system has.

Rule 1: without a file, or without an entry, there is no name: nothing is made up.
Rule 2: the file is read once, and only what was asked for is kept.

The format is that of pciutils: a vendor's line begins with four hexadecimal digits, its devices'
lines with a tab; `C ` and two digits begin a class, a tab and two digits its subclasses.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from barfs.host.sysfs import read_lines

# Debian's, Fedora's and the upstream place, below /usr.
_PLACES = ("share/misc/pci.ids", "share/hwdata/pci.ids", "local/share/pci.ids")


@dataclass(frozen=True, slots=True)
class Ids:
    """The numbers of a function: vendor and device id (16 bits each), class (24 bits)."""

    vendor: int
    device: int
    class_code: int


@dataclass(frozen=True, slots=True)
class Names:
    """The names of a function's vendor, device and class; None if the file does not have one."""

    vendor: str | None = None
    device: str | None = None
    class_: str | None = None


def find_pci_ids(usr: Path = Path("/usr")) -> Path | None:
    """The system's file, None if it has none."""
    return next(filter(Path.is_file, (usr / place for place in _PLACES)), None)


def names_of(wanted: Iterable[Ids], file: Path | None) -> Mapping[Ids, Names]:
    """The names that `file` has for functions; no names without a file."""
    keys = set(wanted)
    found = {} if file is None else _read(file, keys)
    return {
        ids: Names(
            found.get(_vendor(ids)),
            found.get(_device(ids)),
            found.get(_subclass(ids)) or found.get(_class(ids)),
        )
        for ids in keys
    }


# Keys: the tokens of the line, with those of the line that it belongs to in front.


def _vendor(ids: Ids) -> tuple[str, ...]:
    return (f"{ids.vendor:04x}",)


def _device(ids: Ids) -> tuple[str, ...]:
    return (*_vendor(ids), f"{ids.device:04x}")


def _class(ids: Ids) -> tuple[str, ...]:
    return (f"C {ids.class_code >> 16:02x}",)


def _subclass(ids: Ids) -> tuple[str, ...]:
    return (*_class(ids), f"{ids.class_code >> 8 & 0xFF:02x}")


def _read(file: Path, wanted: Iterable[Ids]) -> dict[tuple[str, ...], str]:
    keys = {key(ids) for ids in wanted for key in (_vendor, _device, _class, _subclass)}
    found: dict[tuple[str, ...], str] = {}
    parent = ""
    for line in read_lines(file):
        if line.startswith((b"#", b"\t\t")) or not line:
            continue
        token, _, name = line.decode(errors="replace").strip("\t").partition("  ")
        key: tuple[str, ...]
        if line.startswith(b"\t"):
            key = (parent, token)
        else:
            parent, key = token, (token,)
        if key in keys and name:
            found.setdefault(key, name.strip())
    return found
