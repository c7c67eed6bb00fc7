# SPDX-License-Identifier: MIT
"""The parts of the running system that depend on a PCI function: mounts, swap, default routes.

Rule 1: reading only.
Rule 2: unbinding such a function can take the system down, so a dependent counts through any number
        of layers: partitions, LVM, RAID, NVMe multipath, bonds.
"""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from barfs.host.mountinfo import mounts, unescape
from barfs.host.sysfs import Machine, read_lines, read_text
from barfs.pci import Bdf

_ROUTE_UP = 0x1
_ROUTE_REJECTS = 0x200


def dependents(machine: Machine, bdf: Bdf) -> list[str]:
    """The uses that the system would lose with the function: `/home (ext4 on nvme0n1p2)`."""
    below = list(_below(machine.pci_device(bdf)))
    disks = _all_blocks(machine, _disks(machine, below))
    interfaces = _with_layers(machine, {path.name for kind, path in below if kind == "net"})
    found = [
        *_mounted(machine, disks),
        *_swaps(machine, disks),
        *_shared_folders(machine, below),
        *_default_routes(machine, interfaces),
    ]
    return found or [
        f"{name}, which is in use" for name in sorted(disks) if _claimed(machine, name)
    ]


def openers(machine: Machine, bdf: Bdf) -> list[str]:
    """The processes that have a device node of the function open, as far as this user may see."""
    nodes = {str(node) for node in machine.device_nodes(bdf)}
    found = []
    for name in sorted(filter(str.isdecimal, os.listdir(machine.proc)), key=int):
        process = machine.proc / name
        with contextlib.suppress(OSError):
            if any(_target(process / "fd" / fd) in nodes for fd in os.listdir(process / "fd")):
                found.append(f"process {name} ({read_text(process / 'comm')})")
    return found


def _target(link: Path) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(link)
    return ""


def _below(device: Path) -> Iterator[tuple[str, Path]]:
    """(subsystem, folder) of each device below a device."""
    for folder, names, _files in os.walk(device):
        if "subsystem" in names:
            yield os.path.basename(_target(Path(folder) / "subsystem")), Path(folder)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _disks(machine: Machine, below: list[tuple[str, Path]]) -> set[str]:
    disks = {path.name for kind, path in below if kind == "block"}
    # With multipath, NVMe's disks are below the subsystem, which only links to its controllers.
    controllers = {path.name for kind, path in below if kind == "nvme"}
    for subsystem in _entries(machine.sysfs / "class/nvme-subsystem"):
        if any((subsystem / controller).exists() for controller in controllers):
            disks |= {path.name for kind, path in _below(subsystem) if kind == "block"}
    return disks


def _all_blocks(machine: Machine, disks: set[str]) -> set[str]:
    """The disks, their partitions, the devices built from them (dm, md), and so on."""

    def above(name: str) -> list[str]:
        block = machine.sysfs / "class/block" / name
        partitions = [path for path in _entries(block) if (path / "partition").exists()]
        return [path.name for path in (*_entries(block / "holders"), *partitions)]

    return _reached(disks, above)


def _with_layers(machine: Machine, interfaces: set[str]) -> set[str]:
    """The network interfaces, and the bonds, bridges and VLANs above them."""

    def above(name: str) -> list[str]:
        names = [entry.name for entry in _entries(machine.sysfs / "class/net" / name)]
        return [name.removeprefix("upper_") for name in names if name.startswith("upper_")]

    return _reached(interfaces, above)


def _reached(start: set[str], above: Callable[[str], list[str]]) -> set[str]:
    """`start` and everything above it, transitively; each name is visited once."""
    found: set[str] = set()
    waiting = list(start)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += above(name)
    return found


def _block_name(machine: Machine, source: str) -> str:
    """The kernel's name of the block device behind a path such as `/dev/mapper/root`."""
    if not source.startswith("/dev/"):
        return ""
    return (machine.dev / source.removeprefix("/dev/")).resolve().name


def _mounted(machine: Machine, disks: set[str]) -> Iterator[str]:
    numbers = {read_text(machine.sysfs / "class/block" / name / "dev"): name for name in disks}
    reported = set()
    for entry in mounts(machine.proc):
        name = numbers.get(entry.device) or _block_name(machine, entry.source)
        if name in disks and name not in reported:
            reported.add(name)
            yield f"{entry.mountpoint} ({entry.fstype} on {name})"
    for member in sorted(machine.sysfs.glob("fs/btrfs/*/devices/*")):
        if member.name in disks - reported:
            yield f"a btrfs file system (on {member.name})"


def _swaps(machine: Machine, disks: set[str]) -> Iterator[str]:
    for line in read_lines(machine.proc / "swaps")[1:]:
        # Padded with blanks; those of the name itself are escaped (mm/swapfile.c).
        name = _block_name(machine, unescape(re.split(rb"[ \t]", line)[0]))
        if name in disks:
            yield f"swap (on {name})"


def _shared_folders(machine: Machine, below: list[tuple[str, Path]]) -> Iterator[str]:
    """File systems of a hypervisor, which have no block device."""
    tags = {read_text(path / "mount_tag") for _kind, path in below} - {""}
    virtiofs = any(_target(path / "driver").endswith("/virtiofs") for _kind, path in below)
    for entry in mounts(machine.proc):
        if (entry.fstype == "9p" and entry.source in tags) or (
            entry.fstype == "virtiofs" and virtiofs
        ):
            yield f"{entry.mountpoint} ({entry.fstype})"
            return


def _default_routes(machine: Machine, interfaces: set[str]) -> Iterator[str]:
    for interface in sorted(set(_routes(machine)) & interfaces):
        yield f"the default route (through {interface})"


def _routes(machine: Machine) -> Iterator[str]:
    """The interfaces of the default routes of IPv4 and IPv6."""
    # The name of an interface has no byte that C takes for a blank (net/core/dev.c:
    # dev_valid_name).
    for line in read_lines(machine.proc / "net/route")[1:]:
        interface, destination, _gateway, flags, _ref, _use, _metric, mask, *_ = line.split()
        if int(destination, 16) == int(mask, 16) == 0 and _leads_out(flags):
            yield os.fsdecode(interface)
    for line in filter(None, read_lines(machine.proc / "net/ipv6_route")):
        destination, length, *_middle, flags, interface = line.split()
        if int(destination, 16) == int(length, 16) == 0 and _leads_out(flags):
            yield os.fsdecode(interface)


def _leads_out(flags: bytes) -> bool:
    return int(flags, 16) & (_ROUTE_UP | _ROUTE_REJECTS) == _ROUTE_UP


def _claimed(machine: Machine, name: str) -> bool:
    """Whether the disk is held exclusively, such as by ZFS or in another mount namespace."""
    try:
        # O_EXCL without O_CREAT fails on a block device that is in use, see open(2).
        fd = os.open(machine.dev / name, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return error.errno == errno.EBUSY
    os.close(fd)
    return False
