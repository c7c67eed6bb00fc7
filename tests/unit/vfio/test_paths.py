# SPDX-License-Identifier: MIT
"""Which way into VFIO is taken, and the error when it is closed; the ioctls are simulated."""

import contextlib
import errno
import fcntl
import os
import select
import struct
from pathlib import Path
from uuid import UUID

import pytest

from barfs.attached.mounts import mountpoints_by_device
from barfs.backend import HostFile, VfioPath
from barfs.errors import DeviceError, UsageError
from barfs.host.advice import bind_command, bind_group_command, rebind_command
from barfs.opening import DeviceName
from barfs.vfio import KernelDevice
from barfs.vfio.ioctls import (
    VFIO_CHECK_EXTENSION,
    VFIO_DEVICE_BIND_IOMMUFD,
    VFIO_DEVICE_GET_IRQ_INFO,
    VFIO_DEVICE_SET_IRQS,
    VFIO_GROUP_FLAGS_VIABLE,
    VFIO_GROUP_GET_DEVICE_FD,
    VFIO_GROUP_GET_STATUS,
    VFIO_SET_IOMMU,
)
from tests.support.forks import in_child
from tests.unit.fake_machine import BDF, OTHER, FakeMachine

TOKEN = UUID("14d63f20-8445-11ea-8900-1f9ce7d5650d")


class FakeVfio:
    """Answers every ioctl; `errors` names those that fail, `calls` are the ones that were made."""

    def __init__(self) -> None:
        self.errors: dict[int, int] = {}
        self.calls: list[tuple[int, bytes | int]] = []
        self.irqs = {3: 1, 4: 1}
        self.events: dict[int, int] = {}

    def ioctl(self, fd: int, request: int, data: object = 0, _mutate: bool = True) -> int:
        self.calls.append((request, data if isinstance(data, int) else bytes(data)))  # type: ignore[call-overload]
        if request in self.errors:
            raise OSError(self.errors[request], os.strerror(self.errors[request]))
        if request == VFIO_GROUP_GET_DEVICE_FD:
            return os.open("/dev/null", os.O_RDWR)
        if request == VFIO_GROUP_GET_STATUS:
            struct.pack_into("=I", data, 4, VFIO_GROUP_FLAGS_VIABLE)  # type: ignore[arg-type]
        elif request == VFIO_DEVICE_GET_IRQ_INFO:
            (index,) = struct.unpack_from("=I", data, 8)  # type: ignore[arg-type]
            struct.pack_into("=I", data, 12, self.irqs[index])  # type: ignore[arg-type]
        elif request == VFIO_DEVICE_SET_IRQS:
            _, _, index, _, _, event = struct.unpack("=IIIIIi", data)  # type: ignore[arg-type]
            self.events[index] = event
        return 1 if request == VFIO_CHECK_EXTENSION else 0

    def called(self, request: int) -> list[bytes | int]:
        return [data for number, data in self.calls if number == request]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeVfio:
    fake = FakeVfio()
    monkeypatch.setattr(fcntl, "ioctl", fake.ioctl)
    return fake


@pytest.fixture
def fake(tmp_path: Path) -> FakeMachine:
    """A function bound to vfio-pci on a machine with every node there is."""
    fake = FakeMachine(tmp_path)
    (fake.add(BDF, "vfio-pci") / "vfio-dev/vfio3").mkdir(parents=True)
    (fake.machine.dev / "vfio/devices").mkdir()
    for node in ("iommu", "vfio/vfio", "vfio/12", "vfio/devices/vfio3"):
        (fake.machine.dev / node).touch()
    return fake


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def way(kernel: FakeVfio) -> str:
    if kernel.called(VFIO_DEVICE_BIND_IOMMUFD):
        return "cdev"
    return "group" if kernel.called(VFIO_GROUP_GET_DEVICE_FD) else "none"


def opened(fake: FakeMachine, path: VfioPath = "auto", token: UUID | None = None) -> None:
    before = descriptors()
    KernelDevice(BDF, fake.machine, path=path, token=token).close()
    assert descriptors() == before


def failure(fake: FakeMachine, path: VfioPath, token: UUID | None = None) -> str:
    before = descriptors()
    with pytest.raises(DeviceError) as caught:
        KernelDevice(BDF, fake.machine, path=path, token=token)
    assert descriptors() == before
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_auto_prefers_the_character_device(fake: FakeMachine, kernel: FakeVfio) -> None:
    opened(fake)
    assert way(kernel) == "cdev"
    (data,) = kernel.called(VFIO_DEVICE_BIND_IOMMUFD)
    assert isinstance(data, bytes)
    assert struct.unpack("=IIiI", data)[:2] == (16, 0)


def test_vpd_and_slot_are_those_of_sysfs(fake: FakeMachine, kernel: FakeVfio) -> None:
    def found() -> tuple[dict[str, HostFile], str | None]:
        with contextlib.closing(KernelDevice(BDF, fake.machine)) as device:
            return dict(device.host_files()), device.slot()

    assert found() == ({}, None)
    vpd = fake.machine.pci_device(BDF) / "vpd"
    vpd.write_bytes(bytes(32768))
    for name, address in (("3", "0000:01:00"), ("4", "0000:02:00")):
        slot = fake.machine.sysfs / "bus/pci/slots" / name
        slot.mkdir(parents=True)
        (slot / "address").write_text(f"{address}\n")
    assert found() == ({"vpd": HostFile(vpd, 32768)}, "3")


@pytest.mark.parametrize("missing", ["iommu", "vfio/devices/vfio3"])
def test_auto_falls_back_to_the_group(fake: FakeMachine, kernel: FakeVfio, missing: str) -> None:
    (fake.machine.dev / missing).unlink()
    opened(fake)
    assert way(kernel) == "group"


def test_auto_takes_what_the_user_may_open(
    fake: FakeMachine, kernel: FakeVfio, monkeypatch: pytest.MonkeyPatch
) -> None:
    iommu = fake.machine.dev / "iommu"
    monkeypatch.setattr(os, "access", lambda node, *_rights, **_ids: node != iommu)
    opened(fake)
    assert way(kernel) == "group"


@pytest.mark.parametrize("path", ["cdev", "group"])
def test_a_child_holds_nothing_and_opens_anew(
    fake: FakeMachine, kernel: FakeVfio, path: VfioPath
) -> None:
    device = KernelDevice(BDF, fake.machine, path=path)
    node = {"cdev": "vfio/devices/vfio3", "group": "vfio/12"}[path]
    others = {"cdev": "iommu", "group": "vfio/vfio"}[path]

    def holders() -> list[int]:
        links = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        return [links.count(str(fake.machine.dev / name)) for name in (node, others)]

    def work() -> list[list[int]]:
        found = [holders()]
        device.close()
        own = KernelDevice(BDF, fake.machine, path=path)
        found.append(holders())
        own.close()
        return [*found, holders()]

    assert in_child(work) == [[0, 0], [1, 1], [0, 0]]
    assert holders() == [1, 1]
    device.close()
    assert holders() == [0, 0]


@pytest.mark.parametrize(("path", "expected"), [("cdev", "cdev"), ("group", "group")])
def test_a_way_by_name(fake: FakeMachine, kernel: FakeVfio, path: VfioPath, expected: str) -> None:
    opened(fake, path)
    assert way(kernel) == expected


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("iommu", "dev/iommu does not exist; modprobe iommufd, or use -o vfio=group"),
        ("vfio/devices/vfio3", "built without VFIO_DEVICE_CDEV; use -o vfio=group"),
    ],
)
def test_a_node_that_is_missing(fake: FakeMachine, missing: str, message: str) -> None:
    (fake.machine.dev / missing).unlink()
    assert failure(fake, "cdev").endswith(message)


def test_no_driver_no_character_device(fake: FakeMachine) -> None:
    device = fake.machine.pci_device(BDF)
    (device / "vfio-dev/vfio3").rmdir()
    (device / "vfio-dev").rmdir()
    (device / "driver").unlink()
    assert f"has no driver; {bind_command(BDF)}" in failure(fake, "cdev")


@pytest.mark.parametrize("node", ["iommu", "vfio/devices/vfio3"])
def test_the_node_that_may_not_be_opened_is_named(
    fake: FakeMachine, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    refused = fake.machine.dev / node
    real = os.open

    def refuse(path: Path, flags: int) -> int:
        if path == refused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    remedy = f"as root: chown {os.getuid()} {refused}, or use -o vfio=group"
    if node != "iommu":
        remedy = bind_command(BDF)
    assert failure(fake, "cdev") == f"no permission to open {refused}; {remedy}"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errno.EINVAL, "vfio3 is in use by another process; fuser -v "),
        (errno.EBUSY, "vfio/12 is in use by another process; fuser -v "),
        (errno.EPERM, "iommufd.allow_unsafe_interrupts=1"),
        (errno.EACCES, "name it 0000:01:00.0,vf_token=UUID"),
        (errno.ENODEV, f"is being unbound from vfio-pci; {bind_command(BDF)}"),
        (errno.ENOMEM, "cannot be bound to iommufd: out of memory"),
    ],
)
def test_what_a_refused_bind_means(
    fake: FakeMachine, kernel: FakeVfio, error: int, message: str
) -> None:
    kernel.errors[VFIO_DEVICE_BIND_IOMMUFD] = error
    assert message in failure(fake, "cdev")


def test_a_group_that_is_not_viable_names_its_member(fake: FakeMachine, kernel: FakeVfio) -> None:
    fake.add(OTHER, "nvme")
    kernel.errors[VFIO_DEVICE_BIND_IOMMUFD] = errno.EBUSY
    assert failure(fake, "cdev") == (
        "group 12 is not viable: 0000:01:00.1 is bound to nvme; "
        + bind_group_command("0000:01:00.1")
    )


def test_a_token_over_the_group(fake: FakeMachine, kernel: FakeVfio) -> None:
    opened(fake, "group", TOKEN)
    assert kernel.called(VFIO_GROUP_GET_DEVICE_FD) == [f"0000:01:00.0 vf_token={TOKEN}\0".encode()]


def test_a_token_over_the_character_device(fake: FakeMachine, kernel: FakeVfio) -> None:
    opened(fake, "cdev", TOKEN)
    (data,) = kernel.called(VFIO_DEVICE_BIND_IOMMUFD)
    assert isinstance(data, bytes)
    size, flags, _iommufd, _devid, address = struct.unpack("=IIiIQ", data)
    assert (size, flags) == (24, 1)
    assert address


def test_a_token_that_the_character_device_does_not_know(
    fake: FakeMachine, kernel: FakeVfio
) -> None:
    kernel.errors[VFIO_DEVICE_BIND_IOMMUFD] = errno.EINVAL
    assert failure(fake, "cdev", TOKEN).endswith("use -o vfio=group")
    opened(fake, "auto", TOKEN)
    assert way(kernel) == "cdev"
    assert kernel.called(VFIO_GROUP_GET_DEVICE_FD)


@pytest.mark.parametrize(
    ("token", "message"),
    [(None, "can be opened only with a token"), (TOKEN, "must be the one with which its physical")],
)
def test_a_virtual_function_without_its_token(
    fake: FakeMachine, kernel: FakeVfio, token: UUID | None, message: str
) -> None:
    kernel.errors[VFIO_GROUP_GET_DEVICE_FD] = errno.EACCES
    assert message in failure(fake, "group", token)


def noiommu(fake: FakeMachine, parameter: str | None) -> None:
    """A machine without an IOMMU."""
    (fake.machine.dev / "vfio/12").unlink()
    (fake.machine.dev / "vfio/noiommu-12").touch()
    (fake.machine.dev / "iommu").unlink()
    if parameter is not None:
        folder = fake.machine.sysfs / "module/vfio/parameters"
        folder.mkdir(parents=True)
        (folder / "enable_unsafe_noiommu_mode").write_text(f"{parameter}\n")


def test_noiommu_only_by_name(
    fake: FakeMachine, kernel: FakeVfio, caplog: pytest.LogCaptureFixture
) -> None:
    noiommu(fake, "Y")
    assert "-o vfio=noiommu opens " in failure(fake, "auto")
    opened(fake, "noiommu")
    assert kernel.called(VFIO_SET_IOMMU) == [8]
    (record,) = caplog.records
    assert "its DMA can reach all memory" in record.message


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (None, "this kernel was built without VFIO_NOIOMMU"),
        ("N", "noiommu is off; as root: echo Y > "),
    ],
)
def test_noiommu_that_is_off(fake: FakeMachine, parameter: str | None, message: str) -> None:
    noiommu(fake, parameter)
    assert message in failure(fake, "noiommu")


def test_noiommu_that_came_after_the_binding(fake: FakeMachine) -> None:
    noiommu(fake, "N")
    assert failure(fake, "noiommu").endswith(f"; then {rebind_command(BDF)}")
    fake.machine.noiommu_parameter.write_text("Y\n")
    (fake.machine.pci_device(BDF) / "iommu_group").unlink()
    assert failure(fake, "noiommu") == (
        f"{BDF} was bound before noiommu was switched on; {rebind_command(BDF)}"
    )
    (fake.machine.pci_device(BDF) / "vfio-dev/vfio3").rmdir()
    (fake.machine.pci_device(BDF) / "vfio-dev").rmdir()
    (fake.machine.pci_device(BDF) / "driver").unlink()
    assert failure(fake, "noiommu") == f"{BDF} has no driver; {bind_command(BDF)}"


def test_noiommu_where_there_is_an_iommu(fake: FakeMachine) -> None:
    noiommu(fake, "Y")
    (fake.machine.dev / "vfio/noiommu-12").rename(fake.machine.dev / "vfio/12")
    assert "is behind an IOMMU, in group 12; leave out vfio=noiommu" in failure(fake, "noiommu")


def test_noiommu_without_the_capability(fake: FakeMachine, kernel: FakeVfio) -> None:
    noiommu(fake, "Y")
    kernel.errors[VFIO_GROUP_GET_DEVICE_FD] = errno.EPERM
    assert "CAP_SYS_RAWIO" in failure(fake, "noiommu")


def test_a_request_and_an_error_are_signals(fake: FakeMachine, kernel: FakeVfio) -> None:
    before = descriptors()
    device = KernelDevice(BDF, fake.machine)
    found = {signal.kind: signal for signal in device.signals()}
    assert set(found) == {"requested", "error"}
    for signal, index in ((found["requested"], 4), (found["error"], 3)):
        poll = select.poll()
        poll.register(signal.fd, signal.events)
        assert not poll.poll(0)
        os.eventfd_write(kernel.events[index], 1)
        assert poll.poll(0)
    device.close()
    device.close()
    assert device.signals() == ()
    assert descriptors() == before


def test_a_device_without_these_interrupts(fake: FakeMachine, kernel: FakeVfio) -> None:
    kernel.irqs = {3: 0, 4: 1}
    kernel.errors[VFIO_DEVICE_SET_IRQS] = errno.EINVAL
    before = descriptors()
    device = KernelDevice(BDF, fake.machine)
    assert device.signals() == ()
    device.close()
    assert descriptors() == before


@pytest.mark.usefixtures("kernel")
def test_what_sysfs_has_of_a_function(fake: FakeMachine) -> None:
    folder = fake.machine.pci_device(BDF)
    (folder / "modalias").write_text("pci:v00001234d000011E8\n")
    (folder / "numa_node").write_text("1\n")
    device = KernelDevice(BDF, fake.machine)
    try:
        assert device.attributes() == {
            "modalias": "pci:v00001234d000011E8\n",
            "numa_node": "1\n",
        }
        assert device.links() == {"driver": "drivers/vfio-pci", "iommu_group": "iommu_groups/12"}
        (folder / "label").write_bytes(b"Slot \xc9\r\x1b\n")
        assert os.fsencode(device.attributes()["label"]) == b"Slot \xc9\r\x1b\n"
        (folder / "driver").unlink()
        assert device.links() == {"iommu_group": "iommu_groups/12"}
    finally:
        device.close()


def test_a_token_in_a_devices_name() -> None:
    name = DeviceName.parse(f"01:00.0,vf_token={TOKEN}")
    assert (name.bdf, name.token, name.source) == (BDF, TOKEN, "0000:01:00.0")
    assert name.shown == "01:00.0"
    with pytest.raises(UsageError, match=r"^vf_token must be a UUID like [0-9a-f-]+, not '1'$"):
        DeviceName.parse("01:00.0,vf_token=1")
    with pytest.raises(UsageError, match="is not a device"):
        DeviceName.parse("01:00.0,token=1")


def test_a_path_in_sysfs_is_a_devices_name() -> None:
    """mount(8) makes it of an address where there is a file of that name."""
    path = "/sys/devices/pci0000:00/0000:00:1c.0/0000:01:00.0"
    name = DeviceName.parse(path)
    assert (name.bdf, name.source, name.shown) == (BDF, "0000:01:00.0", path)
    for other in ("/sys/devices/pci0000:00", "/srv/0000:01:00.0"):
        with pytest.raises(UsageError, match="is not a device"):
            DeviceName.parse(other)


@pytest.mark.parametrize(
    ("source", "device"),
    [
        ("01:00.0", "0000:01:00.0"),
        ("0000:01:00.0+3", "0000:01:00.0"),
        ("/sys/devices/pci0000:00/0000:01:00.0", "0000:01:00.0"),
        ("vfio-user:/run/x.sock,bdf=01:00.0", "0000:01:00.0"),
        ("vfio-user:/run/01:00.0", "vfio-user:/run/01:00.0"),
        ("demo", "demo"),
    ],
)
def test_a_mount_that_does_not_answer_shows_its_device(
    tmp_path: Path, source: str, device: str
) -> None:
    (tmp_path / "self").mkdir()
    line = f"9 1 0:40 / /nowhere/at/all rw - fuse.barfs {source} rw\n"
    (tmp_path / "self/mountinfo").write_text(line)
    assert mountpoints_by_device(tmp_path) == {device: Path("/nowhere/at/all")}
