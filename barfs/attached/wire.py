# SPDX-License-Identifier: MIT
"""The protocol by which a mount hands out the windows of a region, in numbers of this machine.

A mount made with `-o map` has a hidden link `.barfs-map` in its root, to a SOCK_SEQPACKET socket.
A client sends one request and gets one reply, after which the server closes the connection:

    request  24 bytes   magic, version, flags, st_ino of the region's file
    reply    40 bytes   magic, version, errno, size of the region, count of windows, count of
                        descriptors, flags, 0
             32 bytes   for each window: offset in the region, size, offset in the descriptor,
                        number of the descriptor, access

with the descriptors in one SCM_RIGHTS. `barfs run` has the same in C.

Rule 1: what is not exactly a request of this version gets no reply.
Rule 2: windows are whole pages, apart from one that ends with its region; each lies in one area of
        the driver (rule 5 of `barfs.layout`), so a client maps each by itself.
Rule 3: with the flag STAY, the server keeps the connection until the device leaves or the mount
        ends, where it has room for that; the reply's flag tells.
Rule 4: pure: sockets are elsewhere.
"""

import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from barfs.errors import BarfsError

_MAGIC = b"barfsmap"
_VERSION = 1
STAY = 1
_READ, _WRITE = 1, 2

_REQUEST = struct.Struct("=8sIIQ")
_REPLY = struct.Struct("=8sIIQIIII")
_WINDOW = struct.Struct("=QQQII")

REQUEST_SIZE = _REQUEST.size
MOST_WINDOWS = 4096
MOST_DESCRIPTORS = 253
"""The most that one message takes (unix(7), SCM_RIGHTS)."""

LONGEST_REPLY = _REPLY.size + MOST_WINDOWS * _WINDOW.size
LARGEST = 1 << 63
"""No offset or size reaches it: off_t is signed."""


class BadMessage(BarfsError):
    """What the other end sent is no message of this protocol."""


@dataclass(frozen=True, slots=True)
class Request:
    """Asks for the windows of the region file with this inode number."""

    inode: int
    stay: bool = False

    def encode(self) -> bytes:
        return _REQUEST.pack(_MAGIC, _VERSION, STAY if self.stay else 0, self.inode)

    @classmethod
    def decode(cls, data: bytes) -> "Request":
        """Raises BadMessage."""
        if len(data) != REQUEST_SIZE:
            raise BadMessage(f"a request must have {REQUEST_SIZE} bytes, not {len(data)}")
        magic, version, flags, inode = _REQUEST.unpack(data)
        if (magic, version) != (_MAGIC, _VERSION) or flags & ~STAY:
            raise BadMessage("a request must be of version 1, with known flags")
        return cls(inode, bool(flags & STAY))


@dataclass(frozen=True, slots=True)
class Window:
    """`size` bytes at `offset` of a region, which are at `fd_offset` of the descriptor with this
    number, and how they may be mapped."""

    offset: int
    size: int
    fd_offset: int
    descriptor: int
    readable: bool
    writable: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """The windows of a region of `size` bytes, or the errno that says why there are none."""

    error: int = 0
    size: int = 0
    windows: Sequence[Window] = ()
    descriptors: int = 0
    stays: bool = False

    def encode(self) -> bytes:
        flags = STAY if self.stays else 0
        counts = (len(self.windows), self.descriptors)
        head = _REPLY.pack(_MAGIC, _VERSION, self.error, self.size, *counts, flags, 0)
        return head + b"".join(map(_encode, self.windows))

    @classmethod
    def decode(cls, data: bytes) -> "Reply":
        """Raises BadMessage for a reply that contradicts itself in any way."""
        if len(data) < _REPLY.size:
            raise BadMessage(f"a reply must have {_REPLY.size} bytes or more, not {len(data)}")
        magic, version, error, size, count, fds, flags, _zero = _REPLY.unpack_from(data)
        if (magic, version) != (_MAGIC, _VERSION):
            raise BadMessage("a reply must be of version 1")
        if error and error not in errno.errorcode:
            raise BadMessage(f"error {error} is unknown")
        if count > MOST_WINDOWS or fds > MOST_DESCRIPTORS or size >= LARGEST:
            raise BadMessage(f"{count} windows, {fds} descriptors, {size:#x} bytes are too many")
        if len(data) != _REPLY.size + count * _WINDOW.size or (error and (count or fds)):
            raise BadMessage(f"a reply with {count} windows must not have {len(data)} bytes")
        windows = [_decode(*numbers) for numbers in _WINDOW.iter_unpack(data[_REPLY.size :])]
        end = 0
        for window in windows:
            if window.offset < end or window.offset + window.size > size:
                raise BadMessage("windows must be in order, and inside the region")
            if window.descriptor >= fds or window.fd_offset + window.size >= LARGEST:
                raise BadMessage("windows must be of descriptors that come with them")
            end = window.offset + window.size
        return cls(error, size, windows, fds, bool(flags & STAY))


def _encode(window: Window) -> bytes:
    access = (_READ if window.readable else 0) | (_WRITE if window.writable else 0)
    place = (window.offset, window.size, window.fd_offset)
    return _WINDOW.pack(*place, window.descriptor, access)


def _decode(offset: int, size: int, fd_offset: int, descriptor: int, access: int) -> Window:
    if not size:
        raise BadMessage("a window must have at least 1 byte")
    return Window(offset, size, fd_offset, descriptor, bool(access & _READ), bool(access & _WRITE))
