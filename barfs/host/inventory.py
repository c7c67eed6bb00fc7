# SPDX-License-Identifier: MIT
"""The PCI functions of a machine and what stands between each of them and `barfs mount`.

Rule 1: reading only, and with whatever rights there are: what may not be seen is left out.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

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


def accessible(node: Path) -> bool:
    """Whether this process may open a node for reading and writing."""
    return os.access(node, os.R_OK | os.W_OK, effective_ids=True)


@dataclass(frozen=True, slots=True)
class Function:
    """A PCI function: ids, class (24 bits), driver, IOMMU group, VFIO node, mount, obstacle.

    `obstacle` is None where `barfs mount` should work, or the function is mounted already.
    """

    bdf: Bdf
    vendor: int
    device: int
    class_code: int
    driver: str | None
    group: int | None
    node: Path | None
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
            "node": None if self.node is None else str(self.node),
            "mounted": None if self.mounted is None else str(self.mounted),
            "obstacle": self.obstacle,
        }


def functions(
    machine: Machine, mounted: Mapping[str, Path], may_open: Callable[[Path], bool] = accessible
) -> list[Function]:
    """All functions, in order. `mounted` are the mount points of devices by BDF."""
    return [_function(machine, bdf, mounted.get(str(bdf)), may_open) for bdf in machine.functions()]


def _function(
    machine: Machine, bdf: Bdf, mounted: Path | None, may_open: Callable[[Path], bool]
) -> Function:
    usable = [node for node in machine.device_nodes(bdf) if may_open(node)]
    return Function(
        bdf,
        machine.attribute(bdf, "vendor"),
        machine.attribute(bdf, "device"),
        machine.attribute(bdf, "class"),
        machine.driver(bdf),
        machine.find_iommu_group(bdf),
        next(iter([*usable, *machine.device_nodes(bdf)]), None),
        mounted,
        None if mounted else _obstacle(machine, bdf, usable),
    )


def _obstacle(machine: Machine, bdf: Bdf, usable: list[Path]) -> str | None:
    """The first thing in the way, in the order in which a user meets them."""
    driver, group = machine.driver(bdf), machine.find_iommu_group(bdf)
    if machine.is_bridge(bdf):
        return "a bridge"
    if group is None and not machine.noiommu_allowed():
        return "no IOMMU group"
    if not machine.is_vfio(bdf):
        losses = dependents(machine, bdf)
        state = f"bound to {driver}" if driver else "no driver"
        return f"{state}, carries {', '.join(losses)}" if losses else state
    nodes = machine.device_nodes(bdf)
    if not nodes:
        return "no VFIO node"
    if group is not None and (blockers := machine.blockers(group)):
        member, foreign = blockers[0]
        return f"group not viable: {member} is bound to {foreign}"
    if not usable:
        return f"{nodes[0]} is not yours"
    users = openers(machine, bdf)
    return f"in use by {users[0]}" if users else None


_HEADINGS = ("BDF", "ID", "CLASS", "DRIVER", "GROUP", "NODE", "MOUNTED", "IN THE WAY")


def to_table(found: Iterable[Function]) -> str:
    """One line each below a heading, `-` where there is nothing."""
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
        function.node,
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
