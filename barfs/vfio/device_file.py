# SPDX-License-Identifier: MIT
"""What the ways into VFIO have in common: an opened function, its nodes, its token, its errors."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from barfs.errors import DeviceError
from barfs.host.sysfs import Machine
from barfs.pci import Bdf
from barfs.text.system_errors import reason


@dataclass(frozen=True, slots=True)
class DeviceFile:
    """A function that is open as `fd`; `release` closes what else was needed, after `fd`, and may
    have been needed by more functions: the descriptors `others`."""

    fd: int
    release: Callable[[], None]
    others: tuple[int, ...]


def open_device_node(node: Path, hint: str) -> int:
    """Open a node of /dev. Raises DeviceError, with the OSError as its cause."""
    try:
        return os.open(node, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise DeviceError(f"{node} does not exist; {hint}") from error
    except PermissionError as error:
        raise DeviceError(
            f"{node}: permission denied; run as root, or let root do: chown {os.getuid()} {node}"
        ) from error
    except OSError as error:
        raise DeviceError(f"{node} cannot be opened: {reason(error)}; {hint}") from error


def in_use(node: Path) -> DeviceError:
    return DeviceError(f"{node} is in use by another process; fuser -v {node} tells by which")


def not_bound(machine: Machine, bdf: Bdf) -> DeviceError:
    driver = machine.driver(bdf)
    state = f"is bound to {driver}, which is no VFIO driver" if driver else "has no driver"
    return DeviceError(f"{bdf} {state}; bind it: {machine.bind_commands(bdf)}")


def not_viable(machine: Machine, group: int) -> DeviceError:
    blockers = machine.blockers(group)
    names = ", ".join(f"{member} is bound to {driver}" for member, driver in blockers)
    return DeviceError(
        f"group {group} is not viable: {names or 'a member is bound to a host driver'}; "
        "unbind it, or bind it to vfio-pci too"
    )


def token_refused(bdf: Bdf, given: bool) -> DeviceError:
    """What EACCES means: a token is missing or another one (`vfio_pci_validate_vf_token`)."""
    if given:
        return DeviceError(
            f"{bdf}: vf_token is not the one that was set when its physical function was opened"
        )
    return DeviceError(
        f"{bdf} opens with a token only, being a virtual function, or having some in use; name it "
        f"{bdf},vf_token=UUID with the UUID that the physical function was opened with"
    )
