# SPDX-License-Identifier: MIT
"""The tree: names, sizes, modes and owners."""

import errno
import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from barfs.attached.mounts import MountInfo
from barfs.layout import Layout
from barfs.pci import Bdf
from tests.support import barfs, guest, shown_mount

from .conftest import Subject

TEXTS = (
    "vendor device class revision subsystem_vendor subsystem_device irq resource".split()  # noqa: SIM905
)


def devices(subject: Subject) -> list[Path]:
    return sorted((subject.mount.path / "bus").iterdir())


def region_files(subject: Subject) -> list[Path]:
    return [
        layout.with_suffix("")
        for device in devices(subject)
        for layout in sorted(device.glob("*.layout"))
    ]


def layout_of(region: Path) -> Layout:
    return Layout.from_text(region.with_name(f"{region.name}.layout").read_text())


def test_the_root_has_the_devices_and_nothing_else(subject: Subject) -> None:
    # slots: where the kernel knows the device's
    assert set(os.listdir(subject.mount.path)) - {"slots"} == {"bus", "devices", "flat"}
    assert os.readlink(subject.mount.path / "devices") == "bus"


def test_each_device_has_a_name_without_colons(subject: Subject) -> None:
    flat = subject.mount.path / "flat"
    for device in devices(subject):
        name = device.name.replace(":", "-")
        assert os.readlink(flat / name) == f"../bus/{device.name}"
        assert (flat / name / "bar0").samefile(device / "bar0")
        assert str(Bdf.parse(name)) == device.name
    assert len(os.listdir(flat)) == len(devices(subject))


def test_bus_has_only_addresses(subject: Subject) -> None:
    names = os.listdir(subject.mount.path / "bus")
    assert names
    assert [str(Bdf.parse(name)) for name in names] == names


def test_each_region_has_a_layout_and_nothing_else_is_there(subject: Subject) -> None:
    for device in devices(subject):
        layouts = {file.stem for file in device.glob("*.layout")}
        expected = layouts | {f"{name}.layout" for name in layouts} | set(TEXTS) | {"registers"}
        if guest.inside():
            sysfs = Path("/sys/bus/pci/devices", device.name)
            names = ("modalias", "numa_node", "label", "driver", "iommu_group")
            expected |= {name for name in names if os.path.lexists(sysfs / name)}
        assert set(os.listdir(device)) == expected
        assert {"bar0", "config"} <= layouts


def test_region_files(subject: Subject) -> None:
    for region in region_files(subject):
        status = region.stat()
        layout = layout_of(region)
        assert stat.S_ISREG(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == (0o600 if layout.writable else 0o400)
        assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
        assert status.st_size == layout.size
        assert status.st_blksize == layout.width == 4
        assert status.st_blocks > 0


def test_layouts_name_their_region_and_device(subject: Subject) -> None:
    for region in region_files(subject):
        layout = layout_of(region)
        assert (layout.region, layout.device) == (region.name, region.parent.name)


def test_the_layout_command_goes_through_the_mount(subject: Subject) -> None:
    region = subject.region
    text = region.with_name(f"{region.name}.layout").read_text()
    # By its source: other mounts on this machine may have a software device of that address, too.
    info = MountInfo.read(subject.mount.path)
    assert info is not None
    source = info.devices[region.parent.name]
    result = barfs("layout", source, region.name)
    assert (result.returncode, result.stdout, result.stderr) == (0, text, "")
    (found,) = json.loads(barfs("layout", source, region.name, "--json").stdout)
    assert found == layout_of(region).to_json()


def test_texts_agree_with_configuration_space(subject: Subject) -> None:
    for device in devices(subject):
        with (device / "config").open("rb", buffering=0) as config:
            head = config.read(64)
        words = {"vendor": 0, "device": 2, "subsystem_vendor": 0x2C, "subsystem_device": 0x2E}
        for name, offset in words.items():
            value = int.from_bytes(head[offset : offset + 2], "little")
            assert (device / name).read_text() == f"0x{value:04x}\n"
        assert len((device / "resource").read_text().splitlines()) >= 7


def test_pciutils_reads_the_mount(subject: Subject) -> None:
    result = subprocess.run(
        ["lspci", "-A", "linux-sysfs", "-O", f"sysfs.path={subject.mount.path}", "-Dnvvxxx"],
        capture_output=True,
        text=True,
        check=True,
    )
    for device in devices(subject):
        ids = [(device / name).read_text().strip()[2:] for name in ("vendor", "device")]
        assert f"{device.name} " in result.stdout
        assert ":".join(ids) in result.stdout
    complaints = [line for line in result.stderr.splitlines() if "libkmod" not in line]
    assert not complaints


def test_statfs_answers_as_sysfs(subject: Subject) -> None:
    status, sysfs = os.statvfs(subject.mount.path), os.statvfs("/sys")
    for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree"):
        assert getattr(status, name) == getattr(sysfs, name), name


def test_what_protects_others_is_on(subject: Subject) -> None:
    fstype, options = shown_mount(subject.mount.path)
    assert fstype == "fuse.barfs"
    assert {"default_permissions", "nosuid", "nodev", "noexec"} <= options


def test_nothing_can_be_made_or_removed(subject: Subject) -> None:
    device = subject.registers.parent
    attempts: list[Callable[[], object]] = [
        lambda: (device / "new").touch(),
        lambda: (device / "new").mkdir(),
        lambda: (device / "new").symlink_to("bar0"),
        lambda: os.link(device / "bar0", device / "new"),
        lambda: os.mknod(device / "new"),
        lambda: (device / "bar0").unlink(),
        lambda: device.rmdir(),
        lambda: (device / "bar0").rename(device / "bar1"),
        lambda: (device / "bar0").chmod(0o666),
        lambda: os.chown(device / "bar0", 1, 1),
    ]
    for attempt in attempts:
        with pytest.raises(PermissionError) as caught:
            attempt()
        assert caught.value.errno == errno.EPERM


def test_texts_cannot_be_written(subject: Subject) -> None:
    with pytest.raises(PermissionError):
        (subject.registers.parent / "vendor").open("w")
