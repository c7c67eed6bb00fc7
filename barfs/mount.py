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
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyfuse3
import trio

from barfs.device import Device
from barfs.fs import Filesystem
from barfs.fusermount import FuseMount, MountError, MountInfo, unmount, unmount_command
from barfs.tree import Tree

GRACE = 5.0
"""Seconds that running requests get when the mount is ended by a signal."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How files appear in the mount; `uid`, `gid`, `umask` None mean the caller's and 0600."""

    allow_other: bool = False
    read_only: bool = False
    uid: int | None = None
    gid: int | None = None
    umask: int | None = None

    def fuse_options(self) -> list[str]:
        flags = {"allow_other": self.allow_other, "ro": self.read_only}
        return [name for name, chosen in flags.items() if chosen]


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
        tree = Tree(umask=options.umask)
        for device in devices:
            tree.add(device)
        sources = {str(device.bdf): device.source for device in devices}
        tree.set_info(MountInfo(os.getpid(), sources).to_text())
        filesystem = Filesystem(
            tree,
            uid=os.getuid() if options.uid is None else options.uid,
            gid=os.getgid() if options.gid is None else options.gid,
        )
        source = " ".join(sources.values())
        fuse = FuseMount(mountpoint, source=source, options=options.fuse_options())
        try:
            _run(filesystem, fuse, ready)
        except BaseException:
            with contextlib.suppress(MountError):
                unmount(mountpoint, lazy=True)
            raise
        finally:
            fuse.release_helper()
    finally:
        for device in devices:
            device.close(grace=0)


def _run(filesystem: Filesystem, fuse: FuseMount, ready: Callable[[], None]) -> None:
    """Answer the mount's requests until its end."""
    pyfuse3.init(filesystem, f"/dev/fd/{fuse.fd}", set())
    try:
        trio.run(_session, fuse.mountpoint, ready)
    finally:
        pyfuse3.close(unmount=False)


async def _session(mountpoint: Path, ready: Callable[[], None]) -> None:
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_on_signal, signals, mountpoint, nursery.cancel_scope)
            nursery.start_soon(_announce, mountpoint, ready)
            await pyfuse3.main()
            nursery.cancel_scope.cancel()


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
