# SPDX-License-Identifier: MIT
"""Hands out the windows of a mount's regions to other processes, by the protocol of
`barfs.attached.wire` (`-o map`).

Rule 1: only this process's user and root get an answer, whoever owns the files: the descriptor of
        a VFIO device also takes ioctls. The directory of the socket lets no other user in either.
Rule 2: the event loop waits for no client. A client has a deadline, and one too many replaces the
        oldest that has not asked yet.
Rule 3: a descriptor is looked up and sent without letting the loop run: meanwhile, a device that
        leaves could close it, and another file get its number.
Rule 4: bad clients are dropped without a word, and no client can end the mount.
"""

import array
import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import trio

from barfs.attached.wire import MOST_WINDOWS, REQUEST_SIZE, BadMessage, Reply, Request, Window
from barfs.device import Device, in_flight_of
from barfs.engine import Owner
from barfs.errors import BarfsError
from barfs.fuse.tree import RegionFile, Tree
from barfs.process.places import new_directory, runtime_directory
from barfs.region import backing_of, windows_of
from barfs.text.system_errors import reason
from barfs.vfio_user.address import place_of

DEADLINE = 5.0
"""Seconds in which a client must send its request."""

MOST_ASKING = 64
"""Clients that have not sent their request."""

MOST_STAYING = 256
"""Clients that wait until their device leaves."""

_PAUSE = 0.1
_PREFIX = "barfs-map-"
_CREDENTIALS = struct.Struct("3i")

log = logging.getLogger(__name__)


class MapSocket:
    """A listening socket in a new directory, which `close` removes. Raises BarfsError."""

    def __init__(self) -> None:
        self._owner = Owner()
        self._folder = new_directory(_PREFIX, first=runtime_directory())
        self.path = str(self._folder / "socket")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with place_of(self.path) as place:
                place.bind(self.listener, 0o600)
            self.listener.listen(MOST_ASKING)
            self.listener.setblocking(False)
        except OSError as error:
            self.close()
            raise BarfsError(f"cannot listen on {self.path}: {reason(error)}") from error

    def close(self) -> None:
        """Does nothing in a forked child."""
        if not self._owner.is_here:
            return
        self.listener.close()
        with contextlib.suppress(OSError):
            Path(self.path).unlink(missing_ok=True)
            self._folder.rmdir()


class MapServer:
    """Answers for the regions in `tree`, on `socket`; its methods are for the event loop."""

    def __init__(self, socket: MapSocket, tree: Tree) -> None:
        self.path = socket.path
        self._listener = socket.listener
        self._tree = tree
        self._asking: dict[trio.CancelScope, None] = {}
        self._staying: dict[trio.CancelScope, Device] = {}
        tree.set_map_socket(socket.path)

    def leave(self, device: Device) -> None:
        """Tell the clients of a device that it leaves. It must refuse accesses by now."""
        for scope, theirs in self._staying.items():
            if theirs is device:
                scope.cancel()

    async def serve(self) -> None:
        """Answer until cancelled."""
        told = False
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(self._listener)
                try:
                    client, _address = self._listener.accept()
                except (BlockingIOError, ConnectionError):
                    continue
                except OSError as error:  # no descriptor is free
                    if not told:
                        log.warning("clients of -o map must wait: %s", reason(error))
                    told = True
                    await trio.sleep(_PAUSE)
                    continue
                nursery.start_soon(self._attend, client)

    async def _attend(self, client: socket.socket) -> None:
        with client, trio.CancelScope(deadline=trio.current_time() + DEADLINE) as scope:
            try:
                client.setblocking(False)
                if _may_ask(client):
                    await self._answer(client, scope)
            except (OSError, BadMessage):  # it has gone, or is no client
                return
            except Exception:
                log.exception("a client of -o map failed")

    async def _answer(self, client: socket.socket, scope: trio.CancelScope) -> None:
        with self._waiting(scope):
            await trio.lowlevel.wait_readable(client)
        # Descriptors that come with a message are refused, and longer messages are cut.
        request = Request.decode(client.recv(REQUEST_SIZE + 1))
        node = self._tree.nodes.get(request.inode)
        device = node.device if isinstance(node, RegionFile) else None
        reply, fds = self._reply(node, request.stay)
        try:
            _send(client, reply, fds)
        except OSError as error:
            # As EMSGSIZE, too long for this machine's socket buffers.
            if error.errno not in (errno.ETOOMANYREFS, errno.EMSGSIZE):
                raise
            _send(client, Reply(error.errno, reply.size), [])
            return
        if reply.stays and device is not None:
            scope.deadline = float("inf")
            self._staying[scope] = device
            try:
                await trio.lowlevel.wait_readable(client)
            finally:
                del self._staying[scope]

    @contextlib.contextmanager
    def _waiting(self, scope: trio.CancelScope) -> Iterator[None]:
        if len(self._asking) >= MOST_ASKING:
            oldest = next(iter(self._asking))
            del self._asking[oldest]
            oldest.cancel()
        self._asking[scope] = None
        try:
            yield
        finally:
            self._asking.pop(scope, None)

    def _reply(self, node: object, stay: bool) -> tuple[Reply, list[int]]:
        """The answer about a node, and the descriptors to send with it."""
        if not isinstance(node, RegionFile):
            return Reply(errno.ENOENT), []
        size, backing, windows = node.region.size, backing_of(node.region), windows_of(node.region)
        if backing is None or not windows or in_flight_of(node.device).closed:
            return Reply(errno.ENODEV, size), []
        if len(windows) > MOST_WINDOWS:
            return Reply(errno.EOVERFLOW, size), []
        fd, start = backing
        granted = [
            Window(each.start, each.size, start + each.start, 0, each.readable, each.writable)
            for each in windows
        ]
        stays = stay and len(self._staying) < MOST_STAYING
        return Reply(0, size, granted, 1, stays), [fd]


def _may_ask(client: socket.socket) -> bool:
    data = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(data)
    return uid in (0, os.geteuid())


def _send(client: socket.socket, reply: Reply, fds: list[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    client.sendmsg([reply.encode()], rights)
