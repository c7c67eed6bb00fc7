# SPDX-License-Identifier: MIT
"""The nodes of a mount: directories, text files, region files and links, by inode number.

Rule 1: pure: no FUSE, no errno. `barfs.fuse.filesystem` serves this tree.
Rule 2: inode numbers are never reused; a device that comes back gets new ones.
Rule 3: a region's layout has the inode number after the region's.
Rule 4: every name in `bus/` parses as `dddd:bb:dd.f`; pciutils gives up at any other. `flat/` has
        the same devices under names without colons.
"""

import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from barfs.device import Device
from barfs.region import Region

ROOT_INODE = 1
INFO_NAME = b".barfs"
"""A file in the root that can be opened but is not listed: the mount's process and devices."""

KERNEL_NAME = b".kernel"
"""A directory in the root that can be opened but is not listed: the targets of the devices' links.
As in sysfs, only the last name of the path matters (`basename $(readlink driver)`)."""

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
class RegionFile(Node):
    region: Region = field(kw_only=True)


class Tree:
    """The nodes of one mount, by inode number.

    Only the owner can access region files; every user that the mount admits can read the rest.
    A `umask` applies to all files instead, as in other file systems.
    """

    def __init__(self, *, umask: int | None = None) -> None:
        self.nodes: dict[int, Node] = {}
        self._umask = umask or 0
        self._region_umask = 0o077 if umask is None else umask
        self._inodes = itertools.count(ROOT_INODE)
        self.root = self._directory(None, b"")
        self.bus = self._directory(self.root, b"bus")
        self._link(self.root, b"devices", b"bus")
        self.flat = self._directory(self.root, b"flat")

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
        self._link(self.flat, device.bdf.flat.encode(), f"../bus/{device.bdf}".encode())
        return files

    def remove(self, device: Device) -> None:
        """Remove a device's directory with everything in it, and its link."""
        self._forget(self.bus.children.pop(str(device.bdf).encode()))
        self._forget(self.flat.children.pop(device.bdf.flat.encode()))

    def set_info(self, text: str) -> int:
        """Set the content of the hidden `.barfs`; returns its inode number."""
        node = self.root.children.get(INFO_NAME)
        if isinstance(node, Text):
            node.content, node.size = text.encode(), len(text.encode())
            return node.inode
        return self._text(self.root, INFO_NAME.decode(), text)

    def lookup(self, directory: Directory, name: bytes) -> Node | None:
        """The node that a name in a directory refers to, if any."""
        if name == b".":
            return directory
        if name == b"..":
            return self.nodes[directory.parent]
        return directory.children.get(name)

    def listing(self, directory: Directory) -> Iterator[tuple[bytes, Node]]:
        """The names that `ls` shows, with their nodes."""
        hidden = (INFO_NAME, KERNEL_NAME)
        return (item for item in directory.children.items() if item[0] not in hidden)

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
