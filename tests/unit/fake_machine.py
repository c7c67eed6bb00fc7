# SPDX-License-Identifier: MIT
"""A simulated /sys, /dev and /proc below a folder, and a kernel that reacts to writes."""

import contextlib
from pathlib import Path

from barfs.host.executor import Executor
from barfs.host.steps import Load, Own, Remove, Save, Step, Write
from barfs.host.sysfs import Machine
from barfs.pci import Bdf

BDF = Bdf(0, 1, 0, 0)
OTHER = Bdf(0, 1, 0, 1)
PORT = Bdf(0, 0, 1, 0)

NIC = 0x020000
NVME = 0x010802
BRIDGE = 0x060400


class FakeMachine:
    """A tree with one IOMMU group, 12, and no driver but those that are added."""

    def __init__(self, root: Path) -> None:
        folders = ("sys", "dev", "proc", "etc", "run/barfs", "usr")
        self.machine = Machine(*(root / folder for folder in folders))
        for folder in ("dev/vfio", "sys/kernel/iommu_groups/12/devices", "proc/self", "proc/net"):
            (root / folder).mkdir(parents=True)
        (root / "run").mkdir()
        (root / "sys/bus/pci/drivers").mkdir(parents=True)
        (root / "proc/self/mountinfo").write_text("")

    def add(
        self, bdf: Bdf, driver: str | None, *, group: bool = True, class_code: int = NIC
    ) -> Path:
        """A function of vendor 1234 and device 11e8, and its driver."""
        sysfs = self.machine.sysfs
        device = self.machine.pci_device(bdf)
        device.mkdir(parents=True)
        ids = {"vendor": 0x1234, "device": 0x11E8, "class": class_code}
        for name, value in ids.items():
            (device / name).write_text(f"{value:#06x}\n")
        (device / "driver_override").write_text("(null)\n")
        (device / "config").write_bytes(bytes(64))
        if group:
            self.join_group(device)
        if driver is not None:
            self.add_driver(driver)
            (device / "driver").symlink_to(sysfs / "bus/pci/drivers" / driver)
        return device

    def join_group(self, device: Path) -> None:
        group = self.machine.sysfs / "kernel/iommu_groups/12"
        (device / "iommu_group").symlink_to(group)
        (group / "devices" / device.name).symlink_to(device)

    def add_iommu(self) -> None:
        """A System MMU, as Arm has it."""
        (self.machine.sysfs / "class/iommu/smmu3.0x0000000009050000").mkdir(parents=True)

    def add_driver(self, name: str) -> None:
        (self.machine.sysfs / "bus/pci/drivers" / name).mkdir(exist_ok=True)

    def add_vfio_nodes(self) -> None:
        """What vfio-pci makes for a member of the group that is bound to it."""
        for node in ("vfio", "12"):
            (self.machine.dev / "vfio" / node).touch()

    def child(self, parent: Path, name: str, subsystem: str) -> Path:
        """A device below another, listed in its class too."""
        folder = parent / subsystem / name
        folder.mkdir(parents=True)
        classes = self.machine.sysfs / "class" / subsystem
        classes.mkdir(parents=True, exist_ok=True)
        (folder / "subsystem").symlink_to(classes)
        (classes / name).symlink_to(folder)
        return folder

    def disk(self, parent: Path, name: str, number: str) -> Path:
        folder = self.child(parent, name, "block")
        (folder / "dev").write_text(f"{number}\n")
        return folder

    def mount(self, mountpoint: str, fstype: str, source: str, number: str = "0:9") -> None:
        with (self.machine.proc / "self/mountinfo").open("a") as file:
            file.write(f"22 1 {number} / {mountpoint} rw shared:1 - {fstype} {source} rw\n")

    def process(self, pid: int, name: str, opened: Path) -> None:
        folder = self.machine.proc / str(pid)
        (folder / "fd").mkdir(parents=True)
        (folder / "comm").write_text(f"{name}\n")
        (folder / "fd/3").symlink_to(opened)


class FakeKernel(Executor):
    """Reacts to steps as the PCI core and VFIO do.

    `refuses` are drivers that fail to probe, `modules` those that modprobe can load. With
    `groups_at_probe` a function gets its IOMMU group when a driver probes it.
    """

    def __init__(self, fake: FakeMachine) -> None:
        self.fake = fake
        self.ran: list[str] = []
        self.owners: list[Own] = []
        self.refuses: set[str] = set()
        self.modules = {"vfio-pci"}
        self.makes_nodes = True
        self.groups_at_probe = False
        self.root = True

    def permitted(self) -> bool:
        return self.root

    def run(self, step: Step) -> None:
        self.ran.append(str(step))
        match step:
            case Load(module):
                if module not in self.modules:
                    raise OSError(2, "no such module")
                self.fake.add_driver(module)
            case Write(path, text):
                self._write(path, text)
            case Own():
                self.owners.append(step)
            case Save() | Remove():
                super().run(step)

    def _write(self, path: Path, text: str) -> None:
        if path.name == "driver_override":
            path.write_text(f"{text or '(null)'}\n")
            return
        device = self.fake.machine.pci_device(Bdf.parse(text))
        if path.name == "unbind":
            if not (device / "driver").exists():
                raise OSError(19, "No such device")
            (device / "driver").unlink()
            with contextlib.suppress(FileNotFoundError):
                (device / "vfio-dev").rmdir()
            (self.fake.machine.dev / "vfio/12").unlink(missing_ok=True)
        elif path.name == "drivers_probe":
            self._probe(device)
        else:
            raise FileNotFoundError(2, "No such file or directory", str(path))

    def _probe(self, device: Path) -> None:
        machine = self.fake.machine
        driver = machine.override(Bdf.parse(device.name)) or "native"
        if not machine.has_driver(driver):
            return
        if driver in self.refuses:
            raise OSError(22, "Invalid argument")
        if self.groups_at_probe and not (device / "iommu_group").exists():
            self.fake.join_group(device)
        if "vfio" in driver and not (device / "iommu_group").exists():
            return  # vfio_group_find_or_alloc() has failed, which the PCI core only logs
        (device / "driver").symlink_to(machine.sysfs / "bus/pci/drivers" / driver)
        if "vfio" in driver and self.makes_nodes:
            (device / "vfio-dev").mkdir()
            self.fake.add_vfio_nodes()
