# SPDX-License-Identifier: MIT
"""Giving PCI functions to a VFIO driver, and giving them back.

Rule 1: all or nothing. What can be refused is refused before anything is written; when a step fails
        half-way, every function goes back to the driver and the override that it had.
Rule 2: what a function was bound to is remembered (`/run/barfs/BDF.json`) before it is changed.
Rule 3: a rehearsal (`--dry-run`) takes the same steps from the same place, and only prints them.

The way is that of `Documentation/ABI/testing/sysfs-bus-pci`: `driver_override` names the driver,
`unbind` ends the old one, `drivers_probe` starts the new one.
"""

import contextlib
import fcntl
import json
import os
import pwd
import re
import stat
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from barfs.errors import DeviceError, UsageError
from barfs.host.in_use import carried, openers
from barfs.host.programs import find_program
from barfs.host.sysfs import Machine
from barfs.pci import Bdf
from barfs.process.output import OutputError, save
from barfs.process.signals import Ended, Held
from barfs.text.system_errors import reason

VFIO_PCI = "vfio-pci"
NODE_TIME = 5.0
"""Seconds that udev gets to make a VFIO node."""

_DRIVER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Owner:
    """Who gets a node; None leaves user or group as they are."""

    uid: int | None = None
    gid: int | None = None

    def __str__(self) -> str:
        user, group = ("" if number is None else str(number) for number in (self.uid, self.gid))
        return f"{user}:{group}" if group else user


@dataclass(frozen=True, slots=True)
class Write:
    """A line for a file of the kernel."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"echo {self.text} > {self.path}" if self.text else f"echo > {self.path}"


@dataclass(frozen=True, slots=True)
class Load:
    """A kernel module to load."""

    module: str

    def __str__(self) -> str:
        return f"modprobe {self.module}"


@dataclass(frozen=True, slots=True)
class Own:
    """A node to give away; in a rehearsal the path may be a shell expression."""

    path: str
    owner: Owner
    mode: int | None = None

    def __str__(self) -> str:
        change = f"chown {self.owner} {self.path}"
        return change if self.mode is None else f"{change}; chmod {self.mode:o} {self.path}"


Step = Write | Load | Own


class Hands:
    """What changes the machine; tests put a made-up kernel in its place."""

    def permitted(self) -> bool:
        return os.geteuid() == 0

    def take(self, step: Step) -> None:
        """Raises OSError; DeviceError for a module that cannot be loaded."""
        match step:
            case Write(path, text):
                # One write(2), as from echo; not created where it is missing.
                fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, os.fsencode(f"{text}\n"))
                finally:
                    os.close(fd)
            case Load(module):
                _modprobe(module)
            case Own(path, owner, mode):
                uid, gid = (-1 if number is None else number for number in (owner.uid, owner.gid))
                os.chown(path, uid, gid, follow_symlinks=False)
                if mode is not None:
                    os.chmod(path, mode)


def _modprobe(module: str) -> None:
    program = find_program("modprobe")
    if program is None:
        raise DeviceError("modprobe is not installed; apt install kmod")
    result = subprocess.run(
        [program, "--", module],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
    )
    if result.returncode:
        reason = result.stderr.strip().replace("\n", "; ") or "no reason given"
        raise DeviceError(f"{module} cannot be loaded: {reason}")


@dataclass(frozen=True, slots=True)
class State:
    """What a function is bound to, and the one driver it may be bound to."""

    driver: str | None
    override: str | None

    @classmethod
    def read(cls, machine: Machine, bdf: Bdf) -> "State":
        return cls(machine.driver(bdf), machine.override(bdf))


@dataclass(frozen=True, slots=True)
class Memory:
    """What `bind` remembers of a function: the state before, and the driver it then gave it to."""

    before: State
    driver: str

    @staticmethod
    def path(machine: Machine, bdf: Bdf) -> Path:
        return machine.run / f"{bdf}.json"

    @classmethod
    def read(cls, machine: Machine, bdf: Bdf) -> "Memory | None":
        """None where there is none, or where another driver has been given the function since."""
        path = cls.path(machine, bdf)
        try:
            data = json.loads(path.read_text())
            memory = cls(
                State(data["before"]["driver"], data["before"]["override"]), data["driver"]
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DeviceError(f"{path} cannot be read ({error}); remove it") from error
        return memory if memory.driver == machine.driver(bdf) else None

    def write(self, machine: Machine, bdf: Bdf) -> None:
        """Raises DeviceError."""
        before = {"driver": self.before.driver, "override": self.before.override}
        text = json.dumps({"before": before, "driver": self.driver}) + "\n"
        _remember(self.path(machine, bdf), text.encode())


def transition(machine: Machine, bdf: Bdf, now: State, to: State) -> list[Step]:
    """The steps from one state to another; a driver is asked for by its name, so no other comes."""
    device = machine.pci_device(bdf)
    override = now.override
    steps: list[Step] = []
    if now.driver != to.driver:
        if to.driver is not None and not machine.has_driver(to.driver):
            steps.append(Load(to.driver))
        if to.driver is not None and override != to.driver:
            override = to.driver
            steps.append(Write(device / "driver_override", override))
        if now.driver is not None:
            unbind = machine.sysfs / "bus/pci/drivers" / now.driver / "unbind"
            steps.append(Write(unbind, str(bdf)))
        if to.driver is not None:
            steps.append(Write(machine.sysfs / "bus/pci/drivers_probe", str(bdf)))
    if override != to.override:
        steps.append(Write(device / "driver_override", to.override or ""))
    return steps


def _release(machine: Machine, bdf: Bdf, now: State) -> list[Step]:
    """The steps that leave the choice of a driver to the kernel."""
    probe = Write(machine.sysfs / "bus/pci/drivers_probe", str(bdf))
    return [*transition(machine, bdf, now, State(None, None)), probe]


class Binder:
    """`bind` and `unbind` on a machine; `rehearse` gives the steps without taking them."""

    def __init__(self, machine: Machine, hands: Hands) -> None:
        self._machine = machine
        self._hands = hands
        self._given: list[Own] = []  # the nodes given away in this run, with their owners before
        self.node_time = NODE_TIME

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every other `bind` and `unbind` of this machine out.

        Raises DeviceError while one is at work. Who may not lock may not write either, and is told
        so by the first step.
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
                        "another barfs bind or unbind is at work; try again when it is done"
                    ) from None
            yield

    def check_bind(self, bdfs: Iterable[Bdf], driver: str, *, force: bool = False) -> None:
        """Raises DeviceError, saying what to do, for a function that should not be bound."""
        if not _DRIVER_NAME.fullmatch(driver):
            raise UsageError(f"{driver!r} is not the name of a driver; the usual one is {VFIO_PCI}")
        for bdf in bdfs:
            self._check_function(bdf)
            if self._machine.driver(bdf) == driver:
                continue
            self._check_not_open(bdf)
            losses = [] if force else carried(self._machine, bdf)
            if losses:
                raise DeviceError(
                    f"{bdf} carries {', '.join(losses)}; free it first, or lose it with --force"
                )

    def _check_function(self, bdf: Bdf) -> None:
        if self._machine.pci_device(bdf).is_dir():
            if self._machine.is_bridge(bdf):
                raise DeviceError(
                    f"{bdf} is a bridge, which VFIO does not take; bind the devices behind it"
                )
            if self._machine.noiommu_allowed():
                return
        self._machine.iommu_group(bdf)

    def _check_not_open(self, bdf: Bdf) -> None:
        # The kernel would wait, and not be killed, until the last descriptor is closed.
        users = openers(self._machine, bdf) if self._machine.is_vfio(bdf) else []
        if users:
            nodes = " or ".join(map(str, self._machine.vfio_nodes(bdf)))
            raise DeviceError(
                f"{bdf} is in use: {', '.join(users)} has {nodes} open; end it, or unmount first"
            )

    def check_unbind(self, bdfs: Iterable[Bdf]) -> None:
        """Raises DeviceError for a function that VFIO does not have, or that is in use."""
        for bdf in bdfs:
            if not self._machine.pci_device(bdf).is_dir():
                raise DeviceError(f"{bdf}: no such PCI device; barfs list shows those there are")
            if not self._machine.is_vfio(bdf):
                driver = self._machine.driver(bdf)
                state = f"is bound to {driver}" if driver else "has no driver"
                raise DeviceError(f"{bdf} {state}, so there is nothing to take from VFIO")
            self._check_not_open(bdf)

    def rehearse_bind(self, bdfs: Iterable[Bdf], driver: str, owner: Owner) -> list[Step]:
        steps: list[Step] = []
        for bdf in bdfs:
            now = State.read(self._machine, bdf)
            steps += transition(self._machine, bdf, now, State(driver, driver))
            steps += self._expected_nodes(bdf, owner)
        return _without_repeats(steps)

    def _expected_nodes(self, bdf: Bdf, owner: Owner) -> list[Step]:
        if self._machine.is_vfio(bdf):
            return self._give_nodes(bdf, owner)
        device = self._machine.pci_device(bdf)
        group = self._machine.group(bdf)
        paths = [
            f"{self._machine.dev}/vfio/noiommu-$(basename $(readlink {device}/iommu_group))"
            if group is None
            else f"{self._machine.dev}/vfio/{group}"
        ]
        if (self._machine.dev / "iommu").exists():
            paths.append(f"{self._machine.dev}/vfio/devices/$(ls {device}/vfio-dev)")
        return _own(paths, owner)

    def _give_nodes(self, bdf: Bdf, owner: Owner) -> list[Step]:
        return _own(map(str, self._machine.vfio_nodes(bdf)), owner)

    def rehearse_unbind(self, bdfs: Iterable[Bdf]) -> list[Step]:
        return _without_repeats([step for bdf in bdfs for step in self._way_back(bdf)[0]])

    def _way_back(self, bdf: Bdf) -> tuple[list[Step], State | None]:
        """The steps to what was remembered, None where the kernel is to choose a driver."""
        now = State.read(self._machine, bdf)
        memory = Memory.read(self._machine, bdf)
        if memory is None:
            return _release(self._machine, bdf, now), None
        return transition(self._machine, bdf, now, memory.before), memory.before

    def bind(self, bdfs: Sequence[Bdf], driver: str, owner: Owner) -> None:
        """Bind all or none. Raises DeviceError; `check_bind` comes first."""
        self._need_rights("bind")

        def bind_each() -> None:
            for bdf in bdfs:
                self._bind(bdf, driver, owner)

        self._all_or_nothing(bdfs, bind_each)

    def _bind(self, bdf: Bdf, driver: str, owner: Owner) -> None:
        before = State.read(self._machine, bdf)
        if before.driver != driver:
            memory = Memory.read(self._machine, bdf)
            Memory(memory.before if memory else before, driver).write(self._machine, bdf)
            self._take(transition(self._machine, bdf, before, State(driver, driver)))
            self._expect(bdf, driver)
        self._wait_for_node(bdf)
        self._take(self._give_nodes(bdf, owner))

    def unbind(self, bdfs: Sequence[Bdf]) -> None:
        """Give all back or none. Raises DeviceError; `check_unbind` comes first."""
        self._need_rights("unbind")

        def unbind_each() -> None:
            for bdf in bdfs:
                steps, goal = self._way_back(bdf)
                self._take(steps)
                if goal is not None:
                    self._expect(bdf, goal.driver)
                elif self._machine.is_vfio(bdf):
                    raise DeviceError(
                        f"{bdf}: {self._machine.driver(bdf)} took it again; its ids are in "
                        "the driver's new_id, write them to remove_id"
                    )
            for bdf in bdfs:
                _remember(Memory.path(self._machine, bdf), None)

        self._all_or_nothing(bdfs, unbind_each)

    def _need_rights(self, command: str) -> None:
        if not self._hands.permitted():
            raise DeviceError(
                f"barfs {command} changes drivers, which takes root; sudo barfs {command} ..., "
                "or see with --dry-run what it would do"
            )

    def _all_or_nothing(self, bdfs: Iterable[Bdf], work: Callable[[], None]) -> None:
        """Do all of the work, or, where it fails or a signal comes, nothing."""
        before = {bdf: State.read(self._machine, bdf) for bdf in bdfs}
        memories = {bdf: _read_bytes(Memory.path(self._machine, bdf)) for bdf in before}
        self._given = []
        with Held() as hold:
            try:
                with hold.released():
                    work()
            except BaseException as error:
                left = self._roll_back(before)
                for bdf, memory in memories.items():
                    try:
                        _remember(Memory.path(self._machine, bdf), memory)
                    except DeviceError as failed:
                        left.append(str(failed))
                if left and isinstance(error, DeviceError | Ended):
                    raise DeviceError(f"{error}; and {'; '.join(left)}") from error
                raise

    def _roll_back(self, before: Mapping[Bdf, State]) -> list[str]:
        """Undo what was done; returns what could not be."""
        left = []
        for own in reversed(self._given):
            with contextlib.suppress(OSError):  # gone with the binding that made it
                self._hands.take(own)
        for bdf, state in reversed(list(before.items())):
            now = State.read(self._machine, bdf)
            try:
                self._take(transition(self._machine, bdf, now, state))
                self._expect(bdf, state.driver)
            except DeviceError as error:
                left.append(f"it could not be undone: {error}")
        return left

    def _take(self, steps: Iterable[Step]) -> None:
        for step in steps:
            try:
                if isinstance(step, Own):
                    status = os.stat(step.path)
                    owner = Owner(status.st_uid, status.st_gid)
                    self._given.append(Own(step.path, owner, stat.S_IMODE(status.st_mode)))
                self._hands.take(step)
            except OSError as error:
                raise DeviceError(f"{step}: {reason(error)}; dmesg may tell why") from error

    def _expect(self, bdf: Bdf, driver: str | None) -> None:
        found = self._machine.driver(bdf)
        if found != driver:
            state = f"is bound to {found}" if found else "has no driver"
            wanted = f"and not bound to {driver}" if driver else "and should have none"
            raise DeviceError(f"{bdf} {state} now, {wanted}; dmesg may tell why")

    def _wait_for_node(self, bdf: Bdf) -> None:
        end = time.monotonic() + self.node_time
        while not self._machine.has_nodes(bdf):
            if time.monotonic() > end:
                raise DeviceError(
                    f"{self._machine.driver(bdf)} has {bdf}, but no node came in "
                    f"{self._machine.dev}/vfio; is it a VFIO driver?"
                )
            time.sleep(0.01)

    def notes(self, bdfs: Iterable[Bdf], owner: Owner) -> list[str]:
        """What still stands between the bound functions and whoever is to use them."""
        found = []
        for bdf in bdfs:
            group = self._machine.group(bdf)
            for member, driver in self._machine.blockers(group) if group is not None else ():
                found.append(
                    f"group {group} is not viable yet: {member} is bound to {driver}; bind it too"
                )
            iommu = self._machine.dev / "iommu"
            if self._machine.cdev_node(bdf) is not None and not _may_open(iommu, owner.uid):
                found.append(
                    f"{iommu} is closed to user {owner.uid}, who therefore goes through "
                    f"{self._machine.group_node(bdf) or 'nothing'}"
                )
        return list(dict.fromkeys(found))


def _own(paths: Iterable[str], owner: Owner) -> list[Step]:
    """Give nodes away; for a group they must also open to it, since the kernel makes them 0600."""
    if owner == Owner():
        return []
    return [Own(path, owner, None if owner.gid is None else 0o660) for path in paths]


def _without_repeats(steps: Iterable[Step]) -> list[Step]:
    """Several functions need a module, or share a group's node; `echo` to one file repeats."""
    found: list[Step] = []
    for step in steps:
        if isinstance(step, Write) or step not in found:
            found.append(step)
    return found


def _may_open(node: Path, uid: int | None) -> bool:
    """Whether the user may read and write a node, going by its owner and mode."""
    if uid is None or uid == 0:
        return True
    try:
        status = node.stat()
    except OSError:
        return False
    if status.st_uid == uid:
        return status.st_mode & 0o600 == 0o600
    with contextlib.suppress(KeyError):
        user = pwd.getpwuid(uid)
        if status.st_gid in os.getgrouplist(user.pw_name, user.pw_gid):
            return status.st_mode & 0o060 == 0o060
    return status.st_mode & 0o006 == 0o006


def _read_bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _remember(path: Path, data: bytes | None) -> None:
    """Write what is remembered of a function; None: nothing any more. Raises DeviceError."""
    try:
        if data is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        save(path, data, 0o644)
    except OSError as error:
        raise DeviceError(f"{path}: {reason(error)}") from error
    except (UsageError, OutputError) as error:
        raise DeviceError(str(error)) from error
