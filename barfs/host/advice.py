# SPDX-License-Identifier: MIT
"""The commands that errors and doctor tell a user to run."""

import os
import pwd

from barfs.pci import Bdf


def bind_command(bdf: Bdf | str, uid: int | None = None) -> str:
    """The command that binds a function to VFIO for a user, by default the user of this process."""
    uid = os.geteuid() if uid is None else uid
    return f"barfs bind {bdf}" if uid == 0 else f"sudo barfs bind {bdf} --user {_name(uid)}"


def bind_group_command(bdf: Bdf | str, uid: int | None = None) -> str:
    """The command that binds every endpoint of the function's IOMMU group, as `bind_command`."""
    return bind_command(f"--group-members {bdf}", uid)


def rebind_command(bdf: Bdf) -> str:
    """The commands that unbind a function and bind it to VFIO again, for this process's user."""
    sudo = "sudo " if os.geteuid() else ""
    return f"{sudo}barfs unbind {bdf}; {bind_command(bdf)}"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
