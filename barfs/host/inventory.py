# SPDX-License-Identifier: MIT
"""The PCI functions of a machine, and the obstacle between each of them and `barfs mount`.

Rule 1: reading only, with any privileges: what this user may not see is left out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from barfs.host.at_boot import AtBoot, at_boot
from barfs.host.device_nodes import MayOpen, first_closed, may_open
from barfs.host.in_use import dependents, openers
from barfs.host.iommu import group_awaits_driver
from barfs.host.pci_ids import Ids, Names, find_pci_ids, names_of
from barfs.host.sysfs import Machine
from barfs.pci import Bdf
from barfs.text import dump_json, printable


@dataclass(frozen=True, slots=True)
class Function:
    """A PCI function: ids and their names, driver, IOMMU group, device node, mount, obstacle.

    `at_boot` is what binds it at boot. `obstacle` is None if `barfs mount` should work, or the
    function is already mounted.
    """

    bdf: Bdf
    ids: Ids
    names: Names
    driver: str | None
    group: int | None
    device_node: Path | None
    at_boot: AtBoot | None
    mounted: Path | None
    obstacle: str | None

    def to_json(self) -> dict[str, object]:
        """Plain values: integers, strings, null."""
        return {
            "bdf": str(self.bdf),
            "vendor": self.ids.vendor,
            "vendor_name": self.names.vendor,
            "device": self.ids.device,
            "device_name": self.names.device,
            "class": self.ids.class_code,
            "class_name": self.names.class_,
            "driver": self.driver,
            "iommu_group": self.group,
            "node": None if self.device_node is None else str(self.device_node),
            "at_boot": None if self.at_boot is None else self.at_boot.to_json(),
            "mounted": None if self.mounted is None else str(self.mounted),
            "obstacle": self.obstacle,
        }


def functions(
    machine: Machine, mounted: Mapping[str, Path], may_open: MayOpen = may_open
) -> list[Function]:
    """All functions, in order. `mounted` has the mount points of devices by BDF."""
    ids = {bdf: _ids(machine, bdf) for bdf in machine.functions()}
    names = names_of(ids.values(), find_pci_ids(machine.usr))
    return [
        _function(machine, bdf, own, names[own], mounted.get(str(bdf)), may_open)
        for bdf, own in ids.items()
    ]


def _ids(machine: Machine, bdf: Bdf) -> Ids:
    return Ids(*(machine.attribute(bdf, name) for name in ("vendor", "device", "class")))


def _function(
    machine: Machine, bdf: Bdf, ids: Ids, names: Names, mounted: Path | None, may_open: MayOpen
) -> Function:
    device_nodes = machine.device_nodes(bdf)
    closed = [first_closed(machine, node, may_open) for node in device_nodes]
    usable = [node for node, obstacle in zip(device_nodes, closed, strict=True) if not obstacle]
    return Function(
        bdf,
        ids,
        names,
        machine.driver(bdf),
        machine.find_iommu_group(bdf),
        next(iter([*usable, *device_nodes]), None),
        at_boot(machine, bdf),
        mounted,
        None if mounted else _obstacle(machine, bdf, closed),
    )


def _obstacle(machine: Machine, bdf: Bdf, closed: list[Path | None]) -> str | None:
    """The first obstacle, in the order in which a user meets them.

    `closed` has, for each device node of the function, one that may not be opened for it.
    """
    group = machine.find_iommu_group(bdf)
    if machine.is_bridge(bdf):
        return "is a bridge"
    waits = group_awaits_driver(machine, bdf)
    if group is None and not waits and not machine.noiommu_allowed():
        return "has no IOMMU group"
    if not machine.is_vfio(bdf):
        losses = dependents(machine, bdf)
        state = machine.driver_state(bdf)
        return f"{state} and backs {', '.join(losses)}" if losses else state
    if not closed:
        return "has no VFIO device node"
    if group is not None and (blockers := machine.blockers(group)):
        member, foreign = blockers[0]
        return f"group {group} is not viable: {member} is bound to {foreign}"
    if None not in closed:
        return f"no permission to open {closed[0]}"
    users = openers(machine, bdf)
    return f"is in use by {users[0]}" if users else None


_HEADINGS = (
    "BDF",
    "ID",
    "CLASS",
    "DEVICE",
    "DRIVER",
    "GROUP",
    "NODE",
    "AT BOOT",
    "MOUNTED",
    "IN THE WAY",
)


def to_table(found: Iterable[Function]) -> str:
    """A heading and a line for each function, with `-` for what is absent."""
    rows = [_HEADINGS, *(_cells(function) for function in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)


def _cells(function: Function) -> tuple[str, ...]:
    ids, names = function.ids, function.names
    values = (
        function.driver,
        function.group,
        function.device_node,
        function.at_boot,
        function.mounted,
        function.obstacle,
    )
    return (
        str(function.bdf),
        f"{ids.vendor:04x}:{ids.device:04x}",
        f"{ids.class_code >> 8:04x} {printable(names.class_ or '')}".rstrip(),
        printable(" ".join(filter(None, (names.vendor, names.device))) or "-"),
        *("-" if value is None else printable(value) for value in values),
    )


def to_json(found: Iterable[Function]) -> str:
    return dump_json([function.to_json() for function in found], indent=2)
