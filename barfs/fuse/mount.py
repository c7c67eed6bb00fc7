# SPDX-License-Identifier: MIT
"""The life of a mount: open the devices, mount, announce, serve, end.

Rule 1: devices are opened before the mount exists and closed after it is gone.
Rule 2: a mount is ready once it has answered a request.
Rule 3: SIGTERM, SIGINT and SIGHUP end a mount within the grace period, even if a device hangs; a
        second signal ends it at once.
Rule 4: the trio thread answers requests, so anything that can block on the mount itself (unmounting
        it, looking into it) runs elsewhere.
"""

import contextlib
import functools
import logging
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyfuse3
import trio

from barfs import engine
from barfs.attached.mounts import MountError
from barfs.device import Device, Options
from barfs.fuse.changes import Changes
from barfs.fuse.control import KIND, LONGEST
from barfs.fuse.filesystem import Filesystem
from barfs.fuse.fusermount import GRACE, FuseMount, MountOptions, unmount_command
from barfs.fuse.gate import Gate
from barfs.fuse.map_server import KIND as MAP
from barfs.fuse.map_server import MapServer
from barfs.fuse.mount_socket import MountSocket, mount_socket
from barfs.fuse.mounted_devices import MountedDevices
from barfs.fuse.tree import Tree
from barfs.opening import DeviceName, close_all, open_all
from barfs.process.signals import Ended, end, heard

Service = Callable[[], Awaitable[None]]
"""What a mount runs beside its requests, until it ends."""

log = logging.getLogger(__name__)


class _Signals:
    """Signals that end a mount. Until mounting begins they raise `Ended`, as in any command; from
    then on they wake the task in `wait`. (trio's own receiver can lock up when many come at once.)
    """

    def __init__(self) -> None:
        self.mounting = False
        self.first = 0
        self._owner = engine.Owner()
        self._fd = -1

    def _hear(self, number: int) -> None:
        if not self.mounting or not self._owner.is_here:
            end(number)
            return
        self.first = self.first or number
        os.eventfd_write(self._fd, 1)

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            with heard(self._hear):
                yield
        finally:
            os.close(self._fd)

    async def wait(self) -> None:
        """Wait for a signal that no earlier call returned for."""
        await trio.lowlevel.wait_readable(self._fd)
        os.eventfd_read(self._fd)


@dataclass(frozen=True, slots=True)
class Listener:
    """A mount calls `ready` once it has answered, and `stopping` when it takes no more requests."""

    ready: Callable[[], object]
    stopping: Callable[[], object] = lambda: None


class DeviceSet(Protocol):
    """The devices of a mount, which are opened with `options`."""

    @property
    def options(self) -> Options: ...

    def open(self) -> Sequence[Device]:
        """Open the devices that the mount starts with."""

    def source(self, devices: Sequence[Device]) -> str:
        """The mount source that names the first device."""

    async def follow(self, mounted: MountedDevices) -> None:
        """Add devices that appear later, until cancelled."""


@dataclass(frozen=True, slots=True)
class NamedDevices:
    """The devices that the user named; none appear by themselves."""

    names: Sequence[DeviceName]
    options: Options

    def open(self) -> Sequence[Device]:
        return open_all(self.names, self.options)

    def source(self, devices: Sequence[Device]) -> str:
        return self.names[0].shown

    async def follow(self, mounted: MountedDevices) -> None:
        return


class Mount:
    """One mount, served once, in the process that makes this object."""

    def __init__(
        self, devices: DeviceSet, mountpoint: Path, options: MountOptions, listener: Listener
    ) -> None:
        self._devices = devices
        self._mountpoint = mountpoint
        self._options = options
        self._listener = listener
        self._signals = _Signals()
        self._answered = False

    def serve(self) -> None:
        """Open the devices, mount them and serve until the end.

        Returns when the mount is gone and the devices are closed. Raises MountError, and the errors
        of `DeviceSet.open`.
        """
        with self._signals.handled(), contextlib.ExitStack() as stack:
            devices = self._devices.open()
            stack.callback(close_all, devices)
            filesystem = self._filesystem()
            self._signals.mounting = True
            maps = None
            if self._options.map:
                socket = stack.enter_context(contextlib.closing(MountSocket(MAP)))
                maps = MapServer(socket, filesystem.tree)
            control = mount_socket(KIND)
            if control is not None:
                stack.callback(control.close)
                filesystem.tree.set_socket(KIND, control.path)
            with contextlib.closing(self._mount(devices)) as fuse:
                gate = Gate(fuse.fd)
                mounted = MountedDevices(
                    filesystem.tree, gate, maps, reconnect=self._options.reconnect
                )
                stack.callback(mounted.close)
                mounted.add(devices)
                services: list[Service] = [] if maps is None else [maps.serve]
                if control is not None:
                    changes = Changes(mounted, self._devices.options, self._mountpoint)
                    services.append(functools.partial(control.serve, LONGEST, changes.answer))
                self._run(filesystem, gate, mounted, services)
        if not self._answered and not self._signals.first:
            raise MountError(f"the mount on {self._mountpoint} ended before it answered; try again")

    def _filesystem(self) -> Filesystem:
        options = self._options
        return Filesystem(
            Tree(umask=options.umask),
            uid=os.getuid() if options.uid is None else options.uid,
            gid=os.getgid() if options.gid is None else options.gid,
        )

    def _mount(self, devices: Sequence[Device]) -> FuseMount:
        source = self._devices.source(devices)
        if len(devices) > 1:
            # Mount options must fit in one page, which all sources may not.
            source += f"+{len(devices) - 1}"
        try:
            return FuseMount(
                self._mountpoint,
                source=source,
                options=self._options.fuse_options(),
                contexts=self._options.contexts(),
            )
        except MountError:
            if self._signals.first:  # ^C on a terminal also ends fusermount3
                raise Ended(self._signals.first) from None
            raise

    def _run(
        self,
        filesystem: Filesystem,
        gate: Gate,
        mounted: MountedDevices,
        services: Sequence[Service],
    ) -> None:
        """Answer the mount's requests until it ends."""
        pyfuse3.init(filesystem, f"/dev/fd/{gate.libfuse_fd}", set())
        stopped = False
        try:
            stopped = trio.run(self._session, gate, mounted, services)
        finally:
            pyfuse3.close(unmount=False)
            # An access that hangs still uses a gate that has not stopped.
            if stopped:
                gate.close()

    async def _session(
        self, gate: Gate, mounted: MountedDevices, services: Sequence[Service]
    ) -> bool:
        """Serve until the end; returns whether every access has finished."""
        stopped = False
        token = trio.lowlevel.current_trio_token()

        def on_end() -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(pyfuse3.terminate)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_on_signal, nursery.cancel_scope)
            nursery.start_soon(mounted.watch)
            for service in services:
                nursery.start_soon(service)
            nursery.start_soon(self._announce)
            gate.start(on_end)
            nursery.start_soon(self._devices.follow, mounted)
            try:
                await pyfuse3.main()
            finally:
                self._listener.stopping()
            stopped = await trio.to_thread.run_sync(gate.stop, GRACE, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()
        return stopped

    async def _announce(self) -> None:
        await trio.to_thread.run_sync(os.stat, self._mountpoint, abandon_on_cancel=True)
        self._answered = True
        self._listener.ready()

    async def _end_on_signal(self, scope: trio.CancelScope) -> None:
        await self._signals.wait()
        log.info("unmounting %s on a signal", self._mountpoint)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_within_grace, scope)
            await self._signals.wait()
            scope.cancel()

    async def _end_within_grace(self, scope: trio.CancelScope) -> None:
        scope.deadline = trio.current_time() + GRACE
        with contextlib.suppress(OSError):
            # Lazily: files may be open, and a hung request must not keep the mount in the tree.
            await trio.run_process(
                unmount_command(self._mountpoint, lazy=True),
                check=False,
                stdin=subprocess.DEVNULL,
                capture_stderr=True,
            )
        pyfuse3.terminate()
