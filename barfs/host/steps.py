# SPDX-License-Identifier: MIT
"""The steps from one binding of a function to another, in the order in which they are taken.

The way is that of `Documentation/ABI/testing/sysfs-bus-pci`: `driver_override` names the driver,
`unbind` ends the old one, `drivers_probe` starts the new one.
"""

from dataclasses import dataclass
from pathlib import Path

from barfs.host.sysfs import Machine
from barfs.pci import Bdf


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


@dataclass(frozen=True, slots=True)
class State:
    """What a function is bound to, and the one driver it may be bound to."""

    driver: str | None
    override: str | None

    @classmethod
    def read(cls, machine: Machine, bdf: Bdf) -> "State":
        return cls(machine.driver(bdf), machine.override(bdf))


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


def release(machine: Machine, bdf: Bdf, now: State) -> list[Step]:
    """The steps that leave the choice of a driver to the kernel."""
    probe = Write(machine.sysfs / "bus/pci/drivers_probe", str(bdf))
    return [*transition(machine, bdf, now, State(None, None)), probe]
