# SPDX-License-Identifier: MIT
"""Virtual functions of a physical one that vfio-pci has: they open with its token only."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from barfs import DeviceError
from barfs import open as open_device
from tests.support.guest import VFIO_PCI, bind, find_all, find_physical_function

from .mounts import layout_rows, mounted

TOKEN = UUID("14d63f20-8445-11ea-8900-1f9ce7d5650d")
OTHER = UUID("00000000-8445-11ea-8900-1f9ce7d5650d")

_PCI = Path("/sys/bus/pci/devices")
_ENABLE = Path("/sys/module/vfio_pci/parameters/enable_sriov")


@pytest.fixture(scope="module")
def virtual_function() -> Iterator[str]:
    """A virtual function, whose physical one was opened with TOKEN."""
    _ENABLE.write_text("1")
    physical = find_physical_function()
    with open_device(f"{physical},vf_token={TOKEN}", vfio="group") as device:
        (_PCI / physical / "sriov_numvfs").write_text("1")
        found = (_PCI / physical / "virtfn0").resolve().name
        bind(found, VFIO_PCI)
        yield found
        (_PCI / physical / "sriov_numvfs").write_text("0")
        assert not device.gone


def test_without_a_token(virtual_function: str) -> None:
    with pytest.raises(DeviceError, match=f"name it {virtual_function},vf_token=UUID"):
        open_device(virtual_function, vfio="group")


def test_with_another_token(virtual_function: str) -> None:
    with pytest.raises(DeviceError, match="must be the one with which"):
        open_device(f"{virtual_function},vf_token={OTHER}", vfio="group")


@pytest.mark.parametrize("way", ["auto", "group"])
def test_with_the_token(virtual_function: str, tmp_path: Path, way: str) -> None:
    name = f"{virtual_function},vf_token={TOKEN}"
    with mounted(tmp_path, name, options=f"vfio={way}") as mount:
        directory = mount.device(virtual_function)
        assert (directory / "vendor").read_text() == "0x1b36\n"
        assert layout_rows(directory / "bar0")
        assert str(TOKEN) not in (mount.path / ".barfs").read_text()
        assert str(TOKEN) not in Path("/proc/self/mountinfo").read_text()


def test_the_token_over_the_character_device(virtual_function: str) -> None:
    """Not every kernel takes it there; which do is told by trying."""
    if not Path("/dev/iommu").exists():
        pytest.skip("this kernel has no iommufd; scripts/guest-kernel builds one that has")
    message = ""
    try:
        open_device(f"{virtual_function},vf_token={TOKEN}", vfio="cdev").close()
    except DeviceError as error:
        message = str(error)
    assert not message or message.endswith("use -o vfio=group")


def test_a_token_for_what_is_no_virtual_function() -> None:
    with pytest.raises(DeviceError, match="takes no vf_token"):
        open_device(f"{find_all('edu')[1]},vf_token={TOKEN}", vfio="group")
