# SPDX-License-Identifier: MIT
"""A device belongs to its mount until the unmount, and to nobody afterwards."""

import os
import stat
from pathlib import Path

import pytest

from barfs import DeviceError
from barfs import open as open_device
from tests.support import barfs

from .guest import VFIO_PCI, bind, bound
from .mounts import layout_text, mounted, read, word

IDENTITY = word(0x010000ED)


def test_unmount_gives_the_device_back(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    with bound("edu") as bdf:
        assert barfs("mount", bdf, first).returncode == 0
        try:
            assert read(first / "bus" / bdf / "bar0", 0, 4) == IDENTITY
            with pytest.raises(DeviceError, match="in use by another process"):
                open_device(bdf)
        finally:
            assert barfs("umount", first).returncode == 0
        # The kernel takes a device from its driver only when nobody has it open.
        bind(bdf, None)
        bind(bdf, VFIO_PCI)

        with mounted(tmp_path, bdf, options="ro") as mount:
            bar0 = mount.device(bdf) / "bar0"
            assert read(bar0, 0, 4) == IDENTITY
            assert stat.S_IMODE(bar0.stat().st_mode) == 0o400
            assert " mmap   r-   8 " in layout_text(bar0)
            with pytest.raises(OSError, match="Read-only file system"):
                os.open(bar0, os.O_WRONLY)
