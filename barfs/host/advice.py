# SPDX-License-Identifier: MIT
"""The commands that errors and doctor tell a user to run."""

import os
import pwd
from collections.abc import Sequence

from barfs.errors import UsageError
from barfs.host.sysfs import Machine
from barfs.pci import Bdf


def bind_command(bdf: Bdf | str, uid: int | None = None) -> str:
    """The command that binds a function to VFIO for a user, by default the user of this process."""
    uid = os.geteuid() if uid is None else uid
    return f"barfs bind {bdf}" if uid == 0 else f"sudo barfs bind {bdf} --user {_name(uid)}"


def bind_group_command(bdf: Bdf | str, uid: int | None = None) -> str:
    """The command that binds every endpoint of the function's IOMMU group, as `bind_command`."""
    return bind_command(f"--group-members {bdf}", uid)


def unblock_command(
    machine: Machine, bdf: Bdf | str, blockers: Sequence[tuple[str, str]], uid: int | None = None
) -> str:
    """The commands that make a function's group viable, given (member, driver) of those in the way.

    VFIO takes no bridge, so a bridge (the LPC bridge of a chipset, say) can only lose its driver.
    """
    bridges = [pair for pair in blockers if _is_bridge(machine, pair[0])]
    commands = [
        f"as root: echo {member} > {machine.sysfs}/bus/pci/drivers/{driver}/unbind"
        for member, driver in bridges
    ]
    if not blockers or len(bridges) < len(blockers):
        commands.insert(0, bind_group_command(bdf, uid))
    return "; ".join(commands)


def _is_bridge(machine: Machine, member: str) -> bool:
    try:
        return machine.is_bridge(Bdf.parse(member))
    except UsageError:  # not of PCI
        return False


def rebind_command(bdf: Bdf) -> str:
    """The commands that unbind a function and bind it to VFIO again, for this process's user."""
    sudo = "sudo " if os.geteuid() else ""
    return f"{sudo}barfs unbind {bdf}; {bind_command(bdf)}"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
