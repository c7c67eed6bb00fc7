# SPDX-License-Identifier: MIT
"""The devices of a mount, from joining it until their release.

Rule 1: a device is in three places, the tree, the gate and the mount's own description; it joins
        and leaves all three together.
Rule 2: when the kernel or the user reclaims a device, the mount first fails new requests, then
        waits for running accesses, then unmaps and closes the device: the unbind waits for the
        close.
Rule 3: a device that leaves, or hangs in an access, must not affect any other.
Rule 4: with `reconnect`, a device whose server has ended leaves, too. Its address stays taken until
        it is back.
"""

import contextlib
import logging
import os
import select
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

import pyfuse3
import trio

from barfs.attached.mounts import MountInfo
from barfs.backend import Signal
from barfs.device import Device, in_flight_of
from barfs.fuse.gate import DeviceGate, Gate
from barfs.fuse.map_server import MapServer
from barfs.fuse.reconnection import can_come_back, come_back
from barfs.fuse.tree import Tree
from barfs.host.device_clients import Process, still_holding
from barfs.opening import close_all
from barfs.pci import Bdf
from barfs.region import backing_of, table_of
from barfs.text.system_errors import reason

_TIME_TO_LET_GO = 2.0
"""Seconds in which processes that are told of it (`barfs.attach`) have let go of a device."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Awaited:
    """A device that has left until its server is back."""

    source: str
    waiting: trio.CancelScope = field(default_factory=trio.CancelScope)


class MountedDevices:
    """Adds devices to `tree` and `gate`, and acts on their signals. `maps` hands out their windows,
    where the mount does that.

    Hold `changing` from the look at what it has until the change is made.
    """

    def __init__(
        self, tree: Tree, gate: Gate, maps: MapServer | None = None, *, reconnect: bool = False
    ) -> None:
        self.changing = trio.Lock()
        self._reconnect = reconnect
        self._awaited: dict[Bdf, _Awaited] = {}
        self._leaving: trio.Nursery | None = None
        self._tree = tree
        self._gate = gate
        self._maps = maps
        self._gates: dict[Device, DeviceGate] = {}
        self._signals: dict[int, tuple[Device, Signal]] = {}
        self._epoll = select.epoll()
        self._watching = False

    def add(self, devices: Iterable[Device]) -> None:
        """Make devices visible and accessible, all or none.

        Call it before `watch`, or from the same thread. Raises OSError.
        """
        added: list[Device] = []
        try:
            for device in devices:
                files = self._tree.add(device)
                added.append(device)
                self._gates[device] = self._gate.add_device(
                    str(device.bdf),
                    {
                        file.inode: (
                            table_of(file.region),
                            file.region.readable,
                            file.region.writable,
                        )
                        for file in files
                    },
                )
                for signal in device.signals:
                    self._epoll.register(signal.fd, signal.events)
                    self._signals[signal.fd] = device, signal
        except OSError:
            for device in added:
                self._withdraw(device)
            raise
        self._describe()

    def addresses(self) -> list[Bdf]:
        """The addresses of its devices, and of those that are to come back."""
        return [*(device.bdf for device in self._gates), *self._awaited]

    def has(self, bdf: Bdf) -> bool:
        """Whether a device has this address."""
        return bdf in self.addresses()

    def found(self, name: str) -> list[Bdf]:
        """The addresses of the devices that have this address or source."""
        sources = {device.bdf: device.source for device in self._gates}
        sources |= {bdf: awaited.source for bdf, awaited in self._awaited.items()}
        return [bdf for bdf, source in sources.items() if name in (str(bdf), source)]

    async def remove(self, addresses: Collection[Bdf], timeout: float) -> list[Bdf]:
        """Let devices leave, while `watch` runs.

        Returns those that are not closed after `timeout` seconds; they will be later.
        """
        assert self._leaving is not None
        closed: dict[Bdf, trio.Event] = {}
        for device in [device for device in self._gates if device.bdf in addresses]:
            closed[device.bdf] = trio.Event()
            self._withdraw(device)
            self._leaving.start_soon(self._close, device, closed[device.bdf].set)
            log.info("removed %s", device.bdf)
        self._describe()
        for bdf in set(addresses) & set(self._awaited):
            self._awaited.pop(bdf).waiting.cancel()
            log.info("removed %s", bdf)
        with trio.move_on_after(timeout):
            for event in closed.values():
                await event.wait()
        return [bdf for bdf, event in closed.items() if not event.is_set()]

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
                self._leaving = nursery
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
        self._refuse(device)
        if signal.kind == "requested":
            nursery.start_soon(self._release, device)
            return
        log.error("%s is lost", device.source)
        if self._reconnect and can_come_back(device):
            nursery.start_soon(self._replace, device)

    def _refuse(self, device: Device) -> None:
        """Listen to no signal of a device, and refuse its accesses."""
        for signal in device.signals:
            if self._signals.pop(signal.fd, None) is not None:
                self._epoll.unregister(signal.fd)
        in_flight_of(device).close()
        if self._maps is not None:
            self._maps.leave(device)

    def _withdraw(self, device: Device) -> None:
        """Let a device leave the gate and the tree."""
        self._refuse(device)
        if device in self._gates:
            self._gates.pop(device).remove()
        self._tree.remove(device)
        if not self._watching:
            return
        # The kernel caches names.
        bdf = device.bdf
        for folder, name in ((self._tree.bus, str(bdf)), (self._tree.flat, bdf.flat)):
            pyfuse3.invalidate_entry_async(folder.inode, name.encode(), ignore_enoent=True)

    async def _release(self, device: Device) -> None:
        if device not in self._gates:  # the user has removed it meanwhile
            return
        log.warning("the kernel reclaims %s; the mount releases it", device.source)
        self._withdraw(device)
        self._describe()
        await self._close(device, lambda: log.warning("%s is released", device.source))

    async def _close(self, device: Device, closed: Callable[[], object]) -> None:
        """Close a device that has left, when nothing is in it any more."""
        by_kernel = any(signal.kind == "requested" for signal in device.signals)
        clients = self._maps.clients_of(device) if self._maps is not None else []
        file = _file_of(device) if clients and by_kernel else ""
        while not await trio.to_thread.run_sync(device.close, abandon_on_cancel=True):
            continue
        closed()
        if file:
            await tell_of_holders(device.source, file, clients)

    async def _replace(self, device: Device) -> None:
        """Let a lost device leave, and the one that its next server has join."""
        if device not in self._gates:  # the user has removed it meanwhile
            return
        self._withdraw(device)
        awaited = self._awaited[device.bdf] = _Awaited(device.source)
        self._describe()
        await self._close(device, lambda: None)
        with awaited.waiting:
            back = await come_back(device)
            try:
                if self._awaited.get(device.bdf) is awaited:  # not removed in the last moment
                    del self._awaited[device.bdf]
                    self.add([back])
                    return
            except OSError as error:
                log.error("cannot add %s again: %s", device.source, reason(error))
            back.close(grace=0)


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
