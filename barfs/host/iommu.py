# SPDX-License-Identifier: MIT
"""Whether a machine has an IOMMU, and how it is enabled."""

from barfs.errors import DeviceError
from barfs.host.sysfs import Machine, read_text
from barfs.pci import Bdf

_OFF = ("iommu=off", "intel_iommu=off", "amd_iommu=off")


def require_iommu_group(machine: Machine, bdf: Bdf) -> int:
    """The number of a function's IOMMU group. Raises DeviceError, with the remedy, without one."""
    machine.require_pci_device(bdf)
    group = machine.find_iommu_group(bdf)
    if group is None:
        raise DeviceError(f"{bdf} has no IOMMU group; {without_group(machine)}")
    return group


def group_awaits_driver(machine: Machine, bdf: Bdf) -> bool:
    """Whether the function may get an IOMMU group when a driver probes it.

    Where the firmware describes the IOMMU by a device tree or by ACPI's IORT (Arm, RISC-V), kernels
    before 6.15 configure it for a function no earlier (`dma_configure` in drivers/base/dd.c).
    """
    return (
        machine.find_iommu_group(bdf) is None and machine.driver(bdf) is None and has_iommu(machine)
    )


def without_group(machine: Machine) -> str:
    """What to do about a function that has no IOMMU group."""
    if has_iommu(machine):
        return "the machine's IOMMU does not serve it; choose a device that it serves"
    return how_to_enable(machine)


def how_to_enable(machine: Machine) -> str:
    """What to do on a machine whose IOMMU is off."""
    tables = machine.sysfs / "firmware/acpi/tables"
    processor = read_text(machine.proc / "cpuinfo")
    words = read_text(machine.proc / "cmdline").split(" ")
    off = [word for word in words if word in _OFF]
    if off:
        return f"remove {' '.join(off)} from the kernel's command line and reboot"
    if (tables / "DMAR").exists():
        return "add intel_iommu=on to the kernel's command line and reboot"
    if "GenuineIntel" in processor:
        return "enable VT-d in the firmware, and boot with intel_iommu=on"
    if "AuthenticAMD" in processor:
        return "enable AMD-Vi (IOMMU) in the firmware; the kernel then uses it"
    if "CPU implementer" in processor:
        return "enable the SMMU in the firmware, or describe it in the device tree"
    return "enable it in the firmware (VT-d with intel_iommu=on, AMD-Vi, SMMU)"


def has_iommu(machine: Machine) -> bool:
    """Whether the kernel drives an IOMMU, even if no function has a group yet."""
    try:
        return any((machine.sysfs / "class/iommu").iterdir())
    except OSError:
        return False
