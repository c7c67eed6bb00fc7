# SPDX-License-Identifier: MIT
"""The devices of a mount, from the moment they are in it until they are given back.

Rule 1: a device is in three places, the tree, the gate and the mount's own description, and comes
        and goes in all three at once.
Rule 2: a device that the kernel wants back is refused to everyone first, then waited for, then
        unmapped and closed: the kernel's unbinding waits for the last of these.
Rule 3: one device that leaves, or that does not come back from an access, is nobody else's matter.
"""

import contextlib
import logging
import os
import select
from collections.abc import Iterable

import pyfuse3
import trio

from barfs.backend import Signal
from barfs.device import Device, in_flight_of
from barfs.fuse.gate import DeviceGate, Gate
from barfs.fuse.mounts import MountInfo
from barfs.fuse.tree import Tree
from barfs.pci import Bdf
from barfs.region import table_of

log = logging.getLogger(__name__)


class MountedDevices:
    """Puts devices into `tree` and `gate`, and listens to what they signal."""

    def __init__(self, tree: Tree, gate: Gate) -> None:
        self._tree = tree
        self._gate = gate
        self._gates: dict[Device, DeviceGate] = {}
        self._signals: dict[int, tuple[Device, Signal]] = {}
        self._epoll = select.epoll()
        self._watching = False

    def add(self, devices: Iterable[Device]) -> None:
        """Let devices be seen and accessed: before `watch`, or from the same thread."""
        for device in devices:
            files = self._tree.add(device)
            self._gates[device] = self._gate.add_device(
                str(device.bdf),
                {
                    file.inode: (table_of(file.region), file.region.readable, file.region.writable)
                    for file in files
                },
            )
            for signal in device.signals:
                self._signals[signal.fd] = device, signal
                self._epoll.register(signal.fd, signal.events)
        self._describe()

    def has(self, bdf: Bdf) -> bool:
        """Whether a device of this address is in the mount."""
        return any(device.bdf == bdf for device in self._gates)

    def close(self) -> None:
        """Give back every device that is still here; the mount is gone."""
        for device in self._gates:
            device.close(grace=0)

    def _describe(self) -> None:
        sources = {str(device.bdf): device.source for device in self._gates}
        traces = [device.options.trace for device in self._gates if device.options.trace]
        info = MountInfo(os.getpid(), sources, os.fspath(traces[0]) if traces else None)
        inode = self._tree.set_info(info.to_text())
        if self._watching:
            # The kernel keeps sizes until it is told.
            pyfuse3.invalidate_inode(inode)

    async def watch(self) -> None:
        """Do what the devices' signals ask for, until cancelled. Once, while the mount answers."""
        self._watching = True
        with self._epoll:
            async with trio.open_nursery() as nursery:
                while True:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                    for fd, _events in self._epoll.poll(0):
                        # One of the same device may have come before it.
                        if fd in self._signals:
                            self._hear(*self._signals[fd], nursery)

    def _hear(self, device: Device, signal: Signal, nursery: trio.Nursery) -> None:
        if signal.kind == "error":
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(signal.fd)
            log.error(
                "%s reported an uncorrectable PCIe error; see the kernel's log", device.source
            )
            return
        for other in device.signals:
            self._epoll.unregister(other.fd)
            del self._signals[other.fd]
        in_flight_of(device).close()
        if signal.kind == "lost":
            log.error("%s is lost", device.source)
        else:
            nursery.start_soon(self._give_back, device)

    async def _give_back(self, device: Device) -> None:
        log.warning("%s: the kernel wants it back, it leaves the mount", device.source)
        self._gates.pop(device).remove()
        self._tree.remove(device)
        # The kernel keeps names until it is told.
        pyfuse3.invalidate_entry_async(
            self._tree.bus.inode, str(device.bdf).encode(), ignore_enoent=True
        )
        self._describe()
        while not await trio.to_thread.run_sync(device.close, abandon_on_cancel=True):
            continue
        log.warning("%s is given back", device.source)
