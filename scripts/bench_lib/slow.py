# SPDX-License-Identifier: MIT
"""A mount of a slow device and a quick one: `-m bench_lib.slow SLOW DEVICE DEVICE DIRECTORY`.

A DEVICE is `vfio-user:SOCKET`. SLOW says how bar0 of the first is accessed:
`descriptor:FILE`: each access is a pread or pwrite of FILE;
`window:NS:CPU`: it is a window, the first touch of a page takes NS nanoseconds, and the touch of
another page takes its contents away again. A thread on CPU sees to that.
"""

import contextlib
import ctypes
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from barfs import engine
from barfs.device import Device, Options
from barfs.fuse.fusermount import MountOptions
from barfs.fuse.mount import Listener, Mount
from barfs.fuse.mounted_devices import MountedDevices
from barfs.pci import Bdf
from barfs.process.signals import Ended
from barfs.uapi import RegionInfo
from barfs.vfio_user.client import VfioUserClient
from tests.support.userfault import PAGE, Userfault

SIZE = 1 << 20
"""Of bar0."""

_PUNCH_HOLE = 1 | 2  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


class SlowDevice(Device):
    """A device whose bar0 has this target."""

    target: engine.Target

    def _gap(self, info: RegionInfo) -> engine.Target:
        return self.target if info.index == 0 else super()._gap(info)


class Pair:
    """The slow device and the quick one."""

    options = Options()

    def __init__(self, target: engine.Target, sockets: Sequence[str]) -> None:
        SlowDevice.target = target
        self._sockets = sockets

    def open(self) -> Sequence[Device]:
        slow, quick = (
            VfioUserClient(path, bdf=Bdf.parse(f"ffff:00:0{number}.0"), source=path, timeout=5.0)
            for number, path in enumerate(self._sockets)
        )
        return SlowDevice(slow, Options(mapping="off")), Device(quick, self.options)

    def source(self, opened: Sequence[Device]) -> str:
        return opened[0].source

    async def follow(self, mounted: MountedDevices) -> None:
        return


def slow_window(delay: float, cpu: int) -> engine.Target:
    memory = os.memfd_create("slow")
    os.truncate(memory, SIZE)
    mapping = engine.Mapping(memory, 0, SIZE)
    faults = Userfault(mapping.address, SIZE)
    threading.Thread(target=_answer, args=(memory, faults, delay, cpu), daemon=True).start()
    return engine.Memory(mapping)


def _answer(memory: int, faults: Userfault, delay: float, cpu: int) -> None:
    os.sched_setaffinity(threading.get_native_id(), {cpu})
    libc = ctypes.CDLL(None, use_errno=True)
    place = ctypes.c_long
    filled = -1
    while True:
        page = faults.wait(patience=None).page
        if filled >= 0:  # its access has ended: there is one client
            libc.fallocate(memory, _PUNCH_HOLE, place(filled * PAGE), place(PAGE))
        time.sleep(delay)
        faults.fill(page)
        filled = page


def main(how: str, *words: str) -> None:
    *sources, mountpoint = words
    kind, _, place = how.partition(":")
    if kind == "window":
        delay, cpu = map(int, place.split(":"))
        target = slow_window(delay / 1e9, cpu)
    else:
        mode = os.O_RDWR if os.access(place, os.W_OK) else os.O_RDONLY
        target = engine.Descriptor(os.open(place, mode | os.O_CLOEXEC), 0)
    pair = Pair(target, [source.removeprefix("vfio-user:") for source in sources])
    listener = Listener(ready=lambda: None)
    with contextlib.suppress(Ended):
        Mount(pair, Path(mountpoint), MountOptions(), listener).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
