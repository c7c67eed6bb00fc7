# SPDX-License-Identifier: MIT
"""A mount of all devices: they come when a VFIO driver takes them, and leave when it loses them."""

import os
from pathlib import Path

from tests.support import guest, mounted, wait_until

IDENTITY = 0x010000ED.to_bytes(4, "little")


def test_devices_come_and_go(tmp_path: Path) -> None:
    edu, nvme = guest.find("edu"), guest.find("nvme")
    with mounted(tmp_path, "--all") as mount:
        bus = mount.path / "bus"
        assert {edu, nvme} <= set(os.listdir(bus))
        try:
            guest.bind(edu, None)
            wait_until(lambda: edu not in os.listdir(bus), "edu to leave")
            assert not (bus / edu).exists()
            assert nvme in os.listdir(bus)
        finally:
            guest.bind(edu, guest.VFIO_PCI)
        wait_until(lambda: (bus / edu).exists(), "edu to come back")
        with (bus / edu / "bar0").open("rb", buffering=0) as bar0:
            assert bar0.read(4) == IDENTITY


def test_kernel_and_software_devices_in_one_mount(tmp_path: Path) -> None:
    edu = guest.find("edu")
    with mounted(tmp_path, edu, "demo") as mount:
        words = {
            name: (mount.device(name) / "bar0").open("rb", buffering=0)
            for name in (edu, "ffff:00:00.0")
        }
        with words[edu] as ours, words["ffff:00:00.0"] as theirs:
            assert (ours.read(4), theirs.read(4)) == (IDENTITY, b"barf")
