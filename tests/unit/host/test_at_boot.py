# SPDX-License-Identifier: MIT
"""Bindings that last: the udev rule, driverctl beside it, and what else may lie in its place."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from barfs.errors import DeviceError
from barfs.host import at_boot
from barfs.host.binding import Binder
from barfs.host.inventory import functions
from barfs.host.steps import Owner
from barfs.pci import Bdf
from tests.unit.fake_machine import BDF, OTHER, FakeKernel, FakeMachine

ALICE = Owner(uid=1000, gid=7)


@pytest.fixture
def kernel(fake: FakeMachine) -> FakeKernel:
    return FakeKernel(fake)


@pytest.fixture
def binder(fake: FakeMachine, kernel: FakeKernel) -> Binder:
    fake.add(BDF, "nvme")
    fake.add(OTHER, "nvme")
    binder = Binder(fake.machine, kernel)
    binder.device_node_time = 0.05
    return binder


def persist(binder: Binder, *bdfs: Bdf, driver: str = "vfio-pci", owner: Owner = ALICE) -> None:
    binder.check_bind(bdfs, driver, persist=True)
    binder.bind(bdfs, driver, owner, persist=True)


def unbind(binder: Binder, *bdfs: Bdf) -> None:
    binder.check_unbind(bdfs)
    binder.unbind(bdfs)


def rules(fake: FakeMachine) -> list[str]:
    folder = fake.machine.etc / "udev/rules.d"
    return sorted(os.listdir(folder)) if folder.exists() else []


def driverctl(fake: FakeMachine, driver: str) -> Path:
    file = fake.machine.etc / f"driverctl.d/pci-{BDF}"
    file.parent.mkdir(parents=True)
    file.write_text(f"{driver}\n")
    return file


def test_the_rule(fake: FakeMachine, binder: Binder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_boot, "boot_command", lambda: ["/usr/bin/barfs"])
    persist(binder, BDF)
    machine = fake.machine
    path = machine.etc / "udev/rules.d/60-barfs-0000:01:00.0.rules"
    head, binding, group, noiommu, cdev = path.read_text().splitlines()
    assert head.startswith("# barfs bind --persist: 0000:01:00.0 to vfio-pci; barfs unbind ")
    assert binding == (
        'ACTION=="add", SUBSYSTEM=="pci", KERNEL=="0000:01:00.0", ATTR{vendor}=="0x1234", '
        f'ATTR{{device}}=="0x11e8", TEST!="{machine.etc}/driverctl.d/pci-0000:01:00.0", '
        'ATTR{driver_override}="vfio-pci", ATTR{subsystem/drivers_probe}="0000:01:00.0", '
        'RUN{builtin}+="kmod load vfio-pci", '
        f"RUN+=\"/bin/sh -c 'test -e {machine.sysfs}/bus/pci/drivers/vfio-pci/0000:01:00.0 || "
        f"exec flock -w 60 {path.parent} /usr/bin/barfs bind --driver vfio-pci --user 1000 "
        "--group 7 0000:01:00.0'\""
    )
    access = ', OWNER="1000", GROUP="7", MODE="0660"'
    groups = f"{machine.sysfs}/kernel/iommu_groups"
    assert group == f'SUBSYSTEM=="vfio", TEST=="{groups}/%k/devices/0000:01:00.0"{access}'
    assert noiommu == (
        f'SUBSYSTEM=="vfio", KERNEL=="noiommu-*", TEST=="{groups}/%n/devices/0000:01:00.0"{access}'
    )
    assert cdev == f'SUBSYSTEM=="vfio-dev", KERNELS=="0000:01:00.0"{access}'
    assert path.stat().st_mode & 0o777 == 0o644


def test_it_lasts_until_unbind(fake: FakeMachine, kernel: FakeKernel, binder: Binder) -> None:
    persist(binder, BDF, OTHER)
    assert rules(fake) == [f"60-barfs-{bdf}.rules" for bdf in (BDF, OTHER)]
    assert kernel.ran[-1] == "udevadm control --reload"
    kernel.ran.clear()
    persist(binder, BDF, OTHER)
    assert not any("rules" in step or "udevadm" in step for step in kernel.ran)
    unbind(binder, BDF)
    assert rules(fake) == [f"60-barfs-{OTHER}.rules"]
    assert kernel.ran[-1] == "udevadm control --reload"
    assert fake.machine.driver(BDF) == "nvme"


def test_bind_without_persist_leaves_the_rules_alone(fake: FakeMachine, binder: Binder) -> None:
    binder.bind([BDF], "vfio-pci", ALICE)
    assert rules(fake) == []
    persist(binder, BDF)
    before = (fake.machine.etc / "udev/rules.d" / rules(fake)[0]).read_text()
    fake.add_driver("my-vfio-pci")
    binder.bind([BDF], "my-vfio-pci", Owner())
    assert (fake.machine.etc / "udev/rules.d" / rules(fake)[0]).read_text() == before
    assert binder.notes([BDF], Owner()) == [
        "group 12 is not viable yet: 0000:01:00.1 is bound to nvme; "
        "barfs bind --group-members 0000:01:00.0",
        "0000:01:00.0 goes to vfio-pci at the next boot; barfs unbind 0000:01:00.0 ends that",
    ]


def test_a_dry_run_prints_a_shell_script(
    fake: FakeMachine, kernel: FakeKernel, binder: Binder, tmp_path: Path
) -> None:
    steps = list(map(str, binder.rehearse_bind([BDF], "vfio-pci", ALICE, persist=True)))
    assert rules(fake) == kernel.ran == []
    assert steps[-1] == "udevadm control --reload"
    copy = tmp_path / "rule"
    path = fake.machine.etc / f"udev/rules.d/60-barfs-{BDF}.rules"
    script = steps[-2].replace(str(path), shlex.quote(str(copy)), 1)
    assert os.system(script) == 0
    persist(binder, BDF)
    assert copy.read_text() == path.read_text()
    assert list(map(str, binder.rehearse_unbind([BDF])))[-2:] == [
        f"rm {path}",
        "udevadm control --reload",
    ]


def test_all_or_none(fake: FakeMachine, kernel: FakeKernel, binder: Binder) -> None:
    persist(binder, BDF, owner=Owner())
    before = (fake.machine.etc / "udev/rules.d" / rules(fake)[0]).read_text()
    folder = fake.machine.etc / f"udev/rules.d/60-barfs-{OTHER}.rules"
    run = kernel.run

    def full(step: object) -> None:
        if str(folder) in str(step):
            raise DeviceError("no space left")
        run(step)  # type: ignore[arg-type]

    kernel.run = full  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match="no space left"):
        persist(binder, BDF, OTHER)
    assert (fake.machine.etc / "udev/rules.d" / rules(fake)[0]).read_text() == before
    assert rules(fake) == [f"60-barfs-{BDF}.rules"]
    assert [fake.machine.driver(bdf) for bdf in (BDF, OTHER)] == ["vfio-pci", "nvme"]


def test_list_shows_it(fake: FakeMachine, binder: Binder) -> None:
    def shown() -> list[str]:
        return [str(function.at_boot) for function in functions(fake.machine, {})]

    assert shown() == ["None", "None"]
    persist(binder, BDF)
    assert shown() == ["vfio-pci", "None"]
    driverctl(fake, "nvme")
    assert shown() == ["nvme (driverctl)", "None"]
    (function, _other) = functions(fake.machine, {})
    assert function.to_json()["at_boot"] == {"driver": "nvme", "by": "driverctl"}


def test_driverctl_goes_first(fake: FakeMachine, binder: Binder) -> None:
    file = driverctl(fake, "nvme")
    with pytest.raises(DeviceError, match=r"driverctl binds 0000:01:00\.0 to nvme at boot; first "):
        persist(binder, BDF)
    assert fake.machine.driver(BDF) == "nvme"
    binder.bind([BDF], "vfio-pci", Owner())
    assert binder.notes([BDF], Owner())[-1] == (
        "driverctl binds 0000:01:00.0 to nvme at the next boot; "
        "driverctl unset-override 0000:01:00.0 ends that"
    )
    file.write_text("vfio-pci\n")
    persist(binder, BDF)
    unbind(binder, BDF)
    assert file.exists()
    assert binder.notes_of_unbind([BDF]) == [
        "driverctl binds 0000:01:00.0 to vfio-pci at the next boot; "
        "driverctl unset-override 0000:01:00.0 ends that"
    ]


def test_the_override_of_the_rule_is_not_taken_for_an_earlier_one(
    fake: FakeMachine, binder: Binder
) -> None:
    """At boot the rule has set it when `barfs bind` takes the function from its driver."""
    (fake.machine.pci_device(BDF) / "driver_override").write_text("vfio-pci\n")
    binder.bind([BDF], "vfio-pci", Owner())
    unbind(binder, BDF)
    assert (fake.machine.driver(BDF), fake.machine.override(BDF)) == ("nvme", None)


def test_unbind_of_what_is_only_bound_at_boot(fake: FakeMachine, binder: Binder) -> None:
    persist(binder, BDF, OTHER)
    for bdf, driver in ((BDF, "nvme"), (OTHER, None)):
        device = fake.machine.pci_device(bdf)
        (device / "driver").unlink()
        (device / "vfio-dev").rmdir()
        if driver:
            (device / "driver").symlink_to(fake.machine.sysfs / "bus/pci/drivers" / driver)
    device.rename(fake.machine.sysfs / "pulled")
    unbind(binder, BDF, OTHER)
    assert rules(fake) == []
    assert fake.machine.driver(BDF) == "nvme"
    with pytest.raises(DeviceError, match="no such PCI device"):
        binder.check_unbind([OTHER])


def link(path: Path) -> None:
    path.symlink_to("/dev/null")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (link, "move it away first"),
        (os.mkfifo, "is not a regular file; move it away first"),
        (Path.mkdir, "is not a regular file; move it away first"),
        (lambda path: path.write_bytes(b"\xff\0# mine\n"), "is not a file that barfs wrote; move "),
        (lambda path: path.write_text("# barfs bind --persist: x\n"), "is not a file that barfs "),
    ],
)
def test_what_barfs_did_not_write_stays(
    fake: FakeMachine, binder: Binder, make: Callable[[Path], object], message: str
) -> None:
    path = fake.machine.etc / f"udev/rules.d/60-barfs-{BDF}.rules"
    path.parent.mkdir(parents=True)
    make(path)
    before = path.lstat()
    with pytest.raises(DeviceError, match=message) as caught:
        persist(binder, BDF)
    assert "\n" not in str(caught.value)
    assert fake.machine.driver(BDF) == "nvme"
    assert path.lstat().st_ino == before.st_ino
    assert functions(fake.machine, {})[0].at_boot is None
    binder.bind([BDF], "vfio-pci", Owner())


def test_without_root_nothing_is_written(
    fake: FakeMachine, kernel: FakeKernel, binder: Binder
) -> None:
    kernel.root = False
    with pytest.raises(DeviceError, match="barfs bind must run as root"):
        persist(binder, BDF)
    assert rules(fake) == []


def test_at_boot_root_runs_only_what_is_roots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "barfs"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setattr(at_boot, "_is_roots", lambda path: path != script)
    assert at_boot.boot_command() is None
    monkeypatch.setattr(at_boot, "_is_roots", lambda path: True)
    assert at_boot.boot_command() == [str(script)]
    odd = tmp_path / "it's $HOME"
    odd.mkdir()
    monkeypatch.setattr(sys, "argv", [str(script.rename(odd / "barfs"))])
    assert at_boot.boot_command() is None


def test_a_file_that_others_may_change_is_not_roots(tmp_path: Path) -> None:
    assert at_boot._is_roots(Path("/bin/sh"))
    script = tmp_path / "script"
    script.touch(0o777)
    script.chmod(0o777)
    assert not at_boot._is_roots(script)
