# SPDX-License-Identifier: MIT
"""The nodes of a mount by name and by inode number."""

from pathlib import Path

import barfs
from barfs.backend import HostFile
from barfs.device import Device
from barfs.fuse.tree import (
    Directory,
    HostNode,
    RegisterDirectory,
    RegisterFile,
    Text,
    Tree,
)
from barfs.pci import Bdf


def directory_of(tree: Tree, device: Device) -> Directory:
    node = tree.lookup(tree.bus, str(device.bdf).encode())
    assert isinstance(node, Directory)
    return node


def test_names_in_a_directory() -> None:
    with barfs.open("demo") as device:
        tree = Tree()
        files = {file.region.layout.region: file for file in tree.add(device)}
        directory = directory_of(tree, device)
        assert tree.lookup(directory, b"bar0") is files["bar0"]
    assert tree.lookup(directory, b".") is directory
    assert tree.lookup(directory, b"..") is tree.bus
    assert tree.lookup(tree.root, b"..") is tree.root
    assert tree.lookup(directory, b"nothing") is None


def test_removing_a_device_forgets_all_below_it() -> None:
    with barfs.open("demo") as device:
        tree = Tree()
        before = dict(tree.nodes)
        tree.add(device)
        folder = tree._directory(directory_of(tree, device), b"folder")
        tree._text(folder, "text", "of a directory in a directory")
        tree.remove(device)
    assert tree.nodes == before
    assert not tree.bus.children


def test_a_device_that_comes_back_gets_new_inode_numbers() -> None:
    with barfs.open("demo") as device:
        tree = Tree()
        first = {file.inode for file in tree.add(device)}
        tree.remove(device)
        assert min(file.inode for file in tree.add(device)) > max(first)


def test_nodes_of_registers_go_when_the_kernel_forgets_them() -> None:
    with barfs.open("demo") as device:
        tree = Tree()
        tree.add(device)
        registers = tree.lookup(directory_of(tree, device), b"registers")
        assert isinstance(registers, Directory)
        bar0 = tree.lookup(registers, b"bar0")
        assert isinstance(bar0, RegisterDirectory)
        before = dict(tree.nodes)
        node = tree.register_node(bar0, bar0.load(), b"SCRATCH")
        assert isinstance(node, RegisterFile)
        assert tree.register_node(bar0, bar0.load(), b"SCRATCH") is node
        node.lookups = 3
        tree.forget(node.inode, 2)
        assert tree.lookup(bar0, b"SCRATCH") is node
        tree.forget(node.inode, 1)
        assert tree.nodes == before
        assert tree.lookup(bar0, b"SCRATCH") is None
        tree.forget(node.inode, 1)
        tree.forget(bar0.inode, 1)
        assert tree.nodes == before
        again = tree.register_node(bar0, bar0.load(), b"SCRATCH")
        assert again is not None
        assert again.inode > node.inode
        tree.remove(device)
        assert tree.register_node(bar0, bar0.load(), b"COUNTER") is None


def test_functions_share_a_slot() -> None:
    with barfs.open("demo") as first, barfs.open("demo") as second:
        first.slot = second.slot = "7-1"
        first.bdf, second.bdf = Bdf(0, 5, 0, 0), Bdf(0, 5, 0, 1)
        tree = Tree()
        tree.add(first)
        tree.add(second)
        slots = tree.lookup(tree.root, b"slots")
        assert isinstance(slots, Directory)
        slot = tree.lookup(slots, b"7-1")
        assert isinstance(slot, Directory)
        address = tree.lookup(slot, b"address")
        assert isinstance(address, Text)
        assert address.content == b"0000:05:00\n"
        tree.remove(first)
        assert tree.lookup(slots, b"7-1") is slot
        tree.remove(second)
        assert tree.lookup(slots, b"7-1") is None
        assert slot.inode not in tree.nodes


def test_a_file_of_the_host_is_its_owners(tmp_path: Path) -> None:
    with barfs.open("demo") as device:
        device.host_files = {"vpd": HostFile(tmp_path / "vpd", 32768)}
        tree = Tree(umask=0)
        tree.add(device)
        node = tree.lookup(directory_of(tree, device), b"vpd")
        assert isinstance(node, HostNode)
        assert (node.mode & 0o777, node.size) == (0o400, 32768)
