# SPDX-License-Identifier: MIT
"""The access policy of a user: rules for ranges of registers, from a TOML file.

    # A register that no rule covers is "rw"; where several do, the last one decides.
    [[rule]]
    device = "0000:01:00.0"     # an address, or a name as given to barfs mount; default "*"
    region = "bar0"             # default "*"
    range  = "0x100-0x13f"      # or "0x100+0x40"; default: the whole region
    access = "ro"               # "rw", "ro" or "none"
    widths = [4]                # bytes of an access: some of 1, 2, 4 and 8

A rule has `access`, `widths` or both, and decides nothing else. `device` and `region` may hold
shell wildcards. A byte of a name that is not UTF-8 is \\xNN here.

Rule 1: pure, except for reading the file. `barfs.engine` enforces, `barfs.layout` shows.
Rule 2: a rule that matches nothing on the device it names is an error: better no mount than a
        register left open by a typo.
"""

import fnmatch
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

from barfs.errors import UsageError
from barfs.pci import CONFIG_INDEX, region_name
from barfs.ranges import Range, merge, overlay, parse_range
from barfs.text import unicode
from barfs.text.system_errors import reason
from barfs.widths import WIDTHS, AllowedWidths, Widths, widths_of

Permission = Literal["rw", "ro", "none"]

_PERMISSIONS: dict[str, Permission] = {"rw": "rw", "ro": "ro", "none": "none"}
_FIELDS = {"device", "region", "range", "access", "widths"}
_CONFIG = region_name(CONFIG_INDEX)
_LONGEST = 1 << 20
_WILDCARDS = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Restriction(Range):
    """A range of a region that may not be written (`ro`), or neither read nor written (`none`)."""

    permission: Literal["ro", "none"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One `[[rule]]`; without a `span` it covers the whole region. What is None it leaves alone."""

    permission: Permission | None
    device: str = "*"
    region: str = "*"
    span: Range | None = None
    widths: Widths | None = None

    def names_device(self, names: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(unicode(name), self.device) for name in names)


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Rules in their order; without a rule everything is permitted.

    >>> rule = {"region": "bar0", "range": "0x100+0x40", "access": "none"}
    >>> policy = AccessPolicy.from_toml({"rule": [rule]})
    >>> policy.restrictions(["0000:01:00.0"], {"bar0": 0x1000, "bar2": 0x1000})
    {'bar0': (Restriction(start=256, end=320, permission='none'),)}
    """

    rules: tuple[Rule, ...] = ()

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "AccessPolicy":
        """Read a file. Raises UsageError that names the file and what is wrong in it."""
        try:
            with open(path, "rb") as file:
                text = file.read(_LONGEST + 1)
            if len(text) > _LONGEST:
                raise UsageError(f"the file must have at most {_LONGEST} bytes")
            return cls.from_toml(tomllib.loads(text.decode()))
        except OSError as error:
            raise UsageError(f"policy {path}: {reason(error)}") from error
        except UnicodeDecodeError:
            raise UsageError(f"policy {path}: TOML must be UTF-8 text") from None
        except (UsageError, ValueError, RecursionError) as error:
            raise UsageError(f"policy {path}: {error}") from None

    @classmethod
    def from_toml(cls, table: Mapping[str, Any]) -> "AccessPolicy":
        """The policy of a parsed file. Raises UsageError."""
        rows = table.get("rule")
        if set(table) - {"rule"} or not isinstance(rows, list):
            raise UsageError("the file must hold [[rule]] tables and nothing else")
        return cls(tuple(_read_rule(f"rule {number}", row) for number, row in enumerate(rows, 1)))

    def restrictions(self, names: Sequence[str], sizes: Mapping[str, int]) -> "Restrictions":
        """The restrictions of each region of a device that is known by `names`.

        `sizes` are the sizes of its regions, in bytes. Raises UsageError for a rule that names
        a region that the device does not have, or a range that leaves its region.
        """
        rules = self._rules_for(names, sizes)
        return {
            region: found
            for region, size in sizes.items()
            if (found := _restricted(_rules_of(region, rules), size))
        }

    def widths(
        self, names: Sequence[str], sizes: Mapping[str, int]
    ) -> dict[str, tuple[AllowedWidths, ...]]:
        """The ranges of each region in which rules allow only some widths, in order and disjoint.

        Arguments and errors as for `restrictions`. Configuration space takes all widths, by the
        specification of PCI: only a rule whose `region` is that name has widths for it.
        """
        rules = [rule for rule in self._rules_for(names, sizes) if rule.widths is not None]
        found = {}
        for region, size in sizes.items():
            layers = (
                AllowedWidths(part.start, part.end, rule.widths or WIDTHS)
                for rule in _rules_of(region, rules)
                if region != _CONFIG or rule.region == _CONFIG
                for part in [_part(rule, size)]
            )
            found[region] = tuple(merge(overlay(layers)))
        return {region: parts for region, parts in found.items() if parts}

    def _rules_for(self, names: Sequence[str], sizes: Mapping[str, int]) -> list[Rule]:
        rules = [rule for rule in self.rules if rule.names_device(names)]
        for rule in rules:
            _check(rule, names, sizes)
        return rules


EVERYTHING = AccessPolicy()

Restrictions = dict[str, tuple[Restriction, ...]]
"""By region, in order, without overlap."""


def _read_rule(where: str, row: Any) -> Rule:
    if not isinstance(row, dict) or not all(
        isinstance(value, str) for name, value in row.items() if name != "widths"
    ):
        raise UsageError(f"{where}: every value must be a string, except widths")
    if unknown := set(row) - _FIELDS:
        raise UsageError(
            f"{where}: unknown {', '.join(sorted(unknown))}; there are {', '.join(sorted(_FIELDS))}"
        )
    permission = _PERMISSIONS.get(row.get("access", ""))
    if permission is None and ("access" in row or "widths" not in row):
        raise UsageError(f'{where}: access must be "rw", "ro" or "none"')
    try:
        span = parse_range(row["range"]) if "range" in row else None
        widths = _read_widths(row["widths"], span) if "widths" in row else None
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    return Rule(permission, row.get("device", "*"), row.get("region", "*"), span, widths)


def _read_widths(value: Any, span: Range | None) -> Widths:
    try:
        widths = widths_of(value if isinstance(value, list) else ())
    except ValueError:
        raise UsageError(
            f"widths must be a list of some of 1, 2, 4 and 8, like [4], not {value!r}"
        ) from None
    if span is not None and (span.start | span.end) % widths[0]:
        raise UsageError(
            f"the range {span.start:#x}-{span.end - 1:#x} must consist of whole, aligned accesses "
            f"of {widths[0]} bytes, the narrowest of its widths"
        )
    return widths


def _rules_of(region: str, rules: Sequence[Rule]) -> list[Rule]:
    return [rule for rule in rules if fnmatch.fnmatchcase(region, rule.region)]


def _check(rule: Rule, names: Sequence[str], sizes: Mapping[str, int]) -> None:
    if _WILDCARDS & set(rule.device):
        return
    regions = [region for region in sizes if fnmatch.fnmatchcase(region, rule.region)]
    if not regions:
        raise UsageError(f"policy: {names[0]} has no {rule.region}; it has {', '.join(sizes)}")
    if rule.span is None or any(rule.span.end <= sizes[region] for region in regions):
        return
    raise UsageError(
        f"policy: the range {rule.span.start:#x}-{rule.span.end - 1:#x} leaves {regions[0]} of "
        f"{names[0]}, which has {sizes[regions[0]]:#x} bytes"
    )


def _part(rule: Rule, size: int) -> Range:
    """The part of a region of `size` bytes that a rule covers."""
    region = Range(0, size)
    return (rule.span or region).overlap(region)


@dataclass(frozen=True, slots=True)
class _Painted(Range):
    permission: Permission


def _restricted(rules: Sequence[Rule], size: int) -> tuple[Restriction, ...]:
    """The restrictions of a region of `size` bytes under the rules, as few as possible."""
    parts = ((rule.permission, _part(rule, size)) for rule in rules)
    painted = overlay(
        _Painted(part.start, part.end, permission) for permission, part in parts if permission
    )
    return tuple(
        Restriction(part.start, part.end, part.permission)
        for part in merge(painted)
        if part.permission != "rw"
    )
