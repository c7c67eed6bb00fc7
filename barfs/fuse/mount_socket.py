# SPDX-License-Identifier: MIT
"""A socket on which a mount answers its owner: one message, one reply, and the connection ends.

Rule 1: the kernel says who a client is (SO_PEERCRED). The user whose process the mount is, and
        root, are answered; a connection of any other user is closed unread. The socket's directory
        keeps other users out as well.
Rule 2: a client can cost the mount neither memory nor time: a request has a longest size, and
        `DEADLINE` seconds to arrive; a reply has as many to leave. A few clients are served at
        once, the next ones wait in the backlog.
Rule 3: a message of the wrong size is dropped without a reply. There is no room for descriptors of
        clients: the kernel closes them.
Rule 4: a mount goes on without a socket that cannot be made or has failed.

The socket is of type SOCK_SEQPACKET: the kernel keeps messages whole and apart.
"""

import array
import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from barfs.errors import BarfsError
from barfs.process.places import new_directory
from barfs.text.system_errors import reason
from barfs.vfio_user.address import place_of

DEADLINE = 5.0
"""Seconds that a request has to arrive, and a reply to leave."""

_UNREADY, _READY = "unready", "socket"
_BACKLOG = 16
_MOST_CLIENTS = 8
_PAUSE = 1.0
_CREDENTIALS = struct.Struct("@iII")
"""`struct ucred`: pid, uid, gid, as this process's user namespace sees them."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply with its descriptors, which are closed once it is sent, or cannot be."""

    data: bytes
    fds: Sequence[int] = ()


Answer = Callable[[bytes], Awaitable[Reply | None]]
"""Answers a request; None drops it. Bounds its own time, and may run for several at once."""


class MountSocket:
    """A listening socket in a new directory, `/tmp/barfs-KIND-XXXXXXXX/socket`.

    Raises BarfsError or OSError if it cannot be made.
    """

    def __init__(self, kind: str) -> None:
        self._directory = new_directory(f"barfs-{kind}-")
        self.path = self._directory / _READY
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._users = (os.geteuid(), 0)
        try:
            with place_of(str(self._directory / _UNREADY)) as place:
                place.bind(self._listener, 0o600)
            self._listener.listen(_BACKLOG)
            (self._directory / _UNREADY).rename(self.path)
            _remove_abandoned(self._directory.parent, kind)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop listening, and remove the socket with its directory. May be called again."""
        self._listener.close()
        _remove(self._directory)

    async def serve(self, longest: int, answer: Answer) -> None:
        """Answer requests of 1 to `longest` bytes until cancelled."""
        listener = trio.socket.from_stdlib_socket(self._listener)
        limit = trio.Semaphore(_MOST_CLIENTS)
        async with trio.open_nursery() as nursery:
            while True:
                await limit.acquire()
                nursery.start_soon(self._serve, await _accept(listener), longest, answer, limit)

    async def _serve(
        self,
        client: trio.socket.SocketType,
        longest: int,
        answer: Answer,
        limit: trio.Semaphore,
    ) -> None:
        try:
            with client, contextlib.suppress(OSError):
                if not self._may_ask(client):
                    return
                request = b""
                with trio.move_on_after(DEADLINE):
                    request = await client.recv(longest + 1)
                if 0 < len(request) <= longest and (reply := await answer(request)) is not None:
                    await _send(client, reply)
        except Exception:  # a bug in one answer must not end the others
            log.exception("a request to the mount failed")
        finally:
            limit.release()

    def _may_ask(self, client: trio.socket.SocketType) -> bool:
        data = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _gid = _CREDENTIALS.unpack(data)
        if uid not in self._users:
            log.warning("refused process %d of user %d: the mount is another user's", pid, uid)
        return uid in self._users


def _remove(directory: Path) -> None:
    with contextlib.suppress(OSError):
        for name in (_UNREADY, _READY):
            (directory / name).unlink(missing_ok=True)
        directory.rmdir()


def _remove_abandoned(parent: Path, kind: str) -> None:
    """Remove what mounts of this user left when they were killed: sockets that refuse clients.

    A socket has its name only while it listens, so none is taken from a mount that starts.
    """
    for directory in parent.glob(f"barfs-{kind}-*"):
        with contextlib.suppress(OSError):
            if directory.is_symlink() or directory.stat().st_uid != os.geteuid():
                continue
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.setblocking(False)
                try:
                    client.connect(str(directory / _READY))
                except ConnectionRefusedError:
                    _remove(directory)


async def _accept(listener: trio.socket.SocketType) -> trio.socket.SocketType:
    while True:
        try:
            client, _address = await listener.accept()
        except OSError as error:
            if error.errno != errno.ECONNABORTED:  # the client has left
                log.warning("cannot accept a request yet: %s", reason(error))
                await trio.sleep(_PAUSE)
        else:
            return client


async def _send(client: trio.socket.SocketType, reply: Reply) -> None:
    fds = array.array("i", reply.fds)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else []
    try:
        with trio.move_on_after(DEADLINE):
            await client.sendmsg([reply.data], rights)
    finally:
        for fd in fds:
            os.close(fd)


def mount_socket(kind: str) -> MountSocket | None:
    """The socket, or None, with a line in the log, if it cannot be made."""
    try:
        return MountSocket(kind)
    except (BarfsError, OSError) as error:
        text = reason(error)
        log.warning("the mount has no .barfs-%s: %s", kind, text)
        return None
