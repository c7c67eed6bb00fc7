# SPDX-License-Identifier: MIT
"""The nodes of a mount: directories, text files, region files and links, by inode number.

Rule 1: pure: no FUSE, no errno. `barfs.fuse.filesystem` serves this tree.
Rule 2: inode numbers are never reused; a device that comes back gets new ones.
Rule 3: a region's layout has the inode number after the region's.
Rule 4: nodes of registers are made when they are looked up, and go when the kernel forgets them.
Rule 5: every name in `bus/` parses as `dddd:bb:dd.f`; pciutils gives up at any other. `flat/` has
        the same devices under names without colons.
"""

import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from barfs.device import Device
from barfs.region import Region
from barfs.registers.access import BoundField, BoundRegister, DeviceRegisters
from barfs.registers.model import Register
from barfs.registers.places import Place

ROOT_INODE = 1
INFO_NAME = b".barfs"
"""A file in the root that can be opened but is not listed: the mount's process and devices."""

KERNEL_NAME = b".kernel"
"""A directory in the root that can be opened but is not listed: the targets of the devices' links.
As in sysfs, only the last name of the path matters (`basename $(readlink driver)`)."""

REGISTER_SIZE = 4096
"""What stat(2) says of a register's file, as of one of sysfs."""

_BLOCK = 512


@dataclass(slots=True)
class Node:
    """A file of any type. `mode` has type and permissions, `blksize` becomes `st_blksize`."""

    inode: int
    mode: int
    size: int = 0
    blksize: int = 4096

    @property
    def blocks(self) -> int:
        """512-byte blocks; never 0 for content, or `tar -S` stores the file as a hole."""
        return -(-self.size // _BLOCK)


@dataclass(slots=True)
class Directory(Node):
    parent: int = ROOT_INODE
    children: dict[bytes, Node] = field(default_factory=dict)


@dataclass(slots=True)
class Text(Node):
    content: bytes = b""


@dataclass(slots=True)
class Link(Node):
    target: bytes = b""


@dataclass(slots=True)
class HostNode(Node):
    """A file of the host that is read through; `parent` is the device's directory."""

    path: Path = field(kw_only=True)
    parent: int = field(kw_only=True)


@dataclass(slots=True)
class RegionFile(Node):
    device: Device = field(kw_only=True)
    region: Region = field(kw_only=True)


@dataclass(slots=True)
class RegisterDirectory(Directory):
    """A block, whose children are made when they are looked up.

    `place` is None for the map itself, which may have to read the device before it is there.
    `device` is the inode number of the device's `registers/`. `lookups` counts how often the kernel
    was told of the node.
    """

    device: int = field(kw_only=True)
    name: bytes = field(kw_only=True)
    registers: DeviceRegisters = field(kw_only=True)
    region: Region = field(kw_only=True)
    place: Place | None = None
    lookups: int = 0

    def load(self) -> Place:
        """Its place; may wait for the device."""
        return self.place or self.registers.map(self.region.name).root


@dataclass(slots=True)
class RegisterFile(Node):
    """A register, or a field of one. `readable` and `writable` are for root, too."""

    device: int = field(kw_only=True)
    name: bytes = field(kw_only=True)
    parent: int = field(kw_only=True)
    bound: BoundRegister | BoundField = field(kw_only=True)
    readable: bool = False
    writable: bool = False
    lookups: int = 0


RegisterNode = RegisterDirectory | RegisterFile


class Tree:
    """The nodes of one mount, by inode number.

    Only the owner can access region files; every user that the mount admits can read the rest.
    A `umask` applies to all files instead, as in other file systems.
    """

    def __init__(self, *, umask: int | None = None) -> None:
        self.nodes: dict[int, Node] = {}
        self._umask = umask or 0
        self._region_umask = 0o077 if umask is None else umask
        self._guarded: frozenset[int] = frozenset()
        self._inodes = itertools.count(ROOT_INODE)
        self.root = self._directory(None, b"")
        self.bus = self._directory(self.root, b"bus")
        self._link(self.root, b"devices", b"bus")
        self.flat = self._directory(self.root, b"flat")
        self._in_slots: dict[bytes, set[Device]] = {}

    def add(self, device: Device) -> list[RegionFile]:
        """Make a device's directory in `bus/`; returns the files of its regions."""
        files = []
        directory = self._directory(self.bus, str(device.bdf).encode())
        for name, region in device.regions.items():
            mode = (0o444 if region.readable else 0) | (0o222 if region.writable else 0)
            node = RegionFile(
                next(self._inodes),
                stat.S_IFREG | (mode & ~self._region_umask),
                region.size,
                # Python's io takes an st_blksize of 1 for "unknown" and reads 8 KiB.
                max(region.layout.width, 2),
                device=device,
                region=region,
            )
            files.append(node)
            self._adopt(directory, name.encode(), node)
            self._text(directory, f"{name}.layout", region.layout.to_text())
        for name, text in device.attributes.items():
            self._text(directory, name, text)
        for name, target in device.links.items():
            self._kernel_directory(target)
            place = f"../../{KERNEL_NAME.decode()}/{target}"
            self._link(directory, name.encode(), os.fsencode(place))
        for name, file in device.host_files.items():
            mode = stat.S_IFREG | (0o400 & ~self._umask)
            host = HostNode(
                next(self._inodes), mode, file.size, path=file.path, parent=directory.inode
            )
            self._adopt(directory, name.encode(), host)
        if device.slot is not None:
            self._enter_slot(device, os.fsencode(device.slot))
        self._link(self.flat, device.bdf.flat.encode(), f"../bus/{device.bdf}".encode())
        if device.registers:
            self._add_registers(directory, device)
        return files

    def remove(self, device: Device) -> None:
        """Remove a device's directory with everything in it, and its link."""
        self._forget(self.bus.children.pop(str(device.bdf).encode()))
        self._forget(self.flat.children.pop(device.bdf.flat.encode()))
        if device.slot is not None:
            self._leave_slot(device, os.fsencode(device.slot))

    def _enter_slot(self, device: Device, name: bytes) -> None:
        """Make `slots/NAME/address`, where lspci looks a slot up; its functions share it."""
        slots = self.root.children.get(b"slots")
        if not isinstance(slots, Directory):
            slots = self._directory(self.root, b"slots")
        inside = self._in_slots.setdefault(name, set())
        if not inside:
            address = str(device.bdf).partition(".")[0]
            self._text(self._directory(slots, name), "address", f"{address}\n")
        inside.add(device)

    def _leave_slot(self, device: Device, name: bytes) -> None:
        self._in_slots[name].discard(device)
        slots = self.root.children[b"slots"]
        if not self._in_slots[name] and isinstance(slots, Directory):
            self._forget(slots.children.pop(name))

    def _add_registers(self, parent: Directory, device: Device) -> None:
        directory = self._directory(parent, b"registers")
        guard = device.options.guard
        self._guarded = self._guarded | {directory.inode} if guard else self._guarded
        for name in device.registers.sources:
            node = RegisterDirectory(
                next(self._inodes),
                directory.mode,
                parent=directory.inode,
                device=directory.inode,
                name=name.encode(),
                registers=device.registers,
                region=device[name],
            )
            self._adopt(directory, node.name, node)

    def register_node(
        self, directory: RegisterDirectory, place: Place, name: bytes
    ) -> RegisterNode | None:
        """The node of a name in a block at `place`, made if it is not there yet."""
        known = directory.children.get(name)
        if isinstance(known, RegisterNode):
            return known
        text = os.fsdecode(name)
        found = place.child(text)
        # Commands also take `chan[2]`, but a register has one file.
        if found is None or found.file_name != text or directory.inode not in self.nodes:
            return None
        node: RegisterNode
        if isinstance(found.node, Register):
            node = self._register_file(directory, found, name)
        else:
            node = RegisterDirectory(
                next(self._inodes),
                directory.mode,
                parent=directory.inode,
                device=directory.device,
                name=name,
                registers=directory.registers,
                region=directory.region,
                place=found,
            )
        self._adopt(directory, name, node)
        return node

    def _register_file(
        self, directory: RegisterDirectory, place: Place, name: bytes
    ) -> RegisterFile:
        bound = directory.registers.at(directory.region.name, place)
        assert isinstance(bound, BoundRegister | BoundField)
        what, region = place.field or place.register, directory.region
        popped = directory.device in self._guarded and place.register.read_has_effects
        readable = what.readable and region.readable and not popped
        writable = what.writable and region.writable
        mode = (0o444 if readable else 0) | (0o222 if writable else 0)
        return RegisterFile(
            next(self._inodes),
            stat.S_IFREG | (mode & ~self._region_umask),
            REGISTER_SIZE,
            device=directory.device,
            name=name,
            parent=directory.inode,
            bound=bound,
            readable=readable,
            writable=writable,
        )

    def forget(self, inode: int, count: int) -> None:
        """The kernel forgets a node that it was told of `count` times."""
        node = self.nodes.get(inode)
        if not isinstance(node, RegisterNode):
            return
        node.lookups -= count
        home = self.nodes.get(node.parent)
        if node.lookups > 0 or not isinstance(home, RegisterDirectory):
            return
        if isinstance(node, Directory) and node.children:
            return
        del self.nodes[inode], home.children[node.name]

    def set_info(self, text: str) -> int:
        """Set the content of the hidden `.barfs`; returns its inode number."""
        node = self.root.children.get(INFO_NAME)
        if isinstance(node, Text):
            node.content, node.size = text.encode(), len(text.encode())
            return node.inode
        return self._text(self.root, INFO_NAME.decode(), text)

    def set_socket(self, kind: str, path: Path) -> None:
        """Let the hidden link `.barfs-KIND` lead to a socket of the mount."""
        self._link(self.root, f".barfs-{kind}".encode(), os.fsencode(path))

    def lookup(self, directory: Directory, name: bytes) -> Node | None:
        """The node that a name in a directory refers to, if any."""
        if name == b".":
            return directory
        if name == b"..":
            return self.nodes[directory.parent]
        return directory.children.get(name)

    def listing(self, directory: Directory) -> Iterator[tuple[bytes, Node]]:
        """The names that are listed, with their nodes: none that begins with a dot."""
        return (item for item in directory.children.items() if not item[0].startswith(b"."))

    def _forget(self, node: Node) -> None:
        """Drop a node and everything below it."""
        del self.nodes[node.inode]
        if isinstance(node, Directory):
            for child in node.children.values():
                self._forget(child)

    def _adopt(self, parent: Directory, name: bytes, node: Node) -> None:
        parent.children[name] = node
        self.nodes[node.inode] = node

    def _directory(self, parent: Directory | None, name: bytes) -> Directory:
        mode = stat.S_IFDIR | (0o555 & ~self._umask)
        node = Directory(next(self._inodes), mode)
        if parent is None:
            self.nodes[node.inode] = node
        else:
            node.parent = parent.inode
            self._adopt(parent, name, node)
        return node

    def _kernel_directory(self, target: str) -> None:
        """Make an empty directory `target` below `.kernel/`, and keep it: devices may share it."""
        directory = self.root
        for name in (KERNEL_NAME, *os.fsencode(target).split(b"/")):
            child = directory.children.get(name)
            directory = child if isinstance(child, Directory) else self._directory(directory, name)

    def _text(self, parent: Directory, name: str, text: str) -> int:
        content = os.fsencode(text)
        mode = stat.S_IFREG | (0o444 & ~self._umask)
        node = Text(next(self._inodes), mode, len(content), content=content)
        self._adopt(parent, name.encode(), node)
        return node.inode

    def _link(self, parent: Directory, name: bytes, target: bytes) -> None:
        mode = stat.S_IFLNK | 0o777
        self._adopt(parent, name, Link(next(self._inodes), mode, len(target), target=target))
