# SPDX-License-Identifier: MIT
"""A mount of a slow device and a quick one: `-m bench_lib.slow FILE DEVICE DEVICE DIRECTORY`.

A DEVICE is `vfio-user:SOCKET`. Every access of the first is a pread or pwrite of FILE, which the C
server answers when it has taken its time.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from barfs.device import Device, Options
from barfs.fuse.fusermount import MountOptions
from barfs.fuse.mount import Listener, Mount
from barfs.fuse.mounted_devices import MountedDevices
from barfs.pci import Bdf
from barfs.process.signals import Ended
from barfs.uapi import RegionInfo
from barfs.vfio_user.client import VfioUserClient


class SlowBackend(VfioUserClient):
    """A device whose regions are FILE's contents, each from its start."""

    slow_fd = -1

    def region_info(self, index: int) -> RegionInfo:
        return replace(super().region_info(index), offset=0)

    def accessor(self) -> int:  # type: ignore[override]
        return self.slow_fd


class Pair:
    """The slow device and the quick one."""

    def __init__(self, slow_fd: int, sockets: Sequence[str]) -> None:
        self._slow_fd = slow_fd
        self._sockets = sockets

    def open(self) -> Sequence[Device]:
        slow, quick = (
            kind(path, bdf=Bdf.parse(f"ffff:00:0{number}.0"), source=path, timeout=5.0)
            for number, (kind, path) in enumerate(
                zip((SlowBackend, VfioUserClient), self._sockets, strict=True)
            )
        )
        assert isinstance(slow, SlowBackend)
        slow.slow_fd = self._slow_fd
        return Device(slow, Options(mapping="off")), Device(quick, Options())

    def source(self, opened: Sequence[Device]) -> str:
        return opened[0].source

    async def follow(self, mounted: MountedDevices) -> None:
        return


def main(file: str, *words: str) -> None:
    *sources, mountpoint = words
    sockets = [source.removeprefix("vfio-user:") for source in sources]
    fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    listener = Listener(ready=lambda: None)
    with contextlib.suppress(Ended):
        Mount(Pair(fd, sockets), Path(mountpoint), MountOptions(), listener).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
