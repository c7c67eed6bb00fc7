# SPDX-License-Identifier: MIT
"""The device file of a function: what the character device and the group have in common.

Rule 1: an error names the device node, driver or group that is in the way, and the command to run.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from barfs.errors import DeviceError
from barfs.host.advice import bind_command, unblock_command
from barfs.host.sysfs import Machine
from barfs.pci import Bdf
from barfs.text.system_errors import reason


@dataclass(frozen=True, slots=True)
class DeviceFile:
    """An open device file, `fd`, and the descriptors that keep it usable, `others`.

    Functions of one group share `others`: `release`, called after `fd` is closed, closes them with
    the last function that uses them.
    """

    fd: int
    release: Callable[[], None]
    others: tuple[int, ...]


def open_device_node(device_node: Path, *, missing: str, denied: str) -> int:
    """Open a device node; `missing` and `denied` tell the user what to do in these cases.

    Raises DeviceError, with the OSError as its cause.
    """
    try:
        return os.open(device_node, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise DeviceError(f"{device_node} does not exist; {missing}") from error
    except PermissionError as error:
        raise DeviceError(f"no permission to open {device_node}; {denied}") from error
    except OSError as error:
        raise DeviceError(f"{device_node} cannot be opened: {reason(error)}; {missing}") from error


def in_use(device_node: Path) -> DeviceError:
    return DeviceError(
        f"{device_node} is in use by another process; fuser -v {device_node} shows it"
    )


def not_bound(machine: Machine, bdf: Bdf) -> DeviceError:
    """The function is bound to no VFIO driver, or is leaving one."""
    driver = machine.driver(bdf)
    if driver is None:
        state = machine.driver_state(bdf)
    elif machine.is_vfio(bdf):
        state = f"is being unbound from {driver}"
    else:
        state = f"is bound to {driver}, which is not a VFIO driver"
    return DeviceError(f"{bdf} {state}; {bind_command(bdf)}")


def not_viable(machine: Machine, group: int) -> DeviceError:
    """Another member of the group is bound to a host driver."""
    blockers = machine.blockers(group)
    names = ", ".join(f"{member} is bound to {driver}" for member, driver in blockers)
    member = blockers[0][0] if blockers else "BDF"
    return DeviceError(
        f"group {group} is not viable: {names or 'a member is bound to a host driver'}; "
        + unblock_command(machine, member, blockers)
    )


def token_refused(bdf: Bdf, given: bool) -> DeviceError:
    """EACCES: the token is missing or wrong (`vfio_pci_validate_vf_token`)."""
    if given:
        return DeviceError(
            f"vf_token of {bdf} must be the one with which its physical function was opened"
        )
    return DeviceError(
        f"{bdf} can be opened only with a token, because it is a virtual function or has virtual "
        f"functions in use; name it {bdf},vf_token=UUID with the UUID of the physical function"
    )
