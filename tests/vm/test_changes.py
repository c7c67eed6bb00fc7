# SPDX-License-Identifier: MIT
"""Devices of a real kernel that join and leave a live mount."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support import barfs, guest
from tests.vm.mounts import mounted, read

IDENTITY = 0x010000ED.to_bytes(4, "little")


def test_a_device_joins_and_is_given_back(tmp_path: Path) -> None:
    edu, nvme = guest.find("edu"), guest.find("nvme")
    with mounted(tmp_path, nvme, options="widths=4") as mount:
        result = barfs("add", mount.path, edu)
        assert (result.returncode, result.stderr) == (0, "")
        bar0 = mount.device(edu) / "bar0"
        assert read(bar0, 0, 4) == IDENTITY
        # edu answers no narrower access below 0x80: with the mount's widths, none reaches it.
        with pytest.raises(OSError, match="Invalid argument"):
            read(bar0, 0, 2)
        assert read(bar0, 0, 8)[:4] == IDENTITY
        fd = os.open(bar0, os.O_RDONLY)
        result = barfs("remove", mount.path, edu)
        assert (result.returncode, result.stderr) == (0, "")
        with pytest.raises(OSError, match="No such device"):
            os.pread(fd, 4, 0)
        os.close(fd)
        assert os.listdir(mount.path / "bus") == [nvme]
        # The device is closed: the kernel lets another process have its group.
        other = subprocess.run(
            ["sh", "-c", 'exec 9<>"$0"', *guest_node(edu)], capture_output=True, check=False
        )
        assert other.returncode == 0, other.stderr
        assert barfs("add", mount.path, edu).returncode == 0
        assert read(bar0, 0, 4) == IDENTITY


def guest_node(bdf: str) -> list[str]:
    group = Path(f"/sys/bus/pci/devices/{bdf}/iommu_group").resolve().name
    return [f"/dev/vfio/{group}"]
