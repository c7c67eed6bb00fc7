# SPDX-License-Identifier: MIT
"""Bindings that outlast a boot: the udev rule of `barfs bind --persist`, and driverctl's overrides.

Rule 1: a rule belongs to an address with the ids that it had. A card that moves, or another one in
        its slot, is left alone.
Rule 2: the rule itself names the driver before any module is loaded, and takes the device from no
        other driver. If one was first (built in, or loaded by the initramfs), `barfs bind` does
        that, with its checks.
Rule 3: driverctl (its `05-driverctl.rules`) goes first where it has an override for the device.
Rule 4: barfs reads, replaces and removes only the regular files that it wrote.
"""

import contextlib
import os
import re
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from barfs.errors import DeviceError
from barfs.host.steps import Owner, Remove, Save, Step
from barfs.host.sysfs import Machine
from barfs.pci import Bdf
from barfs.text.system_errors import reason

_HEAD = re.compile(r"# barfs bind --persist: (\S+) to ([A-Za-z0-9_.-]+); barfs unbind \1 .*")
_LONGEST = 1 << 16
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+@:-]+")
"""What neither udev nor a shell takes for more than itself."""


@dataclass(frozen=True, slots=True)
class AtBoot:
    """The driver that a function gets at boot, and what gives it: `barfs` or `driverctl`."""

    driver: str
    by: str

    def __str__(self) -> str:
        return self.driver if self.by == "barfs" else f"{self.driver} ({self.by})"

    def to_json(self) -> dict[str, object]:
        return {"driver": self.driver, "by": self.by}


def at_boot(machine: Machine, bdf: Bdf) -> AtBoot | None:
    """What binds the function at boot, as far as this user may see."""
    if (driver := driverctl_override(machine, bdf)) is not None:
        return AtBoot(driver, "driverctl")
    with contextlib.suppress(DeviceError):
        if (driver := rule_driver(machine, bdf)) is not None:
            return AtBoot(driver, "barfs")
    return None


def driverctl_override(machine: Machine, bdf: Bdf) -> str | None:
    """The driver that driverctl gives the function at boot, None if it leaves it alone."""
    with contextlib.suppress(OSError):
        return _read(_driverctl(machine, bdf)).strip() or None
    return None


def _driverctl(machine: Machine, bdf: Bdf) -> Path:
    return machine.etc / f"driverctl.d/pci-{bdf}"


def rule_path(machine: Machine, bdf: Bdf) -> Path:
    return machine.etc / f"udev/rules.d/60-barfs-{bdf}.rules"


def rule_driver(machine: Machine, bdf: Bdf) -> str | None:
    """The driver in the function's rule, None if it has no rule.

    Raises DeviceError if the file cannot be read, or is not one that barfs wrote.
    """
    text = rule_text(machine, bdf)
    if text is None:
        return None
    head = _HEAD.match(text)
    if head is None or head[1] != str(bdf):
        raise DeviceError(
            f"{rule_path(machine, bdf)} is not a file that barfs wrote; move it away first"
        )
    return head[2]


def rule_text(machine: Machine, bdf: Bdf) -> str | None:
    """The file's text, None if there is none. Raises DeviceError."""
    path = rule_path(machine, bdf)
    try:
        return _read(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DeviceError(f"{path}: {reason(error)}; move it away first") from error


def _read(path: Path) -> str:
    """The text of a regular file, decoded like a file's name. Raises OSError."""
    # Without O_NONBLOCK, a FIFO of that name would keep barfs waiting.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"{path} is not a regular file")
        return os.fsdecode(os.read(fd, _LONGEST))
    finally:
        os.close(fd)


def keep(machine: Machine, bdf: Bdf, driver: str, owner: Owner) -> list[Step]:
    """The steps that make the binding last. Raises DeviceError for a file of another's."""
    rule_driver(machine, bdf)
    return _replaced(machine, bdf, _rule(machine, bdf, driver, owner))


def drop(machine: Machine, bdf: Bdf) -> list[Step]:
    """The steps after which nothing of barfs binds the function at boot. Raises DeviceError."""
    return [] if rule_driver(machine, bdf) is None else _replaced(machine, bdf, None)


def restore(machine: Machine, bdf: Bdf, text: str | None) -> list[Step]:
    """The steps back to a former text of the rule."""
    return _replaced(machine, bdf, text)


def _replaced(machine: Machine, bdf: Bdf, text: str | None) -> list[Step]:
    if text == rule_text(machine, bdf):
        return []
    path = rule_path(machine, bdf)
    return [Remove(path) if text is None else Save(path, text)]


def _rule(machine: Machine, bdf: Bdf, driver: str, owner: Owner) -> str:
    """udev(7). As in sysfs, `drivers_probe` binds only a function without a driver; the module,
    loaded later, binds it by itself."""
    ids = "".join(
        f' ATTR{{{name}}}=="{machine.attribute(bdf, name):#06x}",' for name in ("vendor", "device")
    )
    lines = [
        f"# barfs bind --persist: {bdf} to {driver}; barfs unbind {bdf} removes this file",
        f'ACTION=="add", SUBSYSTEM=="pci", KERNEL=="{bdf}",{ids} '
        f'TEST!="{_driverctl(machine, bdf)}", ATTR{{driver_override}}="{driver}", '
        f'ATTR{{subsystem/drivers_probe}}="{bdf}", RUN{{builtin}}+="kmod load {driver}"'
        + _rescue(machine, bdf, driver, owner),
    ]
    if access := _access(owner):
        groups = f"{machine.sysfs}/kernel/iommu_groups"
        lines.append(f'SUBSYSTEM=="vfio", TEST=="{groups}/%k/devices/{bdf}"{access}')
        noiommu = f'KERNEL=="noiommu-*", TEST=="{groups}/%n/devices/{bdf}"'
        lines.append(f'SUBSYSTEM=="vfio", {noiommu}{access}')
        lines.append(f'SUBSYSTEM=="vfio-dev", KERNELS=="{bdf}"{access}')
    return "\n".join(lines) + "\n"


def _rescue(machine: Machine, bdf: Bdf, driver: str, owner: Owner) -> str:
    """Runs `barfs bind` if the function has another driver; one at a time, for it waits for no
    other."""
    command = boot_command()
    if command is None:
        return ""
    words = [*command, "bind", "--driver", driver]
    for option, number in (("--user", owner.uid), ("--group", owner.gid)):
        words += [] if number is None else [option, str(number)]
    bound = f"{machine.sysfs}/bus/pci/drivers/{driver}/{bdf}"
    run = f"flock -w 60 {rule_path(machine, bdf).parent} {' '.join(words)} {bdf}"
    return f", RUN+=\"/bin/sh -c 'test -e {bound} || exec {run}'\""


def _access(owner: Owner) -> str:
    """As `barfs bind` gives the nodes away: a group also needs the mode."""
    given = "" if owner.uid is None else f', OWNER="{owner.uid}"'
    return given if owner.gid is None else f'{given}, GROUP="{owner.gid}", MODE="0660"'


def boot_command() -> list[str] | None:
    """This barfs as root may run it at boot; None if other users may change it, or its path has
    characters that mean something to a shell."""
    script = shutil.which(sys.argv[0])
    if script is not None and Path(script).name == "barfs":
        command = [os.path.abspath(script)]
    else:
        command = [sys.executable, "-m", "barfs"]
    program, package = Path(command[0]), Path(__file__).parents[1]
    if not _PLAIN_PATH.fullmatch(command[0]):
        return None
    return command if all(map(_is_roots, (program, program.resolve(), package))) else None


def _is_roots(path: Path) -> bool:
    """Whether only root may change or replace a file."""
    for place in (path, *path.parents):
        status = place.stat()
        shared = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
        if status.st_uid != 0 or shared:
            return False
    return True
