# SPDX-License-Identifier: MIT
"""What the kernel shows of PCI functions, their drivers and IOMMU groups, in /sys and /dev.

Rule 1: reading only; nothing here changes the machine.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from barfs.errors import DeviceError, UsageError
from barfs.pci import Bdf, ConfigSpace

# Drivers beside which the kernel still calls a group viable (`vfio_main.c`, and
# `driver_managed_dma` of port drivers).
_HARMLESS_DRIVERS = frozenset({"pcieport", "pci-stub", "vfio-pci"})

_NO_OVERRIDE = "(null)"
_NOIOMMU_GROUP = "vfio-noiommu"


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the kernel shows its devices; tests point it elsewhere."""

    sysfs: Path = Path("/sys")
    dev: Path = Path("/dev")
    proc: Path = Path("/proc")
    etc: Path = Path("/etc")
    run: Path = Path("/run/barfs")

    def functions(self) -> list[Bdf]:
        """All PCI functions, in order."""
        found = []
        for name in _names(self.sysfs / "bus/pci/devices"):
            with contextlib.suppress(UsageError):
                found.append(Bdf.parse(name))
        return sorted(found)

    def attribute(self, bdf: Bdf, name: str) -> int:
        """A number that sysfs shows of a function: `vendor`, `device`, `class`; 0 where none is."""
        text = read_text(self.pci_device(bdf) / name)
        return int(text, 16) if text else 0

    def is_bridge(self, bdf: Bdf) -> bool:
        """Whether the function leads to others: by its class, or by its header."""
        try:
            header = (self.pci_device(bdf) / "config").read_bytes()[:64]
        except OSError:
            header = b""
        return self.attribute(bdf, "class") >> 16 == 0x06 or ConfigSpace(header).header_type != 0

    def pci_device(self, bdf: Bdf) -> Path:
        return self.sysfs / "bus/pci/devices" / str(bdf)

    def driver(self, bdf: Bdf) -> str | None:
        """The name of the driver that the function is bound to."""
        return _link_name(self.pci_device(bdf) / "driver")

    def override(self, bdf: Bdf) -> str | None:
        """The only driver that the function may be bound to, None where any may."""
        text = read_text(self.pci_device(bdf) / "driver_override")
        return None if text in ("", _NO_OVERRIDE) else text

    def has_driver(self, name: str) -> bool:
        """Whether the kernel has this PCI driver, built in or loaded."""
        return (self.sysfs / "bus/pci/drivers" / name).is_dir()

    def is_vfio(self, bdf: Bdf) -> bool:
        """Whether the function is bound to a VFIO driver, vfio-pci or a variant."""
        return self.driver(bdf) == "vfio-pci" or (self.pci_device(bdf) / "vfio-dev").is_dir()

    def noiommu_allowed(self) -> bool:
        """Whether VFIO takes devices without an IOMMU."""
        parameter = self.sysfs / "module/vfio/parameters/enable_unsafe_noiommu_mode"
        return read_text(parameter) == "Y"

    def iommu_groups(self) -> list[int]:
        """The numbers of the groups that an IOMMU made (VFIO makes others without one)."""
        groups = self.sysfs / "kernel/iommu_groups"
        return [
            int(name)
            for name in _names(groups)
            if name.isdecimal() and read_text(groups / name / "name") != _NOIOMMU_GROUP
        ]

    def find_iommu_group(self, bdf: Bdf) -> int | None:
        """The number of the function's IOMMU group, None where it has none."""
        name = _link_name(self.pci_device(bdf) / "iommu_group")
        return None if name is None else int(name)

    def find_cdev(self, bdf: Bdf) -> Path | None:
        """The function's own VFIO node, which needs iommufd; None where the kernel has none."""
        for name in _names(self.pci_device(bdf) / "vfio-dev"):
            node = self.dev / "vfio/devices" / name
            if node.exists():
                return node
        return None

    def find_group_device_node(self, bdf: Bdf) -> Path | None:
        """The VFIO node of the function's group, `noiommu-N` without an IOMMU, if it is there."""
        group = self.find_iommu_group(bdf)
        if group is None or not self.is_vfio(bdf):
            return None
        for name in (str(group), f"noiommu-{group}"):
            if (self.dev / "vfio" / name).exists():
                return self.dev / "vfio" / name
        return None

    def device_nodes(self, bdf: Bdf) -> list[Path]:
        """The nodes through which VFIO gives access to the function, the best first."""
        return [
            node
            for node in (self.find_cdev(bdf), self.find_group_device_node(bdf))
            if node is not None
        ]

    def has_device_nodes(self, bdf: Bdf) -> bool:
        """Whether every node that the kernel has announced for the function is there."""
        announced = any((self.pci_device(bdf) / "vfio-dev").glob("*/dev"))
        if announced and self.find_cdev(bdf) is None:
            return False
        return bool(self.device_nodes(bdf))

    def require_iommu_group(self, bdf: Bdf) -> int:
        """The number of the function's IOMMU group. Raises DeviceError where there is none."""
        device = self.pci_device(bdf)
        if not device.is_dir():
            raise DeviceError(f"{bdf}: no such PCI device; lspci -D lists the devices there are")
        name = _link_name(device / "iommu_group")
        if name is None:
            raise DeviceError(
                f"{bdf} has no IOMMU group; switch the IOMMU on in the firmware (VT-d, AMD-Vi) and "
                "boot with intel_iommu=on"
            )
        return int(name)

    def blockers(self, group: int) -> list[tuple[str, str]]:
        """The members of a group, and their drivers, that keep it from being viable."""
        members = self.sysfs / "kernel/iommu_groups" / str(group) / "devices"
        found = []
        for member in (members / name for name in _names(members)):
            driver = _link_name(member / "driver")
            if driver is None or driver in _HARMLESS_DRIVERS or (member / "vfio-dev").is_dir():
                continue
            found.append((member.name, driver))
        return found

    def bind_commands(self, bdf: Bdf) -> str:
        """The shell commands that give a function to vfio-pci, as one line."""
        device = self.pci_device(bdf)
        return (
            f"echo vfio-pci > {device}/driver_override; "
            f"echo {bdf} > {device}/driver/unbind; "
            f"echo {bdf} > {self.sysfs}/bus/pci/drivers_probe"
        )


def read_bytes(file: Path) -> bytes:
    """What a small file of the kernel says; empty where it says nothing."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


def read_text(file: Path) -> str:
    """The same, stripped, as names of files are decoded."""
    return os.fsdecode(read_bytes(file).strip(b"\0\n "))


def read_lines(file: Path) -> list[bytes]:
    """The lines of a file of the kernel: only a newline ends one."""
    return read_bytes(file).rstrip(b"\n").split(b"\n")


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _link_name(link: Path) -> str | None:
    try:
        return link.readlink().name
    except OSError:
        return None
