# SPDX-License-Identifier: MIT
"""Mounts, uses and unmounts in cycles; prints what this process holds after the first few cycles
and after the last.

    python -m tests.campaign.mount_cycles MOUNTPOINT CYCLES
"""

import os
import sys
import threading
from pathlib import Path

from barfs.device import Options
from barfs.fuse.fusermount import MountOptions, unmount
from barfs.fuse.mount import Listener, Mount, NamedDevices
from barfs.opening import DeviceName
from tests.campaign.rig import Held
from tests.support import wait_until

WARM_UP = 5


def use(mountpoint: Path) -> None:
    (region,) = mountpoint.glob("bus/*/bar0")
    fd = os.open(region, os.O_RDONLY)
    assert os.pread(fd, 4, 0) == b"barf"
    assert os.pread(fd, 4, 0x1000) == b"barf"
    assert len(os.pread(fd, 0x3000, 0)) == 0x3000
    os.close(fd)
    unmount(mountpoint, lazy=True)  # a process that scans all mounts may be in it


def cycle(mountpoint: Path) -> None:
    user = threading.Thread(target=use, args=(mountpoint,))
    devices = NamedDevices([DeviceName.parse("demo")], Options())
    Mount(devices, mountpoint, MountOptions(), Listener(user.start)).serve()
    user.join()


def settled() -> Held:
    """The resources held once the software device's thread has ended; trio keeps one thread."""
    wait_until(lambda: Held.by(os.getpid()).threads <= 2, "the threads' end", 10)
    return Held.by(os.getpid())


def main(mountpoint: Path, cycles: int) -> None:
    for _cycle in range(WARM_UP):
        cycle(mountpoint)
    before = settled()
    for _cycle in range(cycles):
        cycle(mountpoint)
    for held in (before, settled()):
        print(held.fds, held.threads, held.rss)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
