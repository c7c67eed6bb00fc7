# SPDX-License-Identifier: MIT
"""bind and unbind on a simulated machine: refusals, writes, and the way back."""

import json

import pytest

from barfs.errors import BarfsError, DeviceError, UsageError
from barfs.host.advice import bind_group_command
from barfs.host.binding import Binder
from barfs.host.steps import Owner
from barfs.pci import Bdf
from tests.unit.fake_machine import BDF, BRIDGE, NVME, OTHER, PORT, FakeKernel, FakeMachine

ALICE = Owner(uid=1000)


@pytest.fixture
def kernel(fake: FakeMachine) -> FakeKernel:
    return FakeKernel(fake)


@pytest.fixture
def binder(fake: FakeMachine, kernel: FakeKernel) -> Binder:
    binder = Binder(fake.machine, kernel)
    binder.device_node_time = 0.05
    return binder


def bind(binder: Binder, *bdfs: Bdf, driver: str = "vfio-pci", owner: Owner | None = None) -> None:
    binder.check_bind(bdfs, driver)
    binder.bind(bdfs, driver, owner or Owner())


def unbind(binder: Binder, *bdfs: Bdf) -> None:
    binder.check_unbind(bdfs)
    binder.unbind(bdfs)


def state(fake: FakeMachine, bdf: Bdf = BDF) -> tuple[str | None, str | None]:
    return fake.machine.driver(bdf), fake.machine.override(bdf)


def refusal(binder: Binder, *bdfs: Bdf, driver: str = "vfio-pci") -> str:
    with pytest.raises(BarfsError) as caught:
        binder.check_bind(bdfs, driver)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_at_a_time(fake: FakeMachine, kernel: FakeKernel, binder: Binder) -> None:
    fake.add(BDF, "nvme")
    other = Binder(fake.machine, kernel)
    with binder.exclusive():
        with pytest.raises(DeviceError, match="another barfs bind or unbind is running"):
            other.exclusive().__enter__()
        bind(binder, BDF)
    with other.exclusive():
        unbind(other, BDF)


def test_bind_and_unbind_give_the_driver_back(
    fake: FakeMachine, kernel: FakeKernel, binder: Binder
) -> None:
    fake.add(BDF, "nvme")
    bind(binder, BDF)
    assert state(fake) == ("vfio-pci", "vfio-pci")
    saved = fake.machine.run / f"{BDF}.json"
    assert json.loads(saved.read_text())["before"] == {"driver": "nvme", "override": None}
    unbind(binder, BDF)
    assert state(fake) == ("nvme", None)
    assert not list(fake.machine.run.iterdir())


def test_what_had_no_driver_has_none_again(fake: FakeMachine, binder: Binder) -> None:
    fake.add(BDF, None)
    bind(binder, BDF)
    unbind(binder, BDF)
    assert state(fake) == (None, None)


def test_an_override_comes_back(fake: FakeMachine, binder: Binder) -> None:
    device = fake.add(BDF, "pci-stub")
    (device / "driver_override").write_text("pci-stub\n")
    bind(binder, BDF)
    unbind(binder, BDF)
    assert state(fake) == ("pci-stub", "pci-stub")


def test_from_one_vfio_driver_to_another_and_back_to_the_first(
    fake: FakeMachine, binder: Binder
) -> None:
    fake.add(BDF, "nvme")
    fake.add_driver("my-vfio-pci")
    bind(binder, BDF)
    bind(binder, BDF, driver="my-vfio-pci")
    assert state(fake) == ("my-vfio-pci", "my-vfio-pci")
    unbind(binder, BDF)
    assert state(fake) == ("nvme", None)


def test_binding_again_writes_nothing(
    fake: FakeMachine, kernel: FakeKernel, binder: Binder
) -> None:
    fake.add(BDF, "nvme")
    bind(binder, BDF)
    kernel.ran.clear()
    bind(binder, BDF)
    assert kernel.ran == []
    unbind(binder, BDF)
    assert state(fake) == ("nvme", None)


def test_a_saved_binding_that_was_changed_by_hand_is_not_used(
    fake: FakeMachine, binder: Binder
) -> None:
    fake.add(BDF, "nvme")
    bind(binder, BDF)
    device = fake.machine.pci_device(BDF)
    (device / "driver").unlink()  # it was unbound by hand
    (device / "vfio-dev").rmdir()
    (device / "driver_override").write_text("(null)\n")
    bind(binder, BDF)
    unbind(binder, BDF)
    assert state(fake) == (None, None)


def test_unbind_of_what_was_bound_by_hand_lets_the_kernel_choose(
    fake: FakeMachine, binder: Binder
) -> None:
    device = fake.add(BDF, "vfio-pci")
    (device / "driver_override").write_text("vfio-pci\n")
    fake.add_driver("native")
    unbind(binder, BDF)
    assert state(fake) == ("native", None)


def test_a_broken_file_is_named(fake: FakeMachine, binder: Binder) -> None:
    fake.add(BDF, "nvme")
    bind(binder, BDF)
    (fake.machine.run / f"{BDF}.json").write_text("{")
    with pytest.raises(DeviceError, match=r"0000:01:00.0.json cannot be read .*; remove it"):
        unbind(binder, BDF)
    assert state(fake) == ("vfio-pci", "vfio-pci")


def test_the_nodes_go_to_the_user_and_open_to_a_group(
    fake: FakeMachine, kernel: FakeKernel, binder: Binder
) -> None:
    device = fake.add(BDF, "vfio-pci")
    fake.add_vfio_nodes()
    (device / "vfio-dev/vfio3").mkdir(parents=True)
    (fake.machine.dev / "vfio/devices").mkdir()
    (fake.machine.dev / "vfio/devices/vfio3").touch()
    bind(binder, BDF, owner=ALICE)
    bind(binder, BDF, owner=Owner(gid=7))
    dev = fake.machine.dev
    assert [str(own) for own in kernel.owners] == [
        f"chown 1000 {dev}/vfio/devices/vfio3",
        f"chown 1000 {dev}/vfio/12",
        f"chown :7 {dev}/vfio/devices/vfio3; chmod 660 {dev}/vfio/devices/vfio3",
        f"chown :7 {dev}/vfio/12; chmod 660 {dev}/vfio/12",
    ]
    assert binder.notes([BDF], Owner()) == []
    assert binder.notes([BDF], ALICE) == [
        f"user 1000 has no permission to open {dev}/iommu; barfs uses {dev}/vfio/12 instead"
    ]


def test_a_dry_run_gives_the_writes_and_does_nothing(
    fake: FakeMachine, kernel: FakeKernel, binder: Binder
) -> None:
    fake.add(BDF, "nvme")
    fake.add(OTHER, None)
    sysfs, dev = fake.machine.sysfs, fake.machine.dev
    steps = list(map(str, binder.rehearse_bind([BDF, OTHER], "vfio-pci", ALICE)))
    assert steps == [
        "modprobe vfio-pci",
        f"echo vfio-pci > {sysfs}/bus/pci/devices/0000:01:00.0/driver_override",
        f"echo 0000:01:00.0 > {sysfs}/bus/pci/drivers/nvme/unbind",
        f"echo 0000:01:00.0 > {sysfs}/bus/pci/drivers_probe",
        f"chown 1000 {dev}/vfio/12",
        f"echo vfio-pci > {sysfs}/bus/pci/devices/0000:01:00.1/driver_override",
        f"echo 0000:01:00.1 > {sysfs}/bus/pci/drivers_probe",
    ]
    assert (state(fake), state(fake, OTHER)) == (("nvme", None), (None, None))
    assert not fake.machine.run.exists()
    assert kernel.ran == []
    bind(binder, BDF, OTHER, owner=ALICE)
    assert list(dict.fromkeys(kernel.ran)) == steps


def test_a_dry_run_of_unbind(fake: FakeMachine, kernel: FakeKernel, binder: Binder) -> None:
    fake.add(BDF, "nvme")
    bind(binder, BDF)
    kernel.ran.clear()
    steps = list(map(str, binder.rehearse_unbind([BDF])))
    device = fake.machine.pci_device(BDF)
    assert steps == [
        f"echo nvme > {device}/driver_override",
        f"echo 0000:01:00.0 > {fake.machine.sysfs}/bus/pci/drivers/vfio-pci/unbind",
        f"echo 0000:01:00.0 > {fake.machine.sysfs}/bus/pci/drivers_probe",
        f"echo > {device}/driver_override",
    ]
    assert kernel.ran == []
    unbind(binder, BDF)
    assert kernel.ran == steps


def test_a_driver_that_does_not_probe_changes_nothing(
    fake: FakeMachine, kernel: FakeKernel, binder: Binder
) -> None:
    fake.add(BDF, "nvme")
    fake.add(OTHER, "nvme")
    kernel.refuses.add("vfio-pci")
    with pytest.raises(DeviceError, match="drivers_probe: Invalid argument; dmesg may say why"):
        bind(binder, BDF)
    assert state(fake) == ("nvme", None)
    assert not list(fake.machine.run.iterdir())


def test_all_or_none(fake: FakeMachine, kernel: FakeKernel, binder: Binder) -> None:
    fake.add(BDF, "nvme")
    device = fake.add(OTHER, "e1000e")
    (device / "driver_override").write_text("e1000e\n")
    bind(binder, BDF)
    kernel.modules.clear()
    fake.machine.pci_device(PORT).mkdir()
    with pytest.raises(DeviceError, match="modprobe my-vfio: no such module"):
        bind(binder, BDF, OTHER, driver="my-vfio")
    fake.add_driver("my-vfio")
    kernel.makes_nodes = False
    with pytest.raises(
        DeviceError, match=r"0000:01:00\.1 is bound to my-vfio, but got no device node"
    ):
        bind(binder, OTHER, BDF, driver="my-vfio")
    assert state(fake) == ("vfio-pci", "vfio-pci")
    assert state(fake, OTHER) == ("e1000e", "e1000e")
    (saved,) = fake.machine.run.iterdir()
    assert json.loads(saved.read_text())["driver"] == "vfio-pci"


def test_a_rollback_that_fails_says_so(
    fake: FakeMachine, kernel: FakeKernel, binder: Binder
) -> None:
    fake.add(BDF, "nvme")
    kernel.refuses |= {"vfio-pci", "nvme"}
    with pytest.raises(DeviceError, match=r"Invalid argument; .*; and undoing it failed: "):
        bind(binder, BDF)


def test_an_unbind_that_fails_leaves_it_with_vfio(
    fake: FakeMachine, kernel: FakeKernel, binder: Binder
) -> None:
    fake.add(BDF, "nvme")
    bind(binder, BDF)
    kernel.refuses.add("nvme")
    with pytest.raises(DeviceError, match="Invalid argument"):
        unbind(binder, BDF)
    assert state(fake) == ("vfio-pci", "vfio-pci")
    kernel.refuses.clear()
    unbind(binder, BDF)
    assert state(fake) == ("nvme", None)


def test_without_root_nothing_is_written(
    fake: FakeMachine, kernel: FakeKernel, binder: Binder
) -> None:
    fake.add(BDF, "nvme")
    kernel.root = False
    with pytest.raises(
        DeviceError, match=r"must run as root, .*; sudo barfs bind \.\.\., or --dry-run"
    ):
        bind(binder, BDF)
    assert state(fake) == ("nvme", None)
    assert kernel.ran == []


def test_refuses_what_is_not_there(binder: Binder) -> None:
    assert "0000:01:00.0: no such PCI device" in refusal(binder, BDF)
    with pytest.raises(DeviceError, match="no such PCI device"):
        binder.check_unbind([BDF])


def test_refuses_a_bridge_by_class_and_by_header(fake: FakeMachine, binder: Binder) -> None:
    fake.add(PORT, "pcieport", class_code=BRIDGE)
    (fake.add(BDF, None) / "config").write_bytes(bytes(14) + b"\x81" + bytes(49))
    assert refusal(binder, PORT).startswith("0000:00:01.0 is a bridge")
    assert refusal(binder, BDF).startswith("0000:01:00.0 is a bridge")


def test_refuses_without_an_iommu_group_unless_vfio_takes_it(
    fake: FakeMachine, binder: Binder
) -> None:
    fake.add(BDF, "nvme", group=False)
    assert "has no IOMMU group; enable it in the firmware (VT-d" in refusal(binder, BDF)
    parameters = fake.machine.sysfs / "module/vfio/parameters"
    parameters.mkdir(parents=True)
    (parameters / "enable_unsafe_noiommu_mode").write_text("Y\n")
    binder.check_bind([BDF], "vfio-pci")


def test_binds_what_gets_its_group_when_it_is_probed(
    fake: FakeMachine, kernel: FakeKernel, binder: Binder
) -> None:
    fake.add(BDF, None, group=False)
    assert "has no IOMMU group" in refusal(binder, BDF)
    fake.add_iommu()
    kernel.groups_at_probe = True
    assert "/vfio/$(basename $(readlink " in str(binder.rehearse_bind([BDF], "vfio-pci", ALICE))
    bind(binder, BDF)
    assert state(fake) == ("vfio-pci", "vfio-pci")
    assert fake.machine.find_iommu_group(BDF) == 12


def test_a_function_that_the_iommu_does_not_serve(fake: FakeMachine, binder: Binder) -> None:
    fake.add_iommu()
    fake.add(BDF, None, group=False)
    with pytest.raises(DeviceError, match="the machine's IOMMU does not serve it"):
        bind(binder, BDF)
    assert state(fake) == (None, None)
    fake.add(OTHER, "nvme", group=False)
    assert "the machine's IOMMU does not serve it" in refusal(binder, OTHER)


def test_refuses_what_the_system_depends_on_unless_forced(
    fake: FakeMachine, binder: Binder
) -> None:
    device = fake.add(BDF, "nvme", class_code=NVME)
    fake.disk(device, "nvme0n1", "259:0")
    fake.mount("/", "ext4", "/dev/nvme0n1", "259:0")
    message = refusal(binder, BDF)
    assert message == (
        "0000:01:00.0 backs / (ext4 on nvme0n1); free it first, or lose it with --force"
    )
    binder.check_bind([BDF], "vfio-pci", force=True)


def test_refuses_what_a_process_has_open(fake: FakeMachine, binder: Binder) -> None:
    fake.add(BDF, "vfio-pci")
    fake.add_vfio_nodes()
    fake.process(77, "qemu", fake.machine.dev / "vfio/12")
    wanted = r"0000:01:00\.0 is in use: process 77 \(qemu\) has .*/vfio/12 open"
    with pytest.raises(DeviceError, match=wanted):
        binder.check_unbind([BDF])
    with pytest.raises(DeviceError, match=wanted):
        binder.check_bind([BDF], "my-vfio")
    binder.check_bind([BDF], "vfio-pci")  # it stays where it is


def test_refuses_to_unbind_what_vfio_does_not_have(fake: FakeMachine, binder: Binder) -> None:
    fake.add(BDF, "nvme")
    with pytest.raises(DeviceError, match="is bound to nvme, so it cannot be unbound from VFIO"):
        binder.check_unbind([BDF])


@pytest.mark.parametrize("driver", ["", "../x", "a b", "-r"])
def test_refuses_what_names_no_driver(fake: FakeMachine, binder: Binder, driver: str) -> None:
    fake.add(BDF, None)
    with pytest.raises(UsageError, match="driver must be a name like vfio-pci, not "):
        binder.check_bind([BDF], driver)


def test_says_when_the_group_is_not_viable(fake: FakeMachine, binder: Binder) -> None:
    fake.add(BDF, "nvme")
    fake.add(OTHER, "snd")
    bind(binder, BDF)
    assert binder.notes([BDF], Owner()) == [
        f"group 12 is not viable yet: 0000:01:00.1 is bound to snd; {bind_group_command(BDF)}"
    ]
