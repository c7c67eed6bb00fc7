# SPDX-License-Identifier: MIT
"""Asks a mount for the windows of a region, by the protocol of `barfs.attached.wire`.

Rule 1: any user may mount anything: an answer counts only from a process of this user or of root.
Rule 2: a mount that does not answer costs `DEADLINE` seconds, no more.
Rule 3: descriptors that come with an answer that does not count are closed.
"""

import array
import contextlib
import os
import socket
import struct
from dataclasses import dataclass

from barfs.attached.wire import LONGEST_REPLY, MOST_DESCRIPTORS, BadMessage, Reply, Request
from barfs.errors import DeviceError
from barfs.text.system_errors import reason, why_no_descriptor_came

DEADLINE = 5.0
"""Seconds that the mount has to take a request, and to answer it."""

_SOCKET = ".barfs-map"
_CREDENTIALS = struct.Struct("@iII")


@dataclass(frozen=True, slots=True)
class Granted:
    """The windows of a region, and the descriptors that they are in, which the holder closes.

    `connection` ends when the device leaves; None if the mount has no room for one more.
    """

    reply: Reply
    fds: tuple[int, ...]
    connection: socket.socket | None


def ask(root: int, inode: int) -> Granted:
    """The windows of the region file with this inode number in the mount with this root.

    Raises DeviceError if the mount does not answer as it should.
    """
    with contextlib.ExitStack() as stack:
        try:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.callback(connection.close)
            _limit_connect(connection)
            connection.connect(f"/proc/self/fd/{root}/{_SOCKET}")
            _check_server(connection)
            connection.settimeout(DEADLINE)
            connection.send(Request(inode, stay=True).encode())
            reply, fds = _receive(connection)
        except (OSError, BadMessage) as error:
            why = reason(error) if isinstance(error, OSError) else error
            raise DeviceError(f"the mount hands out no windows: {why}") from error
        if not reply.stays:
            return Granted(reply, fds, None)
        connection.settimeout(None)
        stack.pop_all()
        return Granted(reply, fds, connection)


def _limit_connect(connection: socket.socket) -> None:
    """With Python's own timeout, connect would not wait for room in the backlog (EAGAIN)."""
    limit = struct.pack("@ll", int(DEADLINE), 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _check_server(connection: socket.socket) -> None:
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(data)
    if uid not in (0, os.geteuid()):
        raise BadMessage(f"it is user {uid}'s; only root's and your own count")


def _receive(connection: socket.socket) -> tuple[Reply, tuple[int, ...]]:
    numbers = array.array("i")
    room = socket.CMSG_SPACE(MOST_DESCRIPTORS * numbers.itemsize)
    data, ancillary, flags, _address = connection.recvmsg(
        LONGEST_REPLY + 1, room, socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, rights in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(rights[: len(rights) - len(rights) % numbers.itemsize])
    try:
        if not data:
            raise BadMessage("it is another user's, or busy")
        if flags & socket.MSG_CTRUNC:
            raise BadMessage(why_no_descriptor_came())
        reply = Reply.decode(data)
        if len(numbers) != reply.descriptors:
            raise BadMessage(f"{len(numbers)} descriptors came, not {reply.descriptors}")
    except BadMessage:
        for fd in numbers:
            os.close(fd)
        raise
    return reply, tuple(numbers)
