# SPDX-License-Identifier: MIT
"""What stands in the way of a device, told from a made-up /sys and /dev."""

import pytest

from barfs.errors import DeviceError
from barfs.pci import Bdf
from barfs.vfio import KernelDevice
from tests.unit.fake_machine import BDF, OTHER, PORT, FakeMachine


def failure(fake: FakeMachine) -> str:
    with pytest.raises(DeviceError) as caught:
        KernelDevice(BDF, fake.machine)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_such_device(fake: FakeMachine) -> None:
    assert "no such PCI device" in failure(fake)


def test_no_iommu_group(fake: FakeMachine) -> None:
    fake.add(BDF, "nvme", group=False)
    assert "intel_iommu=on" in failure(fake)


def test_no_vfio_at_all(fake: FakeMachine) -> None:
    fake.add(BDF, "vfio-pci")
    assert failure(fake).endswith("dev/vfio/vfio does not exist; modprobe vfio-pci makes it")


def test_bound_to_another_driver(fake: FakeMachine) -> None:
    fake.add(BDF, "nvme")
    (fake.machine.dev / "vfio/vfio").touch()
    message = failure(fake)
    sysfs = fake.machine.sysfs
    assert message == (
        "0000:01:00.0 is bound to nvme, which is no VFIO driver; bind it: "
        f"echo vfio-pci > {sysfs}/bus/pci/devices/0000:01:00.0/driver_override; "
        f"echo 0000:01:00.0 > {sysfs}/bus/pci/devices/0000:01:00.0/driver/unbind; "
        f"echo 0000:01:00.0 > {sysfs}/bus/pci/drivers_probe"
    )


def test_bound_to_no_driver(fake: FakeMachine) -> None:
    fake.add(BDF, None)
    (fake.machine.dev / "vfio/vfio").touch()
    assert failure(fake).startswith("0000:01:00.0 has no driver; bind it: ")


def test_blockers_are_members_with_host_drivers(fake: FakeMachine) -> None:
    fake.add(BDF, "vfio-pci")
    fake.add(OTHER, "nvme")
    fake.add(PORT, "pcieport")
    variant = fake.add(Bdf(0, 1, 0, 2), "mlx5_vfio_pci")
    (variant / "vfio-dev").mkdir()
    fake.add(Bdf(0, 1, 0, 3), None)
    assert fake.machine.blockers(12) == [("0000:01:00.1", "nvme")]
