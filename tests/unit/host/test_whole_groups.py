# SPDX-License-Identifier: MIT
"""Binding every endpoint of an IOMMU group, on a simulated machine."""

import pytest

from barfs.errors import DeviceError
from barfs.host.binding import Binder
from barfs.host.steps import Owner
from barfs.pci import Bdf
from tests.unit.fake_machine import BDF, BRIDGE, NVME, OTHER, PORT, FakeKernel, FakeMachine

VARIANT = "my-vfio-pci"


@pytest.fixture
def kernel(fake: FakeMachine) -> FakeKernel:
    return FakeKernel(fake)


@pytest.fixture
def binder(fake: FakeMachine, kernel: FakeKernel) -> Binder:
    binder = Binder(fake.machine, kernel)
    binder.device_node_time = 0.05
    return binder


def bind_group(binder: Binder, bdf: Bdf) -> list[Bdf]:
    bdfs = binder.with_group_members([bdf], "vfio-pci")
    binder.check_bind(bdfs, "vfio-pci")
    binder.bind(bdfs, "vfio-pci", Owner())
    return bdfs


def drivers(fake: FakeMachine) -> list[str | None]:
    return [fake.machine.driver(bdf) for bdf in (PORT, BDF, OTHER)]


def test_every_endpoint_and_no_bridge(fake: FakeMachine, binder: Binder) -> None:
    fake.add(PORT, "shpchp", class_code=BRIDGE)
    fake.add(BDF, "nvme")
    fake.add(OTHER, None)
    assert bind_group(binder, BDF) == [BDF, OTHER]
    assert drivers(fake) == ["shpchp", "vfio-pci", "vfio-pci"]
    assert binder.bridges([BDF, OTHER]) == [
        "0000:00:01.0 of group 12 is a bridge, and stays as it is"
    ]


def test_a_bridge_in_the_way_can_only_lose_its_driver(fake: FakeMachine, binder: Binder) -> None:
    fake.add(PORT, "lpc_ich", class_code=0x060100)
    fake.add(BDF, "nvme")
    fake.add(OTHER, "snd")
    binder.bind([BDF], "vfio-pci", Owner())
    assert binder.notes([BDF], Owner()) == [
        "group 12 is not viable yet: 0000:00:01.0 is bound to lpc_ich; as root: "
        f"echo 0000:00:01.0 > {fake.machine.sysfs}/bus/pci/drivers/lpc_ich/unbind",
        "group 12 is not viable yet: 0000:01:00.1 is bound to snd; "
        "barfs bind --group-members 0000:01:00.0",
    ]


def test_the_named_one_is_first_and_named_once(fake: FakeMachine, binder: Binder) -> None:
    fake.add(BDF, "nvme")
    fake.add(OTHER, "snd")
    assert binder.with_group_members([OTHER, BDF], "vfio-pci") == [OTHER, BDF]


def test_what_another_vfio_driver_has_stays_there(fake: FakeMachine, binder: Binder) -> None:
    fake.add(BDF, "nvme")
    (fake.add(OTHER, VARIANT) / "vfio-dev").mkdir()
    assert bind_group(binder, BDF) == [BDF]
    assert binder.with_group_members([OTHER], "vfio-pci") == [OTHER, BDF]


def test_a_disk_in_use_keeps_the_whole_group(fake: FakeMachine, binder: Binder) -> None:
    fake.add(BDF, "snd")
    fake.disk(fake.add(OTHER, "nvme", class_code=NVME), "nvme0n1", "259:0")
    fake.mount("/", "ext4", "/dev/nvme0n1", "259:0")
    with pytest.raises(DeviceError, match=r"0000:01:00\.1 backs / \(ext4 on nvme0n1\); free it"):
        bind_group(binder, BDF)
    assert drivers(fake)[1:] == ["snd", "nvme"]


def test_one_that_fails_gives_all_back(
    fake: FakeMachine, kernel: FakeKernel, binder: Binder
) -> None:
    fake.add(BDF, "snd")
    device = fake.add(OTHER, "nvme")
    (device / "driver_override").unlink()
    (device / "driver_override").mkdir()  # cannot be written
    with pytest.raises((DeviceError, OSError)):
        bind_group(binder, BDF)
    assert drivers(fake)[1:] == ["snd", "nvme"]
    assert not list(fake.machine.run.iterdir())


def test_a_bridge_and_a_function_without_a_group_are_refused(
    fake: FakeMachine, binder: Binder
) -> None:
    fake.add(PORT, "pcieport", class_code=BRIDGE)
    fake.add(BDF, "nvme", group=False)
    with pytest.raises(DeviceError, match="is a bridge"):
        binder.with_group_members([PORT], "vfio-pci")
    with pytest.raises(DeviceError, match="has no IOMMU group"):
        binder.with_group_members([BDF], "vfio-pci")


def test_unbind_says_what_stays_bound(fake: FakeMachine, binder: Binder) -> None:
    fake.add(BDF, "nvme")
    fake.add(OTHER, "snd")
    bind_group(binder, BDF)
    binder.check_unbind([BDF])
    binder.unbind([BDF])
    left = "0000:01:00.1 of group 12 stays bound to vfio-pci"
    assert binder.notes_of_unbind([BDF]) == [f"{left}, of no use while {BDF} is bound to nvme"]
    (fake.machine.pci_device(BDF) / "driver").unlink()
    assert binder.notes_of_unbind([BDF]) == [left]
    binder.unbind([OTHER])
    assert binder.notes_of_unbind([OTHER]) == []
