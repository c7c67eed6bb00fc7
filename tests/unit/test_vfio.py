# SPDX-License-Identifier: MIT
"""The obstacles to opening a device, found in a simulated /sys and /dev."""

import pytest

from barfs.errors import DeviceError
from barfs.host.advice import bind_command
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
    assert failure(fake).endswith("dev/vfio/vfio does not exist; as root: modprobe vfio-pci")


def test_bound_to_another_driver(fake: FakeMachine) -> None:
    fake.add(BDF, "nvme")
    (fake.machine.dev / "vfio/vfio").touch()
    message = failure(fake)
    assert message == (
        f"0000:01:00.0 is bound to nvme, which is not a VFIO driver; {bind_command(BDF)}"
    )


def test_bound_to_no_driver(fake: FakeMachine) -> None:
    fake.add(BDF, None)
    (fake.machine.dev / "vfio/vfio").touch()
    assert failure(fake) == f"0000:01:00.0 has no driver; {bind_command(BDF)}"


def test_the_command_that_binds_for_a_user() -> None:
    assert bind_command(BDF, 0) == "barfs bind 0000:01:00.0"
    assert bind_command(BDF, 65534) == "sudo barfs bind 0000:01:00.0 --user nobody"
    assert bind_command(BDF, 4_000_000_000) == "sudo barfs bind 0000:01:00.0 --user 4000000000"


def test_bound_to_vfio_without_a_device_node(fake: FakeMachine) -> None:
    fake.add(BDF, "vfio-pci")
    (fake.machine.dev / "vfio/vfio").touch()
    assert failure(fake) == (
        f"0000:01:00.0 is bound to vfio-pci, but {fake.machine.dev}/vfio/12 does not exist; use "
        "-o vfio=cdev, or let udev (for a container, its manager) make it"
    )


def test_blockers_are_members_with_host_drivers(fake: FakeMachine) -> None:
    fake.add(BDF, "vfio-pci")
    fake.add(OTHER, "nvme")
    fake.add(PORT, "pcieport")
    variant = fake.add(Bdf(0, 1, 0, 2), "mlx5_vfio_pci")
    (variant / "vfio-dev").mkdir()
    fake.add(Bdf(0, 1, 0, 3), None)
    assert fake.machine.blockers(12) == [("0000:01:00.1", "nvme")]
