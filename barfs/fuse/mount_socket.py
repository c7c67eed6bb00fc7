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
Rule 4: a client that asked for it keeps its connection, until the mount has news for it: the end of
        the connection. That is no client that is being served, and there may be many.
Rule 5: a mount that was killed leaves its directory, which the next mount of this user removes. So
        the socket has its name only while it listens: one that refuses connections is dead.
Rule 6: a mount goes on without a socket that has failed, or that cannot be made and was not asked
        for.

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

from barfs.engine import Owner
from barfs.errors import BarfsError
from barfs.process.places import new_directory, runtime_directory
from barfs.text.system_errors import reason

DEADLINE = 5.0
"""Seconds that a request has to arrive, and a reply to leave."""

_BACKLOG = 16
_MOST_CLIENTS = 8
_MOST_STAYING = 256
_PAUSE = 1.0
_NAME, _UNNAMED = "socket", "new"
_CREDENTIALS = struct.Struct("@iII")
"""`struct ucred`: pid, uid, gid, as this process's user namespace sees them."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply with its descriptors, which are closed once it is sent, or cannot be.

    With `until`, the connection ends when that is set, or when the client ends it. `sent_to` is
    called with the number of the client's process before it has the reply.
    """

    data: bytes
    fds: Sequence[int] = ()
    until: trio.Event | None = None
    sent_to: Callable[[int], object] = lambda _pid: None


Answer = Callable[[bytes], Awaitable[Reply | None]]
"""Answers a request; None drops it. Bounds its own time, and may run for several at once."""


class MountSocket:
    """A listening socket in a new directory, `/run/barfs-KIND-XXXXXXXX/socket` or the like.

    Raises BarfsError or OSError if it cannot be made.
    """

    def __init__(self, kind: str) -> None:
        self._owner = Owner()
        self._staying = 0
        self._users = (os.geteuid(), 0)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # Other processes may have a /tmp of their own.
            self._directory = new_directory(f"barfs-{kind}-", first=runtime_directory())
        except BaseException:
            self._listener.close()
            raise
        _remove_dead(self._directory.parent, f"barfs-{kind}-")
        self.path = self._directory / _NAME
        try:
            folder = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # A path may be too long for an address (unix(7)).
                self._listener.bind(f"/proc/self/fd/{folder}/{_UNNAMED}")
                os.chmod(_UNNAMED, 0o600, dir_fd=folder)  # whatever the umask
                self._listener.listen(_BACKLOG)
                os.rename(_UNNAMED, _NAME, src_dir_fd=folder, dst_dir_fd=folder)
            finally:
                os.close(folder)
        except BaseException:
            self.close()
            raise

    @property
    def has_room(self) -> bool:
        """Whether one more client may stay."""
        return self._staying < _MOST_STAYING

    def close(self) -> None:
        """Stop listening, and remove the socket with its directory. May be called again.

        Does nothing in a forked child.
        """
        if not self._owner.is_here:
            return
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
        with client:
            try:
                until = None
                with contextlib.suppress(OSError):
                    until = await self._answer(client, longest, answer)
            except Exception:  # a bug in one answer must not end the others
                log.exception("a request to the mount failed")
            finally:
                limit.release()
            if until is not None:
                await self._stay(client, until)

    async def _answer(
        self, client: trio.socket.SocketType, longest: int, answer: Answer
    ) -> trio.Event | None:
        """Answer one request; returns what the client stays for, if it does."""
        pid, uid = _peer(client)
        if uid not in self._users:
            log.warning("refused process %d of user %d: the mount is another user's", pid, uid)
            return None
        request = b""
        with trio.move_on_after(DEADLINE):
            request = await client.recv(longest + 1)
        reply = await answer(request) if 0 < len(request) <= longest else None
        if reply is None:
            return None
        reply.sent_to(pid)
        await _send(client, reply)
        return reply.until

    async def _stay(self, client: trio.socket.SocketType, until: trio.Event) -> None:
        self._staying += 1
        try:
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    await until.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(wait)
                with contextlib.suppress(OSError):
                    await client.recv(1)  # returns when it hangs up
                nursery.cancel_scope.cancel()
        finally:
            self._staying -= 1


def _peer(client: trio.socket.SocketType) -> tuple[int, int]:
    """The process and the user of a client; 0 for a process that this one's namespace lacks."""
    data = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _gid = _CREDENTIALS.unpack(data)
    return pid, uid


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


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for name in (_NAME, _UNNAMED):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _remove_dead(parent: Path, prefix: str) -> None:
    for folder in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid == os.geteuid() and _is_dead(folder / _NAME):
                _remove(folder)


def _is_dead(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False


def mount_socket(kind: str) -> MountSocket | None:
    """The socket, or None, with a line in the log, if it cannot be made."""
    try:
        return MountSocket(kind)
    except (BarfsError, OSError) as error:
        text = reason(error)
        log.warning("the mount has no .barfs-%s: %s", kind, text)
        return None
