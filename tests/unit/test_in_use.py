# SPDX-License-Identifier: MIT
"""What the running system stands on is found through every layer, and nothing else is."""

import os
from pathlib import Path

import pytest

from barfs.host.in_use import dependents, openers
from tests.unit.fake_machine import BDF, NVME, FakeMachine

HEADING = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"


@pytest.fixture
def device(fake: FakeMachine) -> Path:
    return fake.add(BDF, "nvme", class_code=NVME)


def found(fake: FakeMachine) -> list[str]:
    return dependents(fake.machine, BDF)


def partition(disk: Path, name: str, number: str) -> Path:
    folder = disk / name
    folder.mkdir()
    (folder / "partition").write_text("1\n")
    (folder / "dev").write_text(f"{number}\n")
    blocks = (disk / "subsystem").readlink()
    (folder / "subsystem").symlink_to(blocks)
    (blocks / name).symlink_to(folder)
    return folder


def test_nothing(fake: FakeMachine, device: Path) -> None:
    fake.disk(device, "sda", "8:0")
    fake.child(device, "eth0", "net")
    fake.mount("/", "ext4", "/dev/sdb", "8:16")
    (fake.machine.proc / "swaps").write_text("Filename Type Size Used Priority\n/dev/sdb1 x 1 0\n")
    assert found(fake) == []


def test_a_mounted_partition_once(fake: FakeMachine, device: Path) -> None:
    partition(fake.disk(device, "sda", "8:0"), "sda1", "8:1")
    fake.mount("/home", "ext4", "/dev/sda1", "8:1")
    fake.mount("/srv", "ext4", "/dev/sda1", "8:1")
    assert found(fake) == ["/home (ext4 on sda1)"]


def test_through_lvm_on_a_partition(fake: FakeMachine, device: Path) -> None:
    part = partition(fake.disk(device, "sda", "8:0"), "sda1", "8:1")
    volume = fake.disk(fake.machine.sysfs / "devices/virtual", "dm-0", "254:0")
    (part / "holders").mkdir()
    (part / "holders/dm-0").symlink_to(volume)
    fake.mount("/", "xfs", "/dev/mapper/vg-root", "254:0")
    assert found(fake) == ["/ (xfs on dm-0)"]


def test_a_partition_of_a_raid(fake: FakeMachine, device: Path) -> None:
    disk = fake.disk(device, "sda", "8:0")
    raid = fake.disk(fake.machine.sysfs / "devices/virtual", "md0", "9:0")
    partition(raid, "md0p1", "259:5")
    (disk / "holders").mkdir()
    (disk / "holders/md0").symlink_to(raid)
    fake.mount("/", "ext4", "/dev/md0p1", "259:5")
    assert found(fake) == ["/ (ext4 on md0p1)"]


def test_btrfs_which_has_numbers_of_its_own(fake: FakeMachine, device: Path) -> None:
    fake.disk(device, "sda", "8:0")
    fake.disk(device, "sdb", "8:16")
    for name in ("sda", "sdb"):
        member = fake.machine.sysfs / "fs/btrfs/0123-4567/devices" / name
        member.mkdir(parents=True)
    fake.mount("/data", "btrfs", "/dev/sda", "0:35")
    assert found(fake) == ["/data (btrfs on sda)", "a btrfs file system (on sdb)"]


def test_nvme_with_multipath(fake: FakeMachine, device: Path) -> None:
    fake.child(device, "nvme3", "nvme")
    subsystem = fake.machine.sysfs / "class/nvme-subsystem/nvme-subsys3"
    subsystem.mkdir(parents=True)
    (subsystem / "nvme3").symlink_to(device / "nvme/nvme3")
    fake.disk(subsystem, "nvme3n1", "259:3")
    fake.mount("/", "ext4", "/dev/nvme3n1", "259:3")
    assert found(fake) == ["/ (ext4 on nvme3n1)"]


def test_swap_also_behind_a_link(fake: FakeMachine, device: Path) -> None:
    fake.disk(device, "dm-1", "254:1")
    (fake.machine.dev / "mapper").mkdir()
    (fake.machine.dev / "dm-1").touch()
    (fake.machine.dev / "mapper/vg-swap").symlink_to(fake.machine.dev / "dm-1")
    swaps = "Filename Type Size Used Priority\n/dev/mapper/vg-swap partition 1024 0 -2\n"
    (fake.machine.proc / "swaps").write_text(swaps)
    assert found(fake) == ["swap (on dm-1)"]


@pytest.mark.parametrize("name", [b"vg\rswap", b"vg\x0cs", "vg\u0085s\u2028".encode(), b"vg\xc9 s"])
def test_swap_of_any_name(fake: FakeMachine, device: Path, name: bytes) -> None:
    fake.disk(device, "dm-1", "254:1")
    (fake.machine.dev / "mapper").mkdir()
    (fake.machine.dev / "dm-1").touch()
    (fake.machine.dev / "mapper" / os.fsdecode(name)).symlink_to(fake.machine.dev / "dm-1")
    line = b"/dev/mapper/%s\t\tpartition\t1024 0 -2\n" % name.replace(b" ", b"\\040")
    (fake.machine.proc / "swaps").write_bytes(b"Filename\tType\n" + line)
    assert found(fake) == ["swap (on dm-1)"]


def test_a_mount_on_any_name(fake: FakeMachine, device: Path) -> None:
    fake.disk(device, "sda", "8:0")
    mounts = fake.machine.proc / "self/mountinfo"
    mounts.write_bytes(
        b"21 1 0:9 / /mnt/usb\xc9\r\x0c rw - fuse.\xff \xff rw\n"
        b"22 1 8:0 / /srv/\xc9\\012x rw - ext4 /dev/sda rw\n"
    )
    assert found(fake) == [os.fsdecode(b"/srv/\xc9\nx (ext4 on sda)")]


def test_a_shared_folder_of_the_hypervisor(fake: FakeMachine, device: Path) -> None:
    (fake.child(device, "virtio0", "virtio") / "mount_tag").write_bytes(b"/dev/root\0")
    fake.mount("/", "9p", "/dev/root")
    assert found(fake) == ["/ (9p)"]


def test_virtiofs(fake: FakeMachine, device: Path) -> None:
    virtio = fake.child(device, "virtio0", "virtio")
    (virtio / "driver").symlink_to("../../bus/virtio/drivers/virtiofs")
    fake.mount("/srv", "virtiofs", "tag")
    assert found(fake) == ["/srv (virtiofs)"]


@pytest.mark.parametrize(
    ("destination", "flags", "mask", "is_default"),
    [
        ("00000000", "0003", "00000000", True),
        ("00000000", "0001", "00000000", True),  # point to point, no gateway
        ("000200C0", "0001", "00FFFFFF", False),
        ("00000000", "0200", "00000000", False),  # a reject route
    ],
)
def test_default_route(
    fake: FakeMachine, device: Path, destination: str, flags: str, mask: str, is_default: bool
) -> None:
    fake.child(device, "eth0", "net")
    line = f"eth0\t{destination}\t010200C0\t{flags}\t0\t0\t0\t{mask}\t0\t0\t0\n"
    (fake.machine.proc / "net/route").write_text(HEADING + line)
    assert found(fake) == (["the default route (through eth0)"] if is_default else [])


def test_default_route_of_ipv6_over_a_vlan_on_a_bond(fake: FakeMachine, device: Path) -> None:
    nothing = "0" * 32
    for name, upper in (("eth0", "bond0"), ("bond0", "bond0.7"), ("bond0.7", None)):
        folder = fake.child(device if name == "eth0" else fake.machine.sysfs, name, "net")
        if upper:
            (folder / f"upper_{upper}").mkdir()
    routes = "".join(
        f"{nothing} 00 {nothing} 00 {nothing} 00000400 00000001 00000000 {flags} {interface}\n"
        for flags, interface in (("00200200", "lo"), ("00000003", "bond0.7"))
    )
    (fake.machine.proc / "net/ipv6_route").write_text(routes)
    assert found(fake) == ["the default route (through bond0.7)"]


# What dev_valid_name lets through, and str.split takes for a blank or the end of a line.
@pytest.mark.parametrize("name", [b"e\x1c0", "e\u0085".encode(), "e\u2028".encode(), b"e\xc9\x1b["])
def test_default_routes_of_an_interface_of_any_name(
    fake: FakeMachine, device: Path, name: bytes
) -> None:
    fake.child(device, os.fsdecode(name), "net")
    zeros = b"0" * 32
    (fake.machine.proc / "net/route").write_bytes(
        HEADING.encode() + name + b"\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0 \n"
    )
    (fake.machine.proc / "net/ipv6_route").write_bytes(
        b"%s 00 %s 00 %s 00000400 00000001 00000000 00000003 %s\n" % (zeros, zeros, zeros, name)
    )
    assert found(fake) == [f"the default route (through {os.fsdecode(name)})"]


def test_who_has_a_node_open(fake: FakeMachine) -> None:
    fake.add(BDF, "vfio-pci")
    fake.add_vfio_nodes()
    fake.process(7, "bash", fake.machine.dev / "null")
    fake.process(31, "barfs", fake.machine.dev / "vfio/12")
    (fake.machine.proc / "99").mkdir()  # whose descriptors this user may not see
    assert openers(fake.machine, BDF) == ["process 31 (barfs)"]
