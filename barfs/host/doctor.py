# SPDX-License-Identifier: MIT
"""What `barfs mount` needs, one precondition after the other, and what to do where one is missing.

Rule 1: reading only, and it works without rights; who asks is who wants to mount.
Rule 2: a FAIL says what to do; what only some mounts need is a note.
"""

import pwd
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from barfs.host.in_use import dependents, openers
from barfs.host.inventory import accessible
from barfs.host.programs import find_program
from barfs.host.sysfs import Machine, read_lines, read_text
from barfs.pci import Bdf

Level = Literal["ok", "FAIL", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A precondition: whether it holds, and otherwise what to do."""

    level: Level
    text: str

    def __str__(self) -> str:
        return f"{self.level:<5} {self.text}"


class Doctor:
    """Looks at a machine for the user `uid`; `mounted` are mount points of devices by BDF."""

    def __init__(
        self,
        machine: Machine,
        uid: int,
        mounted: Mapping[str, Path],
        may_open: Callable[[Path], bool] = accessible,
    ) -> None:
        self._machine = machine
        self._uid = uid
        self._mounted = mounted
        self._may_open = may_open

    def examine(self, bdf: Bdf | None = None) -> list[Finding]:
        """The machine and one function; without a function, every one that VFIO has."""
        return [*self._machine_wide(), *self._functions(bdf), *self._fuse()]

    def _machine_wide(self) -> Iterator[Finding]:
        yield self._iommu()
        if self._machine.has_driver("vfio-pci"):
            yield Finding("ok", "vfio-pci: loaded, or built in")
        else:
            yield Finding(
                "FAIL",
                "vfio-pci is not loaded: modprobe vfio-pci, as root (barfs bind does it too)",
            )
        container = self._machine.dev / "vfio/vfio"
        if container.exists():
            yield self._node(container, f"chmod 666 {container}, as root")
        elif (self._machine.dev / "iommu").exists():
            yield Finding("note", f"{container} does not exist: only iommufd can be used")
        else:
            yield Finding("FAIL", f"{container} does not exist: modprobe vfio-pci, as root")
        yield Finding("ok", "memory lock limit: not needed, no memory is given to devices")

    def _iommu(self) -> Finding:
        groups = self._machine.iommu_groups()
        if groups:
            return Finding("ok", f"IOMMU: on, {len(groups)} groups")
        if self._machine.noiommu_allowed():
            return Finding("note", "IOMMU: off; VFIO takes devices without it, for -o vfio=noiommu")
        return Finding("FAIL", f"IOMMU: off: {self._how_to_switch_on()}")

    def _how_to_switch_on(self) -> str:
        tables = self._machine.sysfs / "firmware/acpi/tables"
        processor = read_text(self._machine.proc / "cpuinfo")
        words = read_text(self._machine.proc / "cmdline").split(" ")
        off = [word for word in words if word in ("iommu=off", "intel_iommu=off", "amd_iommu=off")]
        if off:
            return f"take {' '.join(off)} off the kernel's command line and boot again"
        if (tables / "DMAR").exists():
            return "boot with intel_iommu=on on the kernel's command line"
        if "GenuineIntel" in processor:
            return "switch VT-d on in the firmware, and boot with intel_iommu=on"
        if "AuthenticAMD" in processor:
            return "switch AMD-Vi (IOMMU) on in the firmware; the kernel then uses it"
        return "switch it on in the firmware (VT-d with intel_iommu=on, AMD-Vi, SMMU)"

    def _functions(self, bdf: Bdf | None) -> Iterator[Finding]:
        if bdf is not None:
            yield from self._function(bdf)
            return
        bound = list(filter(self._machine.is_vfio, self._machine.functions()))
        if not bound:
            yield Finding("note", "no device is bound to VFIO; barfs list, then barfs bind BDF")
        for function in bound:
            yield from self._function(function)

    def _function(self, bdf: Bdf) -> Iterator[Finding]:
        if not self._machine.pci_device(bdf).is_dir():
            yield Finding("FAIL", f"{bdf}: no such PCI device: barfs list shows those there are")
            return
        if self._machine.is_bridge(bdf):
            yield Finding("FAIL", f"{bdf} is a bridge: VFIO takes the devices behind it, not it")
            return
        group = self._machine.find_iommu_group(bdf)
        if group is not None:
            yield Finding("ok", f"{bdf}: in IOMMU group {group}")
        elif not self._machine.noiommu_allowed():
            yield Finding("FAIL", f"{bdf} has no IOMMU group: {self._how_to_switch_on()}")
        yield self._binding(bdf)
        if group is not None:
            yield from self._viability(bdf, group)
        if self._machine.is_vfio(bdf):
            yield from self._access(bdf)

    def _binding(self, bdf: Bdf) -> Finding:
        driver = self._machine.driver(bdf)
        if self._machine.is_vfio(bdf):
            return Finding("ok", f"{bdf}: bound to {driver}")
        losses = dependents(self._machine, bdf)
        state = f"is bound to {driver}" if driver else "has no driver"
        if losses:
            return Finding(
                "FAIL",
                f"{bdf} {state} and carries {', '.join(losses)}: the system needs it; choose "
                "another device, or free it first",
            )
        return Finding("FAIL", f"{bdf} {state}: {self._bind_command(bdf)}")

    def _bind_command(self, bdf: Bdf | str) -> str:
        sudo = "sudo " if self._uid else ""
        return f"{sudo}barfs bind {bdf}{self._for_user()}"

    def _for_user(self) -> str:
        if self._uid == 0:
            return ""
        try:
            return f" --user {pwd.getpwuid(self._uid).pw_name}"
        except KeyError:
            return f" --user {self._uid}"

    def _viability(self, bdf: Bdf, group: int) -> Iterator[Finding]:
        blockers = [pair for pair in self._machine.blockers(group) if pair[0] != str(bdf)]
        for member, driver in blockers:
            yield Finding(
                "FAIL",
                f"group {group} is not viable: {member} is bound to {driver}: "
                f"{self._bind_command(member)}",
            )
        if not blockers:
            yield Finding("ok", f"group {group}: no member is in the way")

    def _access(self, bdf: Bdf) -> Iterator[Finding]:
        cdev, group = self._machine.find_cdev(bdf), self._machine.find_group_device_node(bdf)
        iommu = self._machine.dev / "iommu"
        if cdev is None and group is None:
            yield Finding("FAIL", f"{bdf} has no node in /dev/vfio: modprobe vfio, as root")
            return
        cdev_works = cdev is not None and self._may_open(cdev) and self._may_open(iommu)
        if cdev is not None and cdev_works:
            yield Finding("ok", f"{cdev} and {iommu}: yours to read and write")
        elif cdev is not None:
            closed = cdev if not self._may_open(cdev) else iommu
            yield Finding("note", f"{closed} is not yours to read and write: the group is used")
        if group is not None and (not cdev_works or self._may_open(group)):
            yield self._node(group, self._bind_command(bdf))
        yield self._use(bdf)

    def _node(self, node: Path, remedy: str) -> Finding:
        if self._may_open(node):
            return Finding("ok", f"{node}: yours to read and write")
        return Finding("FAIL", f"{node} is not yours to read and write: {remedy}")

    def _use(self, bdf: Bdf) -> Finding:
        mounted = self._mounted.get(str(bdf))
        if mounted is not None:
            return Finding("ok", f"{bdf}: mounted on {mounted}")
        users = openers(self._machine, bdf)
        if users:
            return Finding("FAIL", f"{bdf} is in use by {', '.join(users)}: end it first")
        return Finding("ok", f"{bdf}: not seen in use by anybody")

    def _fuse(self) -> Iterator[Finding]:
        fuse = self._machine.dev / "fuse"
        if fuse.exists():
            yield self._node(fuse, f"chmod 666 {fuse}, as root")
        else:
            yield Finding("FAIL", f"{fuse} does not exist: modprobe fuse, as root")
        yield self._helper()
        lines = read_lines(self._machine.etc / "fuse.conf")
        if b"user_allow_other" in map(bytes.strip, lines):
            yield Finding("ok", "user_allow_other: set, so -o allow_other works for everybody")
        else:
            yield Finding(
                "note",
                f"user_allow_other is not in {self._machine.etc}/fuse.conf: only root may mount "
                "with -o allow_other",
            )

    def _helper(self) -> Finding:
        program = find_program("fusermount3")
        if program is None:
            return Finding("FAIL", "fusermount3 is not installed: apt install fuse3")
        helper = Path(program)
        if self._uid != 0 and not helper.stat().st_mode & stat.S_ISUID:
            return Finding("FAIL", f"{helper} is not set-user-id: chmod u+s {helper}, as root")
        return Finding("ok", f"{helper}: installed")
