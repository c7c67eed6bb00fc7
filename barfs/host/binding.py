# SPDX-License-Identifier: MIT
"""Binding PCI functions to a VFIO driver, and back to the drivers that they had.

Rule 1: all or nothing. Every check comes before the first write; when a step fails half-way, every
        function gets back its driver and its override.
Rule 2: the binding of a function is saved (`/run/barfs/BDF.json`) before it is changed.
Rule 3: a rehearsal (`--dry-run`) makes the same steps from the same code, and only prints them.
Rule 4: what lasts (`--persist`, `barfs.host.at_boot`) is written last, and goes with the binding.
"""

import contextlib
import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from barfs.errors import DeviceError, UsageError
from barfs.host import at_boot
from barfs.host.advice import unblock_command
from barfs.host.device_nodes import user_may_open
from barfs.host.executor import Executor
from barfs.host.in_use import dependents, openers
from barfs.host.iommu import group_awaits_driver, require_iommu_group
from barfs.host.saved_binding import SavedBinding, read_file, write_file
from barfs.host.steps import Own, Owner, Reload, State, Step, Write, release, transition
from barfs.host.sysfs import Machine
from barfs.pci import Bdf
from barfs.process.signals import Ended, Held
from barfs.text.system_errors import reason

VFIO_PCI = "vfio-pci"
DEVICE_NODE_TIME = 5.0
"""Seconds in which udev must make the device nodes of a function."""

_DRIVER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)


class Binder:
    """`bind` and `unbind` on a machine; `rehearse_` methods return the steps and take none.

    Tests shorten `device_node_time`.
    """

    def __init__(self, machine: Machine, executor: Executor) -> None:
        self._machine = machine
        self._executor = executor
        self._given: list[
            Own
        ] = []  # the device nodes given away in this run, with their owners before
        self.device_node_time = DEVICE_NODE_TIME

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep every other `bind` and `unbind` of this machine out.

        Raises DeviceError while another one runs. A user who may not take the lock may not write to
        sysfs either: the first step fails and says so.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                path = self._machine.run.with_suffix(".lock")
                lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                stack.callback(os.close, lock)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise DeviceError(
                        "another barfs bind or unbind is running; try again when it has finished"
                    ) from None
            yield

    def with_group_members(self, bdfs: Iterable[Bdf], driver: str) -> list[Bdf]:
        """The functions, and the endpoints of their IOMMU groups that no VFIO driver has yet."""
        found: list[Bdf] = []
        for bdf in bdfs:
            self._check_function(bdf)
            group = self._machine.find_iommu_group(bdf)
            members = [] if group is None else self._machine.endpoints(group)
            found += [bdf, *(member for member in members if self._is_free(member, driver))]
        return list(dict.fromkeys(found))

    def _is_free(self, bdf: Bdf, driver: str) -> bool:
        return self._machine.driver(bdf) == driver or not self._machine.is_vfio(bdf)

    def check_bind(
        self, bdfs: Iterable[Bdf], driver: str, *, force: bool = False, persist: bool = False
    ) -> None:
        """Raises DeviceError, saying what to do, for a function that must not be bound."""
        if not _DRIVER_NAME.fullmatch(driver):
            raise UsageError(f"driver must be a name like {VFIO_PCI}, not {driver!r}")
        for bdf in bdfs:
            self._check_function(bdf)
            if persist:
                self._check_at_boot(bdf, driver)
            if self._machine.driver(bdf) == driver:
                continue
            self._check_not_open(bdf)
            losses = [] if force else dependents(self._machine, bdf)
            if losses:
                raise DeviceError(
                    f"{bdf} backs {', '.join(losses)}; free it first, or lose it with --force"
                )

    def _check_function(self, bdf: Bdf) -> None:
        self._machine.require_pci_device(bdf)
        if self._machine.is_bridge(bdf):
            raise DeviceError(
                f"{bdf} is a bridge, which VFIO does not support; bind the devices behind it"
            )
        if not self._machine.noiommu_allowed() and not group_awaits_driver(self._machine, bdf):
            require_iommu_group(self._machine, bdf)

    def _check_at_boot(self, bdf: Bdf, driver: str) -> None:
        at_boot.rule_driver(self._machine, bdf)
        other = at_boot.driverctl_override(self._machine, bdf)
        if other not in (None, driver):
            raise DeviceError(
                f"driverctl binds {bdf} to {other} at boot; first run: driverctl unset-override "
                f"{bdf}"
            )

    def _check_not_open(self, bdf: Bdf) -> None:
        # The unbind would block, even against SIGKILL, until the last descriptor is closed.
        users = openers(self._machine, bdf) if self._machine.is_vfio(bdf) else []
        if users:
            nodes = " or ".join(map(str, self._machine.device_nodes(bdf)))
            raise DeviceError(
                f"{bdf} is in use: {', '.join(users)} has {nodes} open; unmount it, or end that "
                "process"
            )

    def check_unbind(self, bdfs: Iterable[Bdf]) -> None:
        """Raises DeviceError for a function that is not bound to VFIO, or is in use.

        What is to be bound at boot may also be absent, or have another driver now.
        """
        for bdf in bdfs:
            if at_boot.rule_driver(self._machine, bdf) and not self._machine.is_vfio(bdf):
                continue
            self._machine.require_pci_device(bdf)
            if not self._machine.is_vfio(bdf):
                state = self._machine.driver_state(bdf)
                raise DeviceError(f"{bdf} {state}, so it cannot be unbound from VFIO")
            self._check_not_open(bdf)

    def rehearse_bind(
        self, bdfs: Sequence[Bdf], driver: str, owner: Owner, *, persist: bool = False
    ) -> list[Step]:
        steps: list[Step] = []
        for bdf in bdfs:
            now = State.read(self._machine, bdf)
            steps += transition(self._machine, bdf, now, State(driver, driver))
            steps += self._expected_device_nodes(bdf, owner)
        if persist:
            steps += self._kept(bdfs, driver, owner)
        return _without_repeats(steps)

    def _kept(self, bdfs: Iterable[Bdf], driver: str, owner: Owner) -> list[Step]:
        return _reloaded(at_boot.keep(self._machine, bdf, driver, owner) for bdf in bdfs)

    def _expected_device_nodes(self, bdf: Bdf, owner: Owner) -> list[Step]:
        if self._machine.is_vfio(bdf):
            return self._give_device_nodes(bdf, owner)
        device = self._machine.pci_device(bdf)
        group = self._machine.find_iommu_group(bdf)
        if group is not None:
            paths = [str(self._machine.group_device_node(group))]
        else:
            prefix = "" if group_awaits_driver(self._machine, bdf) else "noiommu-"
            number = f"$(basename $(readlink {device}/iommu_group))"
            paths = [f"{self._machine.dev}/vfio/{prefix}{number}"]
        if self._machine.iommufd.exists():
            paths.append(f"{self._machine.dev}/vfio/devices/$(ls {device}/vfio-dev)")
        return _own(paths, owner)

    def _give_device_nodes(self, bdf: Bdf, owner: Owner) -> list[Step]:
        return _own(map(str, self._machine.device_nodes(bdf)), owner)

    def rehearse_unbind(self, bdfs: Sequence[Bdf]) -> list[Step]:
        steps = [step for bdf in self._bound(bdfs) for step in self._way_back(bdf)[0]]
        return _without_repeats([*steps, *self._dropped(bdfs)])

    def _bound(self, bdfs: Iterable[Bdf]) -> list[Bdf]:
        return list(filter(self._machine.is_vfio, bdfs))

    def _dropped(self, bdfs: Iterable[Bdf]) -> list[Step]:
        return _reloaded(at_boot.drop(self._machine, bdf) for bdf in bdfs)

    def _way_back(self, bdf: Bdf) -> tuple[list[Step], State | None]:
        """The steps to the saved binding, and that; None if the kernel is to choose a driver."""
        now = State.read(self._machine, bdf)
        saved = SavedBinding.read(self._machine, bdf)
        if saved is None:
            return release(self._machine, bdf, now), None
        return transition(self._machine, bdf, now, saved.before), saved.before

    def bind(
        self, bdfs: Sequence[Bdf], driver: str, owner: Owner, *, persist: bool = False
    ) -> None:
        """Bind all functions or none. Raises DeviceError; call `check_bind` first."""
        self._need_rights("bind")

        def bind_each() -> None:
            for bdf in bdfs:
                self._bind(bdf, driver, owner)
            if persist:
                self._run(self._kept(bdfs, driver, owner))

        self._all_or_nothing(bdfs, bind_each, self._rules(bdfs) if persist else {})

    def _rules(self, bdfs: Iterable[Bdf]) -> dict[Bdf, str | None]:
        return {bdf: at_boot.rule_text(self._machine, bdf) for bdf in bdfs}

    def _bind(self, bdf: Bdf, driver: str, owner: Owner) -> None:
        before = State.read(self._machine, bdf)
        if before.driver != driver:
            saved = SavedBinding.read(self._machine, bdf)
            # An override that already names the driver is a step towards it: that of our rule.
            own = State(before.driver, None if before.override == driver else before.override)
            SavedBinding(saved.before if saved else own, driver).write(self._machine, bdf)
            self._run(transition(self._machine, bdf, before, State(driver, driver)))
            self._expect(bdf, driver)
        self._wait_for_device_nodes(bdf)
        self._run(self._give_device_nodes(bdf, owner))

    def unbind(self, bdfs: Sequence[Bdf]) -> None:
        """Unbind all functions or none. Raises DeviceError; call `check_unbind` first."""
        self._need_rights("unbind")

        def unbind_each() -> None:
            for bdf in self._bound(bdfs):
                steps, goal = self._way_back(bdf)
                self._run(steps)
                if goal is not None:
                    self._expect(bdf, goal.driver)
                elif self._machine.is_vfio(bdf):
                    raise DeviceError(
                        f"{self._machine.driver(bdf)} took {bdf} again, because its ids are in the "
                        "driver's new_id; write them to remove_id"
                    )
            for bdf in bdfs:
                write_file(self._machine, bdf, None)
            self._run(self._dropped(bdfs))

        self._all_or_nothing(bdfs, unbind_each, self._rules(bdfs))

    def _need_rights(self, command: str) -> None:
        if not self._executor.permitted():
            raise DeviceError(
                f"barfs {command} must run as root, to change drivers; sudo barfs {command} ..., "
                "or --dry-run to see what it would do"
            )

    def _all_or_nothing(
        self, bdfs: Iterable[Bdf], work: Callable[[], None], rules: Mapping[Bdf, str | None]
    ) -> None:
        """Do all of `work`, or undo what was done when it fails or a signal arrives.

        `rules` are those of udev that it may change, as they are now.
        """
        before = {bdf: State.read(self._machine, bdf) for bdf in bdfs}
        files = {bdf: read_file(self._machine, bdf) for bdf in before}
        self._given = []
        with Held() as hold:
            try:
                with hold.released():
                    work()
            except BaseException as error:
                left = [*self._roll_back(before), *self._roll_back_rules(rules)]
                for bdf, content in files.items():
                    try:
                        write_file(self._machine, bdf, content)
                    except DeviceError as failed:
                        left.append(str(failed))
                if left and isinstance(error, DeviceError | Ended):
                    raise DeviceError(f"{error}; and {'; '.join(left)}") from error
                raise

    def _roll_back(self, before: Mapping[Bdf, State]) -> list[str]:
        """Undo what was done; returns an error for each function where that failed."""
        left = []
        for own in reversed(self._given):
            with contextlib.suppress(OSError):  # gone with the binding that made it
                self._executor.run(own)
        for bdf, state in reversed(list(before.items())):
            now = State.read(self._machine, bdf)
            try:
                self._run(transition(self._machine, bdf, now, state))
                self._expect(bdf, state.driver)
            except DeviceError as error:
                left.append(f"undoing it failed: {error}")
        return left

    def _roll_back_rules(self, rules: Mapping[Bdf, str | None]) -> list[str]:
        try:
            self._run(
                _reloaded(at_boot.restore(self._machine, bdf, text) for bdf, text in rules.items())
            )
        except DeviceError as error:
            return [f"undoing it failed: {error}"]
        return []

    def _run(self, steps: Iterable[Step]) -> None:
        for step in steps:
            try:
                if isinstance(step, Own):
                    status = os.stat(step.path)
                    owner = Owner(status.st_uid, status.st_gid)
                    self._given.append(Own(step.path, owner, stat.S_IMODE(status.st_mode)))
                self._executor.run(step)
            except OSError as error:
                raise DeviceError(f"{step}: {reason(error)}; dmesg may say why") from error

    def _expect(self, bdf: Bdf, driver: str | None) -> None:
        if self._machine.driver(bdf) != driver:
            if driver and not self._machine.noiommu_allowed():
                require_iommu_group(self._machine, bdf)
            wanted = f"be bound to {driver}" if driver else "have no driver"
            raise DeviceError(
                f"{bdf} must {wanted} now, but {self._machine.driver_state(bdf)}; dmesg may say why"
            )

    def _wait_for_device_nodes(self, bdf: Bdf) -> None:
        end = time.monotonic() + self.device_node_time
        while not self._machine.has_device_nodes(bdf):
            if time.monotonic() > end:
                raise DeviceError(
                    f"{bdf} {self._machine.driver_state(bdf)}, but got no device node in "
                    f"{self._machine.dev}/vfio; --driver must name a VFIO driver"
                )
            time.sleep(0.01)

    def notes(self, bdfs: Iterable[Bdf], owner: Owner) -> list[str]:
        """The obstacles that remain between the bound functions and the user who gets them."""
        found = []
        for bdf in bdfs:
            group = self._machine.find_iommu_group(bdf)
            for member, driver in self._machine.blockers(group) if group is not None else ():
                found.append(
                    f"group {group} is not viable yet: {member} is bound to {driver}; "
                    + unblock_command(self._machine, bdf, [(member, driver)])
                )
            found += self._iommufd_note(bdf, owner)
            found += self._boot_notes(bdf)
        return list(dict.fromkeys(found))

    def _boot_notes(self, bdf: Bdf) -> list[str]:
        """What happens to the function at the next boot, where its driver of today does not tell.

        A rule of barfs may be there from an earlier bind.
        """
        now, boot = self._machine.driver(bdf), at_boot.at_boot(self._machine, bdf)
        if boot is None or (boot.by == "barfs" and boot.driver == now):
            return []
        if boot.by == "barfs":
            return [f"{bdf} goes to {boot.driver} at the next boot; barfs unbind {bdf} ends that"]
        return [
            f"driverctl binds {bdf} to {boot.driver} at the next boot; "
            f"driverctl unset-override {bdf} ends that"
        ]

    def notes_of_unbind(self, bdfs: Sequence[Bdf]) -> list[str]:
        """The members of the functions' groups that stay bound to VFIO, and what boot brings."""
        found = []
        for bdf in bdfs:
            group = self._machine.find_iommu_group(bdf)
            found += [] if group is None else self._left_bound(group)
            found += self._boot_notes(bdf)
        return list(dict.fromkeys(found))

    def _left_bound(self, group: int) -> list[str]:
        blockers = self._machine.blockers(group)
        unless = "".join(f", of no use while {name} is bound to {of}" for name, of in blockers[:1])
        return [
            f"{member} of group {group} stays bound to {self._machine.driver(member)}{unless}"
            for member in filter(self._machine.is_vfio, self._machine.members(group))
        ]

    def bridges(self, bdfs: Iterable[Bdf]) -> list[str]:
        """A note for each bridge that shares a group with one of the functions."""
        groups = dict.fromkeys(map(self._machine.find_iommu_group, bdfs))
        return [
            f"{member} of group {group} is a bridge, and stays as it is"
            for group in groups
            if group is not None
            for member in self._machine.members(group)
            if self._machine.is_bridge(member)
        ]

    def _iommufd_note(self, bdf: Bdf, owner: Owner) -> list[str]:
        iommufd = self._machine.iommufd
        if owner.uid is None or self._machine.find_cdev(bdf) is None:
            return []
        if user_may_open(iommufd, owner.uid):
            return []
        group = self._machine.find_group_device_node(bdf)
        instead = f"barfs uses {group} instead" if group else f"chown {owner.uid} {iommufd}"
        return [f"user {owner.uid} has no permission to open {iommufd}; {instead}"]


def _own(paths: Iterable[str], owner: Owner) -> list[Step]:
    """Give device nodes away; a group also needs mode 0660, because the kernel makes them 0600."""
    if owner == Owner():
        return []
    return [Own(path, owner, None if owner.gid is None else 0o660) for path in paths]


def _reloaded(changes: Iterable[list[Step]]) -> list[Step]:
    """Changes of udev's rules, and then the step that makes udev see them."""
    steps = [step for change in changes for step in change]
    return [*steps, Reload()] if steps else []


def _without_repeats(steps: Iterable[Step]) -> list[Step]:
    """Drop repeated steps, such as a module that several functions need; a write may repeat."""
    found: list[Step] = []
    for step in steps:
        if isinstance(step, Write) or step not in found:
            found.append(step)
    return found
