# SPDX-License-Identifier: MIT
"""`bind --persist` and `--group-members` on a real kernel with a real udev.

A device that is removed and found again, as at a boot, comes back bound, with its node's owner.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from barfs.cli import main
from tests.support import require, wait_until
from tests.support.guest import (
    VFIO_PCI,
    bind,
    driver,
    find_all,
    iommu_group,
    rescan,
    vfio_path,
)

NOBODY = 65534
PCI = Path("/sys/bus/pci")
RULES = Path("/etc/udev/rules.d")
OTHER_DRIVER = "uio_pci_generic"


@pytest.fixture(scope="module", autouse=True)
def udev() -> Iterator[None]:
    """udev runs in the guest; its rules are ours for these tests."""
    running = subprocess.run(["udevadm", "control", "--ping"], check=False).returncode == 0
    require("vm", running, "udev does not run in this guest")
    subprocess.run(["mount", "-t", "tmpfs", "rules", RULES], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", RULES], check=True)
        settle()


def settle() -> None:
    subprocess.run(["udevadm", "control", "--reload"], check=True)
    subprocess.run(["udevadm", "settle"], check=True)


@pytest.fixture
def edu() -> Iterator[str]:
    """An edu without a driver; afterwards it is with vfio-pci, and no rule is left."""
    bdf = find_all("edu")[1]
    bind(bdf, None)
    try:
        yield bdf
    finally:
        for rule in RULES.iterdir():
            rule.unlink()
        settle()
        bind(bdf, VFIO_PCI)


def come_back(bdf: str) -> None:
    """What a boot is to the device: it is found, and has no driver yet."""
    (PCI / "devices" / bdf / "remove").write_text("1")
    rescan()
    subprocess.run(["udevadm", "settle"], check=True)


def node(bdf: str) -> Path:
    """The device node of the function's group, as it is now: groups get new numbers."""
    return Path("/dev/vfio", iommu_group(bdf))


def listed(bdf: str, capsys: pytest.CaptureFixture[str]) -> object:
    capsys.readouterr()
    assert main(["list", "--json"]) == 0
    found = {entry["bdf"]: entry["at_boot"] for entry in json.loads(capsys.readouterr().out)}
    return found[bdf]


def test_it_comes_back_bound(edu: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bind", "--persist", "--user", str(NOBODY), edu]) == 0
    assert f"{edu} is bound to {VFIO_PCI}, at boot too: /dev/vfio/" in capsys.readouterr().out
    assert listed(edu, capsys) == {"driver": VFIO_PCI, "by": "barfs"}
    come_back(edu)
    assert driver(edu) == VFIO_PCI
    if vfio_path() != "noiommu":
        wait_until(lambda: node(edu).stat().st_uid == NOBODY, "the owner")

    assert main(["unbind", edu]) == 0
    assert listed(edu, capsys) is None
    come_back(edu)
    assert driver(edu) is None


def test_it_is_taken_from_a_driver_that_is_first(edu: str) -> None:
    subprocess.run(["modprobe", "-q", OTHER_DRIVER], check=False)
    new_id = PCI / "drivers" / OTHER_DRIVER / "new_id"
    if not new_id.exists():
        pytest.skip(f"this kernel has no {OTHER_DRIVER}")
    assert main(["bind", "--persist", edu]) == 0
    (PCI / "devices" / edu / "remove").write_text("1")
    new_id.write_text("1234 11e8")  # now it takes every edu, as a built-in driver would
    try:
        rescan()
        subprocess.run(["udevadm", "settle"], check=True)
        assert driver(edu) == VFIO_PCI
        assert main(["unbind", edu]) == 0
        assert driver(edu) == OTHER_DRIVER
    finally:
        (new_id.parent / "remove_id").write_text("1234 11e8")
        bind(edu, None)


def test_another_card_in_its_slot_is_left_alone(edu: str) -> None:
    assert main(["bind", "--persist", edu]) == 0
    (rule,) = RULES.iterdir()
    rule.write_text(rule.read_text().replace("0x11e8", "0x11e9"))
    settle()
    come_back(edu)
    assert driver(edu) is None


def test_driverctl_goes_first(edu: str) -> None:
    assert main(["bind", "--persist", edu]) == 0
    (rule,) = RULES.iterdir()
    # Its folder is not ours to write here; any file that is there will do.
    rule.write_text(rule.read_text().replace(f"/etc/driverctl.d/pci-{edu}", "/etc/passwd"))
    settle()
    come_back(edu)
    assert driver(edu) is None


def test_a_group_is_bound_as_a_whole(capsys: pytest.CaptureFixture[str]) -> None:
    if vfio_path() == "noiommu":
        pytest.skip("without an IOMMU every device is a group of its own")
    # The functions of q35's LPC bridge share a group.
    bridge, disk, bus = "0000:00:1f.0", "0000:00:1f.2", "0000:00:1f.3"
    before = [driver(bdf) for bdf in (bridge, disk, bus)]
    assert main(["bind", "--group-members", bus]) == 0
    out, errors = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == [bus, disk]
    assert f"{bridge} of group {iommu_group(bus)} is a bridge, and stays as it is" in errors
    # VFIO takes no bridge, not even to free its group from the bridge's driver.
    assert f"echo {bridge} > /sys/bus/pci/drivers/lpc_ich/unbind" in errors
    assert node(bus).exists()
    assert main(["unbind", bus]) == 0
    assert (
        f"{disk} of group {iommu_group(bus)} stays bound to {VFIO_PCI}" in capsys.readouterr().err
    )
    assert main(["unbind", disk]) == 0
    assert [driver(bdf) for bdf in (bridge, disk, bus)] == before
