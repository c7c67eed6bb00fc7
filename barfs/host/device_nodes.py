# SPDX-License-Identifier: MIT
"""The device nodes of VFIO that an open of a function needs, and who may open them.

Rule 1: reading only; no device node is opened to find out whether it can be.
"""

import contextlib
import os
import pwd
from collections.abc import Callable
from pathlib import Path

from barfs.host.sysfs import Machine
from barfs.pci import Bdf

MayOpen = Callable[[Path], bool]


def may_open(device_node: Path) -> bool:
    """Whether this process may open a device node for reading and writing."""
    return os.access(device_node, os.R_OK | os.W_OK, effective_ids=True)


def user_may_open(device_node: Path, uid: int) -> bool:
    """Whether a user may open a device node for reading and writing, by its owner and mode."""
    if uid == 0:
        return True
    try:
        status = device_node.stat()
    except OSError:
        return False
    if status.st_uid == uid:
        return status.st_mode & 0o600 == 0o600
    with contextlib.suppress(KeyError):
        user = pwd.getpwuid(uid)
        if status.st_gid in os.getgrouplist(user.pw_name, user.pw_gid):
            return status.st_mode & 0o060 == 0o060
    return status.st_mode & 0o006 == 0o006


def _needed(machine: Machine, device_node: Path) -> tuple[Path, Path]:
    """The device nodes to open together: this one and iommufd, or the container for a group."""
    is_cdev = device_node.parent == machine.dev / "vfio/devices"
    return device_node, machine.iommufd if is_cdev else machine.container


def first_closed(machine: Machine, device_node: Path, may_open: MayOpen = may_open) -> Path | None:
    """The first of device nodes needed for this one that may not be opened, None if all may."""
    nodes = _needed(machine, device_node)
    return next((node for node in nodes if not may_open(node)), None)


def cdev_usable(machine: Machine, bdf: Bdf, may_open: MayOpen = may_open) -> bool:
    """Whether the function has a character device that may be opened, and iommufd with it."""
    cdev = machine.find_cdev(bdf)
    return cdev is not None and first_closed(machine, cdev, may_open) is None
