# SPDX-License-Identifier: MIT
"""Files of the host's sysfs that a mount reads through, such as a device's `vpd`.

Rule 1: a read is one pread(2) of the host's file, in a worker thread: the kernel may take seconds
        for it, while the event loop goes on. Each device has few such threads.
Rule 2: errors are the host's. This process opens the file, so its rights count, too.
"""

import errno
import os

import trio
from pyfuse3 import FUSEError

from barfs.fuse.tree import HostNode

_WORKERS = 2
_PATIENCE = 60.0
"""Seconds until a read is answered in any case: its client cannot be killed before."""


class HostFiles:
    """Opens and reads for `filesystem`; raises FUSEError alone."""

    def __init__(self) -> None:
        self._limits: dict[int, trio.CapacityLimiter] = {}
        self._open: dict[int, tuple[HostNode, int]] = {}

    def __contains__(self, handle: int) -> bool:
        return handle in self._open

    def open(self, node: HostNode, handle: int) -> None:
        try:
            fd = os.open(node.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from error
        self._open[handle] = node, fd

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        node, fd = self._open[handle]
        limit = self._limits.setdefault(node.parent, trio.CapacityLimiter(_WORKERS))
        with trio.move_on_after(_PATIENCE):
            try:
                return await trio.to_thread.run_sync(
                    os.pread, fd, size, offset, abandon_on_cancel=True, limiter=limit
                )
            except OSError as error:
                raise FUSEError(error.errno or errno.EIO) from error
        raise FUSEError(errno.ETIMEDOUT)

    def close(self, handle: int) -> None:
        if handle in self._open:
            _node, fd = self._open.pop(handle)
            os.close(fd)
