# SPDX-License-Identifier: MIT
"""doctor and list on a simulated machine: each obstacle is named, with what to do about it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from barfs.host.doctor import Doctor
from barfs.host.inventory import Function, functions, to_json, to_table
from barfs.pci import Bdf
from tests.unit.fake_machine import BDF, BRIDGE, NVME, OTHER, PORT, FakeMachine

UNKNOWN_USER = 4_000_000_000


def yes(_node: Path) -> bool:
    return True


def no(_node: Path) -> bool:
    return False


def ready(fake: FakeMachine) -> Path:
    """A machine on which BDF can be mounted."""
    device = fake.add(BDF, "vfio-pci")
    fake.add_vfio_nodes()
    (fake.machine.dev / "fuse").touch()
    return device


def examine(
    fake: FakeMachine,
    bdf: Bdf | None = BDF,
    *,
    uid: int = 0,
    may_open: Callable[[Path], bool] = yes,
    mounted: dict[str, Path] | None = None,
) -> list[str]:
    doctor = Doctor(fake.machine, uid, mounted or {}, may_open)
    lines = list(map(str, doctor.examine(bdf)))
    assert not any("\n" in line for line in lines)
    # Of the machine that the tests run on, and checked by a test of its own.
    return [line for line in lines if "fusermount3" not in line]


def failures(fake: FakeMachine, bdf: Bdf | None = BDF, **choices: object) -> list[str]:
    lines = examine(fake, bdf, **choices)  # type: ignore[arg-type]
    return [line.removeprefix("FAIL  ") for line in lines if line.startswith("FAIL")]


def test_all_is_well(fake: FakeMachine) -> None:
    ready(fake)
    dev = fake.machine.dev
    expected = [
        "ok    IOMMU: on, 1 groups",
        "ok    vfio-pci: loaded, or built in",
        f"ok    {dev}/vfio/vfio: read and write permission",
        "ok    memory lock limit: irrelevant, barfs gives no memory to devices",
        "ok    0000:01:00.0: in IOMMU group 12",
        "ok    0000:01:00.0: bound to vfio-pci",
        "ok    group 12: viable",
        f"ok    {dev}/vfio/12: read and write permission",
        "ok    0000:01:00.0: no process is seen to use it",
        f"ok    {dev}/fuse: read and write permission",
        f"note  user_allow_other is not in {fake.machine.etc}/fuse.conf: only root may mount with "
        "-o allow_other",
    ]
    assert examine(fake) == examine(fake, None) == expected


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        ({"sys/firmware/acpi/tables/DMAR": ""}, "add intel_iommu=on to the kernel's command line"),
        ({"proc/cpuinfo": "vendor_id : GenuineIntel"}, "enable VT-d in the firmware"),
        ({"proc/cpuinfo": "vendor_id : AuthenticAMD"}, "enable AMD-Vi (IOMMU)"),
        ({"proc/cpuinfo": "CPU implementer : 0x41"}, "enable the SMMU in the firmware"),
        ({"proc/cmdline": "quiet iommu=off"}, "remove iommu=off from the kernel's command line"),
        ({}, "enable it in the firmware"),
    ],
)
def test_no_iommu(fake: FakeMachine, files: dict[str, str], advice: str) -> None:
    (fake.machine.sysfs / "kernel/iommu_groups/12/devices").rmdir()
    (fake.machine.sysfs / "kernel/iommu_groups/12").rmdir()
    fake.add(BDF, "nvme", group=False)
    for name, text in files.items():
        path = fake.machine.sysfs.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = failures(fake)
    assert found[0].startswith(f"IOMMU: off: {advice}")
    assert any(line.startswith(f"0000:01:00.0 has no IOMMU group: {advice}") for line in found)


def test_a_group_that_is_made_when_a_driver_is_bound(fake: FakeMachine) -> None:
    (fake.machine.sysfs / "kernel/iommu_groups/12/devices").rmdir()
    (fake.machine.sysfs / "kernel/iommu_groups/12").rmdir()
    fake.add_iommu()
    fake.add(BDF, None, group=False)
    found = examine(fake)
    assert "ok    IOMMU: on; a function gets its group when a driver is bound" in found
    assert "note  0000:01:00.0 has no IOMMU group yet: it gets one when it is bound" in found
    assert not any("IOMMU" in failure for failure in failures(fake))


def test_nothing_is_there(fake: FakeMachine) -> None:
    found = failures(fake, None)
    assert found == [
        "vfio-pci is not loaded: modprobe vfio-pci, as root (barfs bind also does it)",
        f"{fake.machine.dev}/vfio/vfio does not exist: modprobe vfio-pci, as root",
        f"{fake.machine.dev}/fuse does not exist: modprobe fuse, as root",
    ]
    assert "0000:01:00.0: no such PCI device: barfs list shows those present" in failures(fake)


def test_bound_elsewhere(fake: FakeMachine) -> None:
    ready(fake)
    fake.add(OTHER, "nvme")
    assert failures(fake, OTHER) == ["0000:01:00.1 is bound to nvme: barfs bind 0000:01:00.1"]
    assert failures(fake, OTHER, uid=UNKNOWN_USER) == [
        f"0000:01:00.1 is bound to nvme: sudo barfs bind 0000:01:00.1 --user {UNKNOWN_USER}"
    ]
    fake.add(PORT, "pcieport", class_code=BRIDGE)
    assert failures(fake, PORT) == [
        "0000:00:01.0 is a bridge: VFIO supports only the devices behind it"
    ]


def test_what_the_system_needs(fake: FakeMachine) -> None:
    ready(fake)
    fake.disk(fake.add(OTHER, "nvme", class_code=NVME), "nvme0n1", "259:0")
    fake.mount("/", "ext4", "/dev/nvme0n1", "259:0")
    (line,) = failures(fake, OTHER)
    assert line.startswith("0000:01:00.1 is bound to nvme and backs / (ext4 on nvme0n1): ")


def test_not_viable(fake: FakeMachine) -> None:
    ready(fake)
    fake.add(OTHER, "snd")
    assert failures(fake) == [
        "group 12 is not viable: 0000:01:00.1 is bound to snd: "
        "barfs bind --group-members 0000:01:00.0"
    ]


def test_device_nodes_of_another_user(fake: FakeMachine) -> None:
    ready(fake)
    dev = fake.machine.dev
    assert failures(fake, may_open=no, uid=UNKNOWN_USER) == [
        f"no permission to open {dev}/vfio/vfio: chmod 666 {dev}/vfio/vfio, as root",
        f"no permission to open {dev}/vfio/12: sudo barfs bind 0000:01:00.0 --user {UNKNOWN_USER}",
        f"no permission to open {dev}/fuse: chmod 666 {dev}/fuse, as root",
    ]


def test_the_group_does_where_iommufd_is_closed(fake: FakeMachine) -> None:
    device = ready(fake)
    dev = fake.machine.dev
    (device / "vfio-dev/vfio0").mkdir(parents=True)
    (dev / "vfio/devices").mkdir()
    (dev / "vfio/devices/vfio0").touch()
    (dev / "iommu").touch()
    lines = examine(fake, may_open=lambda node: node != dev / "iommu")
    assert f"note  no permission to open {dev}/iommu: barfs uses the group instead" in lines
    assert f"ok    {dev}/vfio/12: read and write permission" in lines
    assert not [line for line in lines if line.startswith("FAIL")]
    lines = examine(fake, may_open=lambda node: node != dev / "vfio/12")
    assert f"ok    {dev}/vfio/devices/vfio0 and {dev}/iommu: read and write permission" in lines
    assert not [line for line in lines if line.startswith("FAIL")]


def test_in_use(fake: FakeMachine) -> None:
    ready(fake)
    fake.process(31, "qemu", fake.machine.dev / "vfio/12")
    assert failures(fake) == ["0000:01:00.0 is in use by process 31 (qemu): end that process first"]
    mounted = {str(BDF): Path("/mnt")}
    assert "ok    0000:01:00.0: mounted on /mnt" in examine(fake, mounted=mounted)


def test_user_allow_other(fake: FakeMachine) -> None:
    ready(fake)
    fake.machine.etc.mkdir()
    (fake.machine.etc / "fuse.conf").write_text("# user_allow_other\nuser_allow_other\n")
    assert any(line.startswith("ok    user_allow_other: set") for line in examine(fake))


def test_no_fusermount(fake: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    ready(fake)
    monkeypatch.setattr("shutil.which", lambda *_words, **_named: None)
    lines = map(str, Doctor(fake.machine, 0, {}, yes).examine())
    assert "FAIL  fusermount3 is not installed: apt install fuse3" in lines


def listed(
    fake: FakeMachine,
    mounted: dict[str, Path] | None = None,
    may_open: Callable[[Path], bool] = yes,
) -> dict[Bdf, Function]:
    return {function.bdf: function for function in functions(fake.machine, mounted or {}, may_open)}


def test_obstacles(fake: FakeMachine) -> None:
    ready(fake)
    assert listed(fake)[BDF].obstacle is None
    assert (
        listed(fake, may_open=no)[BDF].obstacle
        == f"no permission to open {fake.machine.dev}/vfio/12"
    )
    fake.add(PORT, "pcieport", class_code=BRIDGE)
    fake.add(Bdf(0, 2, 0, 0), None, group=False)
    fake.add(Bdf(0, 2, 0, 1), None)
    assert [function.obstacle for function in listed(fake).values()] == [
        "is a bridge",
        None,
        "has no IOMMU group",
        "has no driver",
    ]
    fake.process(31, "qemu", fake.machine.dev / "vfio/12")
    assert listed(fake)[BDF].obstacle == "is in use by process 31 (qemu)"
    assert listed(fake, {str(BDF): Path("/mnt")})[BDF].obstacle is None
    disk = fake.disk(fake.add(OTHER, "nvme"), "nvme0n1", "259:0")
    assert listed(fake)[OTHER].obstacle == "is bound to nvme"
    assert listed(fake)[BDF].obstacle == "group 12 is not viable: 0000:01:00.1 is bound to nvme"
    fake.mount("/", "ext4", f"/dev/{disk.name}", "259:0")
    assert listed(fake)[OTHER].obstacle == "is bound to nvme and backs / (ext4 on nvme0n1)"
    (fake.machine.dev / "vfio/12").unlink()
    assert listed(fake)[BDF].obstacle == "has no VFIO device node"


def test_a_device_node_needs_iommufd_or_the_container_too(fake: FakeMachine) -> None:
    (ready(fake) / "vfio-dev/vfio0").mkdir(parents=True)
    dev = fake.machine.dev
    cdev = dev / "vfio/devices/vfio0"
    cdev.parent.mkdir()
    cdev.touch()

    def seen(*closed: Path) -> tuple[Path | None, str | None]:
        function = listed(fake, may_open=lambda node: node not in closed)[BDF]
        return function.device_node, function.obstacle

    assert seen() == (cdev, None)
    assert seen(dev / "iommu") == (dev / "vfio/12", None)
    assert seen(dev / "vfio/vfio") == (cdev, None)
    assert seen(dev / "iommu", dev / "vfio/vfio") == (
        cdev,
        f"no permission to open {dev}/iommu",
    )


def words(line: str) -> str:
    return " ".join(line.split())


def test_table_and_json(fake: FakeMachine) -> None:
    ready(fake)
    file = fake.machine.usr / "share/misc/pci.ids"
    file.parent.mkdir(parents=True)
    file.write_text("1234  Technical Corp.\n\t11e8  edu\nC 02  Network controller\n")
    fake.add(PORT, "pcieport", class_code=BRIDGE)
    found = list(listed(fake, {str(BDF): Path("/mnt")}).values())
    node = f"{fake.machine.dev}/vfio/12"
    first, second, third = to_table(found).splitlines()
    assert words(first) == "BDF ID CLASS DEVICE DRIVER GROUP NODE AT BOOT MOUNTED IN THE WAY"
    assert words(second) == (
        "0000:00:01.0 1234:11e8 0604 Technical Corp. edu pcieport 12 - - - is a bridge"
    )
    assert words(third) == (
        f"{BDF} 1234:11e8 0200 Network controller Technical Corp. edu vfio-pci 12 {node} - /mnt -"
    )
    assert second.index("pcieport") == third.index("vfio-pci") == first.index("DRIVER")
    assert json.loads(to_json(found))[1] == {
        "bdf": "0000:01:00.0",
        "vendor": 0x1234,
        "vendor_name": "Technical Corp.",
        "device": 0x11E8,
        "device_name": "edu",
        "class": 0x020000,
        "class_name": "Network controller",
        "driver": "vfio-pci",
        "iommu_group": 12,
        "node": node,
        "at_boot": None,
        "mounted": "/mnt",
        "obstacle": None,
    }
    assert words(to_table([])) == words(first)
    assert json.loads(to_json([])) == []
