# SPDX-License-Identifier: MIT
"""The life of a mount: made, announced, served, ended.

Rule 1: devices are open before the mount exists, and closed after it is gone.
Rule 2: ready means that the mount has answered.
Rule 3: SIGTERM, SIGINT and SIGHUP end it within the grace period, whatever a device does; a second
        signal ends it at once.
Rule 4: nothing that can block on the mount itself (its unmounting, a look into it) runs on the trio
        thread, which has to answer.
"""

import contextlib
import logging
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pyfuse3
import trio

from barfs import engine
from barfs.device import Device
from barfs.fuse.filesystem import Filesystem
from barfs.fuse.fusermount import GRACE, FuseMount, MountOptions, unmount_command
from barfs.fuse.gate import Gate
from barfs.fuse.mounted_devices import MountedDevices
from barfs.fuse.mounts import MountError
from barfs.fuse.tree import Tree
from barfs.process.signals import Ended, end, heard

log = logging.getLogger(__name__)


class _Signals:
    """The signals that end a mount: before it is made, through the process's `finally` clauses, and
    from then on, by whoever waits for them. (Not trio's receiver: many at once can lock it up.)"""

    def __init__(self) -> None:
        self.mounting = False
        self.first = 0
        self._owner = engine.Owner()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def _hear(self, number: int) -> None:
        if not self.mounting or not self._owner.is_here:
            end(number)
            return
        self.first = self.first or number
        os.eventfd_write(self._fd, 1)

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        try:
            with heard(self._hear):
                yield
        finally:
            os.close(self._fd)

    async def wait(self) -> None:
        """Wait for one that has not been waited for yet."""
        await trio.lowlevel.wait_readable(self._fd)
        os.eventfd_read(self._fd)


def serve(
    open_devices: Callable[[], Sequence[Device]],
    mountpoint: Path,
    options: MountOptions,
    ready: Callable[[], None],
    follow: Callable[[MountedDevices], Awaitable[None]] | None = None,
    ending: Callable[[], None] = lambda: None,
    source: str | None = None,
) -> None:
    """Mount devices on `mountpoint`, call `ready` once the mount answers, serve until the end.

    `source` is what the mount shows for its first device. `ending` is called when it takes no more
    requests. `follow` runs meanwhile, and may let more devices join. Returns when the mount is gone
    and the devices are closed. Raises MountError, and what `open_devices` raises.
    """
    signals = _Signals()
    answered = False

    def announce() -> None:
        nonlocal answered
        answered = True
        ready()

    with signals.handled(), contextlib.ExitStack() as stack:
        devices = open_devices()
        for device in devices:
            stack.callback(device.close, grace=0)
        filesystem = Filesystem(
            Tree(umask=options.umask),
            uid=os.getuid() if options.uid is None else options.uid,
            gid=os.getgid() if options.gid is None else options.gid,
        )
        # The options of a mount must fit in one page, so not all sources.
        source = source or (devices[0].source if devices else "all")
        if len(devices) > 1:
            source += f"+{len(devices) - 1}"
        signals.mounting = True
        with contextlib.closing(_mounted(mountpoint, source, options, signals)) as fuse:
            gate = Gate(fuse.fd)
            mounted = MountedDevices(filesystem.tree, gate)
            stack.callback(mounted.close)
            mounted.add(devices)
            session = partial(
                _session, gate, mountpoint, mounted, follow, announce, ending, signals
            )
            _run(filesystem, gate, session)
    if not answered and not signals.first:
        raise MountError(f"the mount on {mountpoint} ended before it answered; try again")


def _mounted(mountpoint: Path, source: str, options: MountOptions, signals: _Signals) -> FuseMount:
    try:
        return FuseMount(mountpoint, source=source, options=options.fuse_options())
    except MountError:
        if signals.first:  # a terminal's ^C ends the helper, too
            raise Ended(signals.first) from None
        raise


def _run(filesystem: Filesystem, gate: Gate, session: Callable[[], Awaitable[bool]]) -> None:
    """Answer the mount's requests until its end."""
    pyfuse3.init(filesystem, f"/dev/fd/{gate.libfuse_fd}", set())
    stopped = False
    try:
        stopped = trio.run(session)
    finally:
        pyfuse3.close(unmount=False)
        # A gate that has not stopped is still in use, by an access that does not come back.
        if stopped:
            gate.close()


async def _session(
    gate: Gate,
    mountpoint: Path,
    mounted: MountedDevices,
    follow: Callable[[MountedDevices], Awaitable[None]] | None,
    ready: Callable[[], None],
    ending: Callable[[], None],
    signals: _Signals,
) -> bool:
    """Serve until the end; returns whether every access has come back."""
    stopped = False
    token = trio.lowlevel.current_trio_token()

    def on_end() -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(pyfuse3.terminate)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_on_signal, signals, mountpoint, nursery.cancel_scope)
        nursery.start_soon(mounted.watch)
        nursery.start_soon(_announce, mountpoint, ready)
        gate.start(on_end)
        if follow is not None:
            nursery.start_soon(follow, mounted)
        try:
            await pyfuse3.main()
        finally:
            ending()
        stopped = await trio.to_thread.run_sync(gate.stop, GRACE, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()
    return stopped


async def _announce(mountpoint: Path, ready: Callable[[], None]) -> None:
    await trio.to_thread.run_sync(os.stat, mountpoint, abandon_on_cancel=True)
    ready()


async def _end_on_signal(signals: _Signals, mountpoint: Path, scope: trio.CancelScope) -> None:
    await signals.wait()
    log.info("%s: ending on a signal", mountpoint)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_within_grace, mountpoint, scope)
        await signals.wait()
        scope.cancel()


async def _end_within_grace(mountpoint: Path, scope: trio.CancelScope) -> None:
    scope.deadline = trio.current_time() + GRACE
    with contextlib.suppress(OSError):
        # Lazily: files may be open, and a hung request must not keep the name in the tree.
        await trio.run_process(
            unmount_command(mountpoint, lazy=True),
            check=False,
            stdin=subprocess.DEVNULL,
            capture_stderr=True,
        )
    pyfuse3.terminate()
