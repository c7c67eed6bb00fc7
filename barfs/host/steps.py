# SPDX-License-Identifier: MIT
"""The steps from one binding of a function to another, in the order in which they are taken.

They follow `Documentation/ABI/testing/sysfs-bus-pci`: `driver_override` names the new driver,
`unbind` detaches the old one, `drivers_probe` attaches the new one.
"""

from dataclasses import dataclass
from pathlib import Path

from barfs.host.sysfs import Machine
from barfs.pci import Bdf


@dataclass(frozen=True, slots=True)
class Owner:
    """The user and group that get a device node; None leaves the present one."""

    uid: int | None = None
    gid: int | None = None

    def __str__(self) -> str:
        user, group = ("" if number is None else str(number) for number in (self.uid, self.gid))
        return f"{user}:{group}" if group else user


@dataclass(frozen=True, slots=True)
class Write:
    """A line to write into a file of the kernel."""

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
    """A device node to give away; in a rehearsal the path may be a shell expression."""

    path: str
    owner: Owner
    mode: int | None = None

    def __str__(self) -> str:
        change = f"chown {self.owner} {self.path}"
        return change if self.mode is None else f"{change}; chmod {self.mode:o} {self.path}"


@dataclass(frozen=True, slots=True)
class Save:
    """A file to write, or to replace as a whole."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"cat > {self.path} <<'EOF'\n{self.text}EOF"


@dataclass(frozen=True, slots=True)
class Remove:
    """A file to remove."""

    path: Path

    def __str__(self) -> str:
        return f"rm {self.path}"


@dataclass(frozen=True, slots=True)
class Reload:
    """udev, to read its rules again: it looks for changes only every few seconds."""

    def __str__(self) -> str:
        return "udevadm control --reload"


Step = Write | Load | Own | Save | Remove | Reload


@dataclass(frozen=True, slots=True)
class State:
    """The driver of a function, and the only driver that it may be bound to; None for neither."""

    driver: str | None
    override: str | None

    @classmethod
    def read(cls, machine: Machine, bdf: Bdf) -> "State":
        return cls(machine.driver(bdf), machine.override(bdf))


def transition(machine: Machine, bdf: Bdf, now: State, to: State) -> list[Step]:
    """The steps from one state to another; the override keeps other drivers from the function."""
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


def release(machine: Machine, bdf: Bdf, now: State) -> list[Step]:
    """The steps that let the kernel choose a driver."""
    probe = Write(machine.sysfs / "bus/pci/drivers_probe", str(bdf))
    return [*transition(machine, bdf, now, State(None, None)), probe]
