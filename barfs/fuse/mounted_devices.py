# SPDX-License-Identifier: MIT
"""The devices of a mount, from joining it until their release.

Rule 1: a device is in three places, the tree, the gate and the mount's own description; it joins
        and leaves all three together.
Rule 2: when the kernel reclaims a device, the mount first fails new requests, then waits for
        running accesses, then unmaps and closes the device: the unbind waits for the close.
Rule 3: a device that leaves, or hangs in an access, must not affect any other.
"""

import contextlib
import logging
import os
import select
from collections.abc import Iterable, Sequence

import pyfuse3
import trio

from barfs.attached.mounts import MountInfo
from barfs.backend import Signal
from barfs.device import Device, in_flight_of
from barfs.fuse.gate import DeviceGate, Gate
from barfs.fuse.map_server import MapServer
from barfs.fuse.tree import Tree
from barfs.host.device_clients import Process, still_holding
from barfs.opening import close_all
from barfs.pci import Bdf
from barfs.region import backing_of, table_of

_TIME_TO_LET_GO = 2.0
"""Seconds in which processes that are told of it (`barfs.attach`) have let go of a device."""

log = logging.getLogger(__name__)


class MountedDevices:
    """Adds devices to `tree` and `gate`, and acts on their signals. `maps` hands out their windows,
    where the mount does that."""

    def __init__(self, tree: Tree, gate: Gate, maps: MapServer | None = None) -> None:
        self._tree = tree
        self._gate = gate
        self._maps = maps
        self._gates: dict[Device, DeviceGate] = {}
        self._signals: dict[int, tuple[Device, Signal]] = {}
        self._epoll = select.epoll()
        self._watching = False

    def add(self, devices: Iterable[Device]) -> None:
        """Make devices visible and accessible. Call it before `watch`, or from the same thread."""
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
        """Whether the mount has a device with this address."""
        return any(device.bdf == bdf for device in self._gates)

    def close(self) -> None:
        """Close every remaining device, after the mount is gone."""
        close_all(self._gates)

    def _describe(self) -> None:
        sources = {str(device.bdf): device.source for device in self._gates}
        traces = [device.options.trace for device in self._gates if device.options.trace]
        described = {
            str(device.bdf): [named.text for named in device.registers.named]
            for device in self._gates
            if device.registers.named
        }
        trace = os.fspath(traces[0]) if traces else None
        socket = str(self._maps.path) if self._maps else None
        guards = [device.options.guard for device in self._gates]
        timeouts = [device.options.timeout for device in self._gates]
        info = MountInfo(
            os.getpid(), sources, trace, described, socket, any(guards), max(timeouts, default=5.0)
        )
        inode = self._tree.set_info(info.to_text())
        if self._watching:
            # The kernel caches sizes.
            pyfuse3.invalidate_inode(inode)

    async def watch(self) -> None:
        """Act on the devices' signals until cancelled. Call it once, while the mount answers."""
        self._watching = True
        with self._epoll:
            async with trio.open_nursery() as nursery:
                while True:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                    for fd, _events in self._epoll.poll(0):
                        # An earlier signal of the same device may have removed this one.
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
        if self._maps is not None:
            self._maps.leave(device)
        if signal.kind == "lost":
            log.error("%s is lost", device.source)
        else:
            nursery.start_soon(self._release, device)

    async def _release(self, device: Device) -> None:
        log.warning("the kernel reclaims %s; the mount releases it", device.source)
        self._gates.pop(device).remove()
        self._tree.remove(device)
        # The kernel caches names.
        pyfuse3.invalidate_entry_async(
            self._tree.bus.inode, str(device.bdf).encode(), ignore_enoent=True
        )
        self._describe()
        clients = self._maps.clients_of(device) if self._maps is not None else []
        file = _file_of(device) if clients else ""
        while not await trio.to_thread.run_sync(device.close, abandon_on_cancel=True):
            continue
        log.warning("%s is released", device.source)
        if file:
            await tell_of_holders(device.source, file, clients)


def _file_of(device: Device) -> str:
    """What /proc calls the file that the device's windows are mapped from; "" if none are."""
    found = filter(None, map(backing_of, device.regions.values()))
    return next((os.readlink(f"/proc/self/fd/{fd}") for fd, _offset in found), "")


async def tell_of_holders(name: str, file: str, clients: Sequence[Process]) -> None:
    """Log which processes keep a device from the kernel, unless they let go of it in time."""
    end = trio.current_time() + _TIME_TO_LET_GO
    while True:
        found = await trio.to_thread.run_sync(still_holding, file, clients, abandon_on_cancel=True)
        if not found or trio.current_time() > end:
            break
        await trio.sleep(_TIME_TO_LET_GO / 10)
    if found:
        log.warning(
            "%s is still held by process%s %s; the kernel waits until none maps it or has it open",
            name,
            "es" if len(found) > 1 else "",
            ", ".join(map(str, found)),
        )
