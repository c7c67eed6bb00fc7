# SPDX-License-Identifier: MIT
"""PCI functions, their drivers and their IOMMU groups, as /sys and /dev show them.

Rule 1: reading only; nothing here changes the machine.
Rule 2: `find_` returns None for what is absent, `require_` raises an error that says what to do.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from barfs.errors import DeviceError, UsageError
from barfs.pci import Bdf, ConfigSpace

# Drivers that leave a group viable (`vfio_main.c`, and `driver_managed_dma` of port drivers).
_HARMLESS_DRIVERS = frozenset({"pcieport", "pci-stub", "vfio-pci"})

_NO_OVERRIDE = "(null)"
_NOIOMMU_GROUP = "vfio-noiommu"


@dataclass(frozen=True, slots=True)
class Machine:
    """The directories in which the kernel shows its devices; tests point them elsewhere."""

    sysfs: Path = Path("/sys")
    dev: Path = Path("/dev")
    proc: Path = Path("/proc")
    etc: Path = Path("/etc")
    run: Path = Path("/run/barfs")
    usr: Path = Path("/usr")

    @property
    def container(self) -> Path:
        """The device node of VFIO's containers, which every group needs."""
        return self.dev / "vfio/vfio"

    @property
    def iommufd(self) -> Path:
        """The device node of iommufd, which every character device of VFIO needs."""
        return self.dev / "iommu"

    @property
    def noiommu_parameter(self) -> Path:
        """The module parameter that lets VFIO take devices without an IOMMU."""
        return self.sysfs / "module/vfio/parameters/enable_unsafe_noiommu_mode"

    def functions(self) -> list[Bdf]:
        """All PCI functions, in order."""
        found = []
        for name in _names(self.sysfs / "bus/pci/devices"):
            with contextlib.suppress(UsageError):
                found.append(Bdf.parse(name))
        return sorted(found)

    def attribute(self, bdf: Bdf, name: str) -> int:
        """A number in sysfs, such as `vendor`, `device` or `class`; 0 if it is absent."""
        text = read_text(self.pci_device(bdf) / name)
        return int(text, 16) if text else 0

    def is_bridge(self, bdf: Bdf) -> bool:
        """Whether the function is a bridge, by its class or by its header."""
        try:
            header = (self.pci_device(bdf) / "config").read_bytes()[:64]
        except OSError:
            header = b""
        return self.attribute(bdf, "class") >> 16 == 0x06 or ConfigSpace(header).header_type != 0

    def pci_device(self, bdf: Bdf) -> Path:
        return self.sysfs / "bus/pci/devices" / str(bdf)

    def require_pci_device(self, bdf: Bdf) -> Path:
        """The directory of a function. Raises DeviceError if there is no such function."""
        device = self.pci_device(bdf)
        if not device.is_dir():
            raise DeviceError(f"{bdf}: no such PCI device; barfs list shows those present")
        return device

    def find_slot(self, bdf: Bdf) -> str | None:
        """The name of the physical slot that the function is in, None if the kernel knows none."""
        slots = self.sysfs / "bus/pci/slots"
        address = str(bdf).partition(".")[0]
        return next((n for n in _names(slots) if read_text(slots / n / "address") == address), None)

    def driver(self, bdf: Bdf) -> str | None:
        """The name of the driver that the function is bound to."""
        return _link_name(self.pci_device(bdf) / "driver")

    def driver_state(self, bdf: Bdf) -> str:
        """`is bound to nvme`, or `has no driver`."""
        driver = self.driver(bdf)
        return f"is bound to {driver}" if driver else "has no driver"

    def override(self, bdf: Bdf) -> str | None:
        """The only driver that the function may be bound to, None if any may."""
        text = read_text(self.pci_device(bdf) / "driver_override")
        return None if text in ("", _NO_OVERRIDE) else text

    def has_driver(self, name: str) -> bool:
        """Whether this PCI driver is built in or loaded."""
        return (self.sysfs / "bus/pci/drivers" / name).is_dir()

    def is_vfio(self, bdf: Bdf) -> bool:
        """Whether the function is bound to a VFIO driver, vfio-pci or a variant."""
        return self.driver(bdf) == "vfio-pci" or (self.pci_device(bdf) / "vfio-dev").is_dir()

    def noiommu_allowed(self) -> bool:
        """Whether VFIO takes devices without an IOMMU."""
        return read_text(self.noiommu_parameter) == "Y"

    def iommu_groups(self) -> list[int]:
        """The numbers of the groups behind an IOMMU, without those that noiommu mode makes."""
        groups = self.sysfs / "kernel/iommu_groups"
        return [
            int(name)
            for name in _names(groups)
            if name.isdecimal() and read_text(groups / name / "name") != _NOIOMMU_GROUP
        ]

    def find_iommu_group(self, bdf: Bdf) -> int | None:
        """The number of the function's IOMMU group, None if it has none."""
        name = _link_name(self.pci_device(bdf) / "iommu_group")
        return None if name is None else int(name)

    def find_cdev(self, bdf: Bdf) -> Path | None:
        """The function's own VFIO character device, None if the kernel offers none."""
        for name in _names(self.pci_device(bdf) / "vfio-dev"):
            cdev = self.dev / "vfio/devices" / name
            if cdev.exists():
                return cdev
        return None

    def group_device_node(self, group: int, *, noiommu: bool = False) -> Path:
        """The device node of a group, which may not exist."""
        return self.dev / "vfio" / (f"noiommu-{group}" if noiommu else str(group))

    def find_group_device_node(self, bdf: Bdf) -> Path | None:
        """The existing device node of the function's group, with or without an IOMMU."""
        group = self.find_iommu_group(bdf)
        if group is None or not self.is_vfio(bdf):
            return None
        nodes = [self.group_device_node(group, noiommu=noiommu) for noiommu in (False, True)]
        return next(filter(Path.exists, nodes), None)

    def device_nodes(self, bdf: Bdf) -> list[Path]:
        """The device nodes through which VFIO gives access to the function, the best first."""
        return [
            node
            for node in (self.find_cdev(bdf), self.find_group_device_node(bdf))
            if node is not None
        ]

    def has_device_nodes(self, bdf: Bdf) -> bool:
        """Whether udev has made every device node that the kernel announced for the function."""
        announced = any((self.pci_device(bdf) / "vfio-dev").glob("*/dev"))
        if announced and self.find_cdev(bdf) is None:
            return False
        return bool(self.device_nodes(bdf))

    def endpoints(self, group: int) -> list[Bdf]:
        """The members of a group that VFIO can take, in order: all but bridges."""
        return [bdf for bdf in self.members(group) if not self.is_bridge(bdf)]

    def members(self, group: int) -> list[Bdf]:
        """The functions in an IOMMU group, in order."""
        names = _names(self.sysfs / "kernel/iommu_groups" / str(group) / "devices")
        found = []
        for name in names:
            with contextlib.suppress(UsageError):  # a group may hold devices that are not PCI
                found.append(Bdf.parse(name))
        return sorted(found)

    def blockers(self, group: int) -> list[tuple[str, str]]:
        """The members whose host drivers keep a group from being viable: (member, driver)."""
        members = self.sysfs / "kernel/iommu_groups" / str(group) / "devices"
        found = []
        for member in (members / name for name in _names(members)):
            driver = _link_name(member / "driver")
            if driver is None or driver in _HARMLESS_DRIVERS or (member / "vfio-dev").is_dir():
                continue
            found.append((member.name, driver))
        return found


def read_bytes(file: Path) -> bytes:
    """The content of a small file of the kernel; empty if it cannot be read."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


def read_text(file: Path) -> str:
    """The same, stripped and decoded like the name of a file."""
    return os.fsdecode(read_bytes(file).strip(b"\0\n "))


def read_lines(file: Path) -> list[bytes]:
    """The lines of a file of the kernel, in which only a newline ends a line."""
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
