# SPDX-License-Identifier: MIT
"""What the kernel shows of PCI functions, their drivers and IOMMU groups, in /sys and /dev.

Rule 1: reading only; nothing here changes the machine.
"""

from dataclasses import dataclass
from pathlib import Path

from barfs.errors import DeviceError
from barfs.pci import Bdf

# Drivers beside which the kernel still calls a group viable (`vfio_main.c`, and
# `driver_managed_dma` of port drivers).
_HARMLESS_DRIVERS = frozenset({"pcieport", "pci-stub", "vfio-pci"})


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the kernel shows its devices; tests point it elsewhere."""

    sysfs: Path = Path("/sys")
    dev: Path = Path("/dev")

    def pci_device(self, bdf: Bdf) -> Path:
        return self.sysfs / "bus/pci/devices" / str(bdf)

    def driver(self, bdf: Bdf) -> str | None:
        """The name of the driver that the function is bound to."""
        return _link_name(self.pci_device(bdf) / "driver")

    def iommu_group(self, bdf: Bdf) -> int:
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
        for member in sorted(members.iterdir()):
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


def _link_name(link: Path) -> str | None:
    try:
        return link.readlink().name
    except OSError:
        return None
