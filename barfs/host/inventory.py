# SPDX-License-Identifier: MIT
"""The PCI functions of a machine, and the obstacle between each of them and `barfs mount`.

Rule 1: reading only, with any privileges: what this user may not see is left out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from barfs.host.device_nodes import MayOpen, first_closed, may_open
from barfs.host.in_use import dependents, openers
from barfs.host.sysfs import Machine
from barfs.pci import Bdf
from barfs.text import dump_json, printable

# PCI Code and ID Assignment Specification: base classes.
_CLASSES = {
    0x01: "storage",
    0x02: "network",
    0x03: "display",
    0x04: "multimedia",
    0x05: "memory",
    0x06: "bridge",
    0x07: "communication",
    0x08: "system",
    0x09: "input",
    0x0B: "processor",
    0x0C: "serial bus",
    0x0D: "wireless",
    0x10: "encryption",
    0x11: "signal processing",
    0x12: "accelerator",
}


@dataclass(frozen=True, slots=True)
class Function:
    """A PCI function: ids, class (24 bits), driver, IOMMU group, device node, mount, obstacle.

    `obstacle` is None if `barfs mount` should work, or the function is already mounted.
    """

    bdf: Bdf
    vendor: int
    device: int
    class_code: int
    driver: str | None
    group: int | None
    device_node: Path | None
    mounted: Path | None
    obstacle: str | None

    @property
    def class_name(self) -> str:
        return _CLASSES.get(self.class_code >> 16, "")

    def to_json(self) -> dict[str, object]:
        """Plain values: integers, strings, null."""
        return {
            "bdf": str(self.bdf),
            "vendor": self.vendor,
            "device": self.device,
            "class": self.class_code,
            "driver": self.driver,
            "iommu_group": self.group,
            "node": None if self.device_node is None else str(self.device_node),
            "mounted": None if self.mounted is None else str(self.mounted),
            "obstacle": self.obstacle,
        }


def functions(
    machine: Machine, mounted: Mapping[str, Path], may_open: MayOpen = may_open
) -> list[Function]:
    """All functions, in order. `mounted` has the mount points of devices by BDF."""
    return [_function(machine, bdf, mounted.get(str(bdf)), may_open) for bdf in machine.functions()]


def _function(machine: Machine, bdf: Bdf, mounted: Path | None, may_open: MayOpen) -> Function:
    device_nodes = machine.device_nodes(bdf)
    closed = [first_closed(machine, node, may_open) for node in device_nodes]
    usable = [node for node, obstacle in zip(device_nodes, closed, strict=True) if not obstacle]
    return Function(
        bdf,
        machine.attribute(bdf, "vendor"),
        machine.attribute(bdf, "device"),
        machine.attribute(bdf, "class"),
        machine.driver(bdf),
        machine.find_iommu_group(bdf),
        next(iter([*usable, *device_nodes]), None),
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
    if group is None and not machine.noiommu_allowed():
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


_HEADINGS = ("BDF", "ID", "CLASS", "DRIVER", "GROUP", "NODE", "MOUNTED", "IN THE WAY")


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
    values = (
        function.driver,
        function.group,
        function.device_node,
        function.mounted,
        function.obstacle,
    )
    return (
        str(function.bdf),
        f"{function.vendor:04x}:{function.device:04x}",
        f"{function.class_code >> 8:04x} {function.class_name}".rstrip(),
        *("-" if value is None else printable(value) for value in values),
    )


def to_json(found: Iterable[Function]) -> str:
    return dump_json([function.to_json() for function in found], indent=2)
