# SPDX-License-Identifier: MIT
"""Which descriptions belong to a device: those that the user names, else those that are installed.

    -o registers=[REGION[+OFFSET]=]FILE     of one region, bar0 by default; more than once, too
    -o registers=off                        none at all

    VENDOR:DEVICE:SUBVENDOR:SUBDEVICE.SUFFIX, then VENDOR:DEVICE.SUFFIX, in lower-case hexadecimal,
    in ~/.config/barfs/registers (XDG_CONFIG_HOME), then in /etc/barfs/registers: bar0

    what ships with barfs, by class code or ids

Rule 1: the first of these that a region has is its map. Several that the user names for one region
        are one map, each at its offset.
Rule 2: a file that is found and cannot be used is an error, as one that is named.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from barfs.errors import UsageError
from barfs.pci import region_index
from barfs.ranges import parse_number
from barfs.registers import cache
from barfs.registers.compiler import SUFFIXES
from barfs.registers.errors import DescriptionError
from barfs.registers.model import Block, first_misplaced
from barfs.registers.names import ModelError
from barfs.registers.places import RegisterMap
from barfs.registers.shipped import Ids, MapSource, Read, shipped_maps
from barfs.text import printable
from barfs.widths import WIDTHS

_DEFAULT_REGION = "bar0"
_SYSTEM = Path("/etc/barfs/registers")
_TARGET = re.compile(r"([a-z0-9]+)(?:\+([0-9a-zA-Z]+))?=(.+)", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Named:
    """A description that the user names: for which region, from which offset in it on."""

    path: Path
    region: str = _DEFAULT_REGION
    offset: int = 0

    @property
    def text(self) -> str:
        """As `-o registers=` has it.

        >>> Named(Path("card.rdl"), "bar2", 4096).text
        'bar2+0x1000=card.rdl'
        """
        return f"{self.region}+{self.offset:#x}={self.path}"


@dataclass(frozen=True, slots=True)
class Choice:
    """What `-o registers=` says, all of them together. `off` excludes the rest."""

    named: tuple[Named, ...] = ()
    off: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """Where the maps of a device come from, by region, and what compilers warned of.

    `named` are the descriptions among them that are files.
    """

    maps: dict[str, MapSource]
    warnings: tuple[str, ...] = ()
    named: tuple[Named, ...] = ()


def parse_choice(texts: Iterable[str]) -> Choice:
    """Read the values of `-o registers=`. Raises UsageError.

    >>> parse_choice(["bar2+0x1000=card.rdl"]).named[0].offset
    4096
    """
    texts = list(texts)
    if "off" in texts:
        if len(texts) > 1:
            raise UsageError("registers=off must be the only registers= option")
        return Choice(off=True)
    return Choice(tuple(map(_parse_named, texts)))


def choice_of(registers: Mapping[str, str | os.PathLike[str]] | str) -> Choice:
    """The same from Python: files by `REGION` or `REGION+OFFSET`, or "off". Raises UsageError.

    >>> choice_of({"bar2": "card.rdl"}).named[0].region
    'bar2'
    """
    if isinstance(registers, str):
        if registers != "off":
            raise UsageError(f"registers must be off or files by region, not {registers!r}")
        return Choice(off=True)
    named = []
    for target, path in registers.items():
        text = f"{target}={os.fsdecode(path)}"
        found = _TARGET.fullmatch(text)
        if found is None or not _is_region(found[1]):
            raise UsageError(f"registers must name a region like bar0 or bar0+0x100, not {target}")
        named.append(_parse_named(text))
    return Choice(tuple(named))


def _parse_named(text: str) -> Named:
    if not text:
        raise UsageError("registers= must be off or [REGION[+OFFSET]=]FILE")
    found = _TARGET.fullmatch(text)
    if found is None or not _is_region(found[1]):
        return Named(Path(text))
    try:
        offset = parse_number(found[2]) if found[2] else 0
    except UsageError as error:
        raise UsageError(f"registers={text}: {error}") from None
    return Named(Path(found[3]), found[1], offset)


def _is_region(name: str) -> bool:
    try:
        region_index(name)
    except UsageError:
        return False
    return True


def find_maps(
    choice: Choice, ids: Ids, sizes: Mapping[str, int], read: Read, folders: Iterable[Path] = ()
) -> Found:
    """The maps of a device. `sizes` are those of its regions, by name; `read` reads the device.

    `folders` are searched in their order; `user_folders()` is what a mount passes. Raises
    DescriptionError, and UsageError for a region that the device does not have.
    """
    if choice.off:
        return Found({})
    maps: dict[str, list[RegisterMap]] = {}
    warnings: list[str] = []
    named = list(choice.named)
    if not any(each.region == _DEFAULT_REGION for each in named) and _DEFAULT_REGION in sizes:
        path = installed(ids, folders)
        named += [] if path is None else [Named(path)]
    for each in named:
        if each.region not in sizes:
            raise UsageError(
                f"registers={each.region}={each.path}: the device has no {each.region}; "
                f"it has {', '.join(sizes)}"
            )
        compiled = cache.load(each.path)
        warnings += compiled.warnings
        found = RegisterMap(compiled.root, str(each.path), each.offset)
        _check_fits(found, each, sizes[each.region])
        maps.setdefault(each.region, []).append(found)
    joined = {region: _joined(region, found) for region, found in maps.items()}
    rest = {region: size for region, size in sizes.items() if region not in joined}
    return Found(joined | shipped_maps(ids, rest, read), tuple(warnings), tuple(named))


def user_folders() -> tuple[Path, ...]:
    """Where descriptions can be put: the user's own folder, then that of the system."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".config")
    own = (Path(base) / "barfs" / "registers",) if os.path.isabs(base) else ()
    return (*own, _SYSTEM)


def installed(ids: Ids, folders: Iterable[Path]) -> Path | None:
    """The description for these ids in the first folder that has one, the narrowest name first."""
    device = f"{ids.vendor:04x}:{ids.device:04x}"
    names = (f"{device}:{ids.subsystem_vendor:04x}:{ids.subsystem_device:04x}", device)
    for folder in folders:
        for name in names:
            for suffix in SUFFIXES:
                path = folder / f"{name}{suffix}"
                if os.path.lexists(path):
                    return path
    return None


def _check_fits(found: RegisterMap, named: Named, size: int) -> None:
    root = found.root.node
    assert isinstance(root, Block)
    # The compiler has looked at all registers from offset 0 on.
    if named.offset % max(WIDTHS) and (misplaced := first_misplaced(root, found.root.offset)):
        raise DescriptionError(
            f"{printable(named.path)}: {misplaced}; it is read from {named.region}+"
            f"{named.offset:#x} on"
        )
    if found.root.offset + root.children.end <= size:
        return
    last = max(range(len(root.children)), key=lambda number: root.children.ends[number])
    raise DescriptionError(
        f"{printable(named.path)}: {root.children.names[last]} ends at "
        f"{found.root.offset + root.children.end:#x}, past the end of {named.region}, which has "
        f"{size:#x} bytes"
    )


def _joined(region: str, maps: list[RegisterMap]) -> MapSource:
    try:
        joined = RegisterMap.joined(maps)
        return MapSource(joined.source, lambda: joined)
    except ModelError as error:
        raise DescriptionError(f"{maps[-1].source}: {error} (of {region})") from None
