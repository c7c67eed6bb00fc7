# SPDX-License-Identifier: MIT
"""Uevents, by which the kernel reports over netlink that a driver was bound to a PCI function.

Rule 1: only messages from the kernel count; any process may send to the socket.
Rule 2: an event is a hint to look, never a fact: things may change before it is read. After events
        were lost, every function is examined.

Format: `lib/kobject_uevent.c`; Linux sends `bind` events since 4.14.
"""

import errno
import socket
from dataclasses import dataclass

import trio

from barfs.errors import UsageError
from barfs.pci import Bdf

_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1
_KERNEL_PORT = 0
_LONGEST = 1 << 16


@dataclass(frozen=True, slots=True)
class Bound:
    """A driver was bound to the function at `bdf`, or, if None after lost events, to any."""

    bdf: Bdf | None


def parse(message: bytes) -> Bound | None:
    """Decode a message of the kernel; None if it is about something else."""
    _head, *lines = message.split(b"\0")
    fields = dict(line.split(b"=", 1) for line in lines if b"=" in line)
    if fields.get(b"ACTION") != b"bind" or fields.get(b"SUBSYSTEM") != b"pci":
        return None
    try:
        return Bound(Bdf.parse(fields.get(b"PCI_SLOT_NAME", b"").decode()))
    except (UsageError, UnicodeDecodeError):
        return None


class Uevents:
    """A subscription to the kernel's uevents, in force once it is made. Raises OSError."""

    def __init__(self) -> None:
        plain = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_KOBJECT_UEVENT)
        try:
            plain.bind((0, _KERNEL_GROUP))
            self._socket = trio.socket.from_stdlib_socket(plain)
        except BaseException:
            plain.close()
            raise

    async def next_bound(self) -> Bound:
        """Wait until a driver has been bound to a PCI function."""
        while True:
            try:
                message, (port, _groups) = await self._socket.recvfrom(_LONGEST)
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return Bound(None)
                raise
            if port == _KERNEL_PORT and (bound := parse(message)) is not None:
                return bound

    def close(self) -> None:
        self._socket.close()
