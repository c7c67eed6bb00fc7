# SPDX-License-Identifier: MIT
"""The preconditions of `barfs mount`, one by one, and what to do about each that is not met.

Rule 1: reading only, without any privilege: the user who asks is the one who wants to mount.
Rule 2: a FAIL says what to do; a precondition of only some mounts is a note.
"""

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from barfs.host import apparmor
from barfs.host.advice import bind_command, unblock_command
from barfs.host.device_nodes import MayOpen, cdev_usable, first_closed, may_open
from barfs.host.in_use import dependents, openers
from barfs.host.iommu import group_awaits_driver, has_iommu, how_to_enable, without_group
from barfs.host.programs import find_program
from barfs.host.sysfs import Machine, read_lines
from barfs.pci import Bdf

Level = Literal["ok", "FAIL", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A precondition: whether it is met, and otherwise what to do."""

    level: Level
    text: str

    def __str__(self) -> str:
        return f"{self.level:<5} {self.text}"


class Doctor:
    """Examines a machine for user `uid`; `mounted` has the mount points of devices by BDF."""

    def __init__(
        self,
        machine: Machine,
        uid: int,
        mounted: Mapping[str, Path],
        may_open: MayOpen = may_open,
    ) -> None:
        self._machine = machine
        self._uid = uid
        self._mounted = mounted
        self._may_open = may_open

    def examine(self, bdf: Bdf | None = None) -> list[Finding]:
        """Examine the machine and one function, or every function that is bound to VFIO."""
        return [*self._machine_wide(), *self._functions(bdf), *self._fuse()]

    def _machine_wide(self) -> Iterator[Finding]:
        yield self._iommu()
        if self._machine.has_driver("vfio-pci"):
            yield Finding("ok", "vfio-pci: loaded, or built in")
        else:
            yield Finding(
                "FAIL",
                "vfio-pci is not loaded: modprobe vfio-pci, as root (barfs bind also does it)",
            )
        container = self._machine.container
        if container.exists():
            yield self._device_node(container, f"chmod 666 {container}, as root")
        elif self._machine.iommufd.exists():
            yield Finding("note", f"{container} does not exist: barfs can use only iommufd")
        else:
            yield Finding("FAIL", f"{container} does not exist: modprobe vfio-pci, as root")
        yield Finding("ok", "memory lock limit: irrelevant, barfs gives no memory to devices")

    def _iommu(self) -> Finding:
        groups = self._machine.iommu_groups()
        if groups:
            return Finding("ok", f"IOMMU: on, {len(groups)} groups")
        if has_iommu(self._machine):
            return Finding("ok", "IOMMU: on; a function gets its group when a driver is bound")
        if self._machine.noiommu_allowed():
            return Finding(
                "note", "IOMMU: off; devices can be used without it, with -o vfio=noiommu"
            )
        return Finding("FAIL", f"IOMMU: off: {how_to_enable(self._machine)}")

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
            yield Finding("FAIL", f"{bdf}: no such PCI device: barfs list shows those present")
            return
        if self._machine.is_bridge(bdf):
            yield Finding("FAIL", f"{bdf} is a bridge: VFIO supports only the devices behind it")
            return
        group = self._machine.find_iommu_group(bdf)
        if group is not None:
            yield Finding("ok", f"{bdf}: in IOMMU group {group}")
        elif group_awaits_driver(self._machine, bdf):
            yield Finding("note", f"{bdf} has no IOMMU group yet: it gets one when it is bound")
        elif not self._machine.noiommu_allowed():
            yield Finding("FAIL", f"{bdf} has no IOMMU group: {without_group(self._machine)}")
        yield self._binding(bdf)
        if group is not None:
            yield from self._viability(bdf, group)
        if self._machine.is_vfio(bdf):
            yield from self._access(bdf)

    def _binding(self, bdf: Bdf) -> Finding:
        if self._machine.is_vfio(bdf):
            return Finding("ok", f"{bdf}: bound to {self._machine.driver(bdf)}")
        losses = dependents(self._machine, bdf)
        state = self._machine.driver_state(bdf)
        if losses:
            return Finding(
                "FAIL",
                f"{bdf} {state} and backs {', '.join(losses)}: choose another device, or free it "
                "first",
            )
        return Finding("FAIL", f"{bdf} {state}: {bind_command(bdf, self._uid)}")

    def _viability(self, bdf: Bdf, group: int) -> Iterator[Finding]:
        blockers = [pair for pair in self._machine.blockers(group) if pair[0] != str(bdf)]
        for member, driver in blockers:
            yield Finding(
                "FAIL",
                f"group {group} is not viable: {member} is bound to {driver}: "
                + unblock_command(self._machine, bdf, [(member, driver)], self._uid),
            )
        if not blockers:
            yield Finding("ok", f"group {group}: viable")

    def _access(self, bdf: Bdf) -> Iterator[Finding]:
        cdev, group = self._machine.find_cdev(bdf), self._machine.find_group_device_node(bdf)
        if cdev is None and group is None:
            yield Finding("FAIL", f"{bdf} has no device node in /dev/vfio: modprobe vfio, as root")
            return
        cdev_works = cdev_usable(self._machine, bdf, self._may_open)
        if cdev is not None and cdev_works:
            yield Finding("ok", f"{cdev} and {self._machine.iommufd}: read and write permission")
        elif cdev is not None:
            closed = first_closed(self._machine, cdev, self._may_open)
            yield Finding("note", f"no permission to open {closed}: barfs uses the group instead")
        if group is not None and (not cdev_works or self._may_open(group)):
            yield self._device_node(group, bind_command(bdf, self._uid))
        yield self._use(bdf)

    def _device_node(self, device_node: Path, remedy: str) -> Finding:
        if self._may_open(device_node):
            return Finding("ok", f"{device_node}: read and write permission")
        return Finding("FAIL", f"no permission to open {device_node}: {remedy}")

    def _use(self, bdf: Bdf) -> Finding:
        mounted = self._mounted.get(str(bdf))
        if mounted is not None:
            return Finding("ok", f"{bdf}: mounted on {mounted}")
        users = openers(self._machine, bdf)
        if users:
            return Finding("FAIL", f"{bdf} is in use by {', '.join(users)}: end that process first")
        return Finding("ok", f"{bdf}: no process is seen to use it")

    def _fuse(self) -> Iterator[Finding]:
        fuse = self._machine.dev / "fuse"
        if fuse.exists():
            yield self._device_node(fuse, f"chmod 666 {fuse}, as root")
        else:
            yield Finding("FAIL", f"{fuse} does not exist: modprobe fuse, as root")
        yield self._helper()
        yield from self._apparmor()
        lines = read_lines(self._machine.etc / "fuse.conf")
        if b"user_allow_other" in map(bytes.strip, lines):
            yield Finding(
                "ok", "user_allow_other: set, so every user may mount with -o allow_other"
            )
        else:
            yield Finding(
                "note",
                f"user_allow_other is not in {self._machine.etc}/fuse.conf: only root may mount "
                "with -o allow_other",
            )

    def _apparmor(self) -> Iterator[Finding]:
        if not apparmor.enabled(self._machine):
            return
        profile = apparmor.find_profile(self._machine)
        if profile is not None:
            places = " ".join(profile.targets()) or "nothing"
            yield Finding(
                "note",
                f"AppArmor: the profile {profile.name} lets fusermount3 mount only on {places}; "
                f"for another directory DIR, {profile.remedy('DIR')}",
            )
        for name, place in apparmor.refused_mounts(self._machine):
            why = apparmor.why_refused(self._machine, name, Path(place))
            yield Finding("note", f"the kernel's log has a refused mount on {place}: {why}")

    def _helper(self) -> Finding:
        program = find_program("fusermount3")
        if program is None:
            return Finding("FAIL", "fusermount3 is not installed: apt install fuse3")
        helper = Path(program)
        if self._uid != 0 and not helper.stat().st_mode & stat.S_ISUID:
            return Finding("FAIL", f"{helper} is not set-user-id: chmod u+s {helper}, as root")
        return Finding("ok", f"{helper}: installed")
