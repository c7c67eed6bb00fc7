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
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pyfuse3
import trio

from barfs import native
from barfs.bus import Bus
from barfs.device import Device
from barfs.fs import Filesystem
from barfs.fusermount import (
    GRACE,
    FuseMount,
    MountError,
    MountOptions,
    unmount,
    unmount_command,
)
from barfs.tree import Tree

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = logging.getLogger(__name__)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Until trio hears of signals, they end the process through its `finally` clauses."""

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    previous = {number: signal.signal(number, end) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def serve(
    devices: Sequence[Device],
    mountpoint: Path,
    options: MountOptions,
    ready: Callable[[], None],
) -> None:
    """Mount `devices` on `mountpoint`, call `ready` once the mount answers, serve until the end.

    Returns when the mount is gone and the devices are closed. Raises MountError.
    """
    try:
        filesystem = Filesystem(
            Tree(umask=options.umask),
            uid=os.getuid() if options.uid is None else options.uid,
            gid=os.getgid() if options.gid is None else options.gid,
        )
        first, *others = devices
        # The options of a mount must fit in one page, so not all sources.
        source = f"{first.source}+{len(others)}" if others else first.source
        fuse = FuseMount(mountpoint, source=source, options=options.fuse_options())
        try:
            _run(filesystem, fuse, devices, ready)
        except BaseException:
            with contextlib.suppress(MountError):
                unmount(mountpoint, lazy=True)
            raise
        finally:
            fuse.release_helper()
    finally:
        for device in devices:
            device.close(grace=0)


def _run(
    filesystem: Filesystem,
    fuse: FuseMount,
    devices: Sequence[Device],
    ready: Callable[[], None],
) -> None:
    """Answer the mount's requests until its end, then let its descriptor go."""
    gate = native.Gate(fuse.fd)
    bus = Bus(filesystem.tree, gate)
    bus.add(devices)
    pyfuse3.init(filesystem, f"/dev/fd/{gate.libfuse_fd}", set())
    stopped = False
    try:
        stopped = trio.run(_session, gate, fuse.mountpoint, bus, ready)
    finally:
        pyfuse3.close(unmount=False)
        # Aborts the connection: whoever still waits for an answer gets an error.
        os.close(fuse.fd)
        # A gate that has not stopped is still in use, by an access that does not come back.
        if stopped:
            gate.close()


async def _session(
    gate: native.Gate, mountpoint: Path, bus: Bus, ready: Callable[[], None]
) -> bool:
    """Serve until the end; returns whether every access has come back."""
    stopped = False
    token = trio.lowlevel.current_trio_token()

    def end() -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(pyfuse3.terminate)

    with trio.open_signal_receiver(*_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_on_signal, signals, mountpoint, nursery.cancel_scope)
            nursery.start_soon(bus.watch)
            nursery.start_soon(_announce, mountpoint, ready)
            gate.start(end)
            await pyfuse3.main()
            stopped = await trio.to_thread.run_sync(gate.stop, GRACE, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()
    return stopped


async def _announce(mountpoint: Path, ready: Callable[[], None]) -> None:
    await trio.to_thread.run_sync(os.stat, mountpoint, abandon_on_cancel=True)
    ready()


async def _end_on_signal(
    signals: AsyncIterator[int], mountpoint: Path, scope: trio.CancelScope
) -> None:
    received = await anext(signals)
    log.info("%s: ending on %s", mountpoint, signal.Signals(received).name)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_within_grace, mountpoint, scope)
        await anext(signals)
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
