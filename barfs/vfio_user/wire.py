# SPDX-License-Identifier: MIT
"""The frames of vfio-user, without I/O: a stream of bytes cut into messages; bodies: `messages`.

Rule 1: whatever bytes come in, the only exceptions that leave this module and `messages` are the
        children of `PeerError` below, one for each way in which a peer can be wrong.
Rule 2: memory is bounded. A message that announces more than the decoder's limit is refused when
        its header is complete; its body is never waited for.
Rule 3: one codec for both directions. A client encodes commands and decodes replies, a server the
        other way round; both read their stream with a `Decoder`.

How it is used: feed what `recv` gave to a `Decoder`; each `next_message()` is a `Message`, header
and undecoded body. A server hands it to `messages.decode_command`, a client to the function
`messages.reply_to_*` of the command that it sent.

The format is that of QEMU's `docs/interop/vfio-user.rst`: host byte order, unpadded, a header of
16 bytes and a body that depends on the command.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

from barfs.errors import PeerError

HEADER = struct.Struct("=HHIII")
"""id, command, size of the whole message, flags, errno."""
REGION_ACCESS = struct.Struct("=QII")
"""offset, region, count: the body of REGION_READ, and what stands before the data elsewhere."""
ACCESS_MESSAGE = struct.Struct("=HHIIIQII")
"""HEADER and REGION_ACCESS in one."""

FLAG_TYPE_MASK = 0xF
FLAG_REPLY = 0x1
FLAG_NO_REPLY = 0x10
FLAG_ERROR = 0x20

DEFAULT_MAX_FDS = 1
DEFAULT_MAX_TRANSFER = 1 << 20
"""What a peer takes that does not say so: descriptors of a message, data of an access in bytes."""
CLIENT_LIMIT = ACCESS_MESSAGE.size + DEFAULT_MAX_TRANSFER
"""Longest message that a client accepts: a DMA_WRITE of the size that it advertises. No reply that
it asks for comes near."""
SERVER_LIMIT = ACCESS_MESSAGE.size + DEFAULT_MAX_TRANSFER
"""Longest message that a server accepts: a REGION_WRITE of the size that it advertises."""


class BadSize(PeerError):
    """The header's size is smaller than a header."""


class MessageTooLong(PeerError):
    """The header announces more bytes than this side accepts."""


class BadType(PeerError):
    """The message is neither a command nor a reply."""


class TooManyCommands(PeerError):
    """More commands to a client than it may leave without an answer."""


class UnexpectedReply(PeerError):
    """A reply arrived that answers no request (the id is unknown), or where only commands can."""


class WrongCommand(PeerError):
    """A reply has the id of a request, but names another command."""


class UnknownCommand(PeerError):
    """A command with a number that this side does not know."""


class OutOfTurn(PeerError):
    """A command before VERSION, or a second VERSION."""


class BadBody(PeerError):
    """A whole message that says what it belongs to, with a body that makes no sense.

    The stream is in step, and it is known which request it is about: it costs that one.
    """


class BadReplyType(BadBody):
    """A message has the id and the command of a request, but the type of a command."""


class ShortBody(BadBody):
    """The body ends before the fields that it must have, or before the data it announces."""


class TrailingBytes(BadBody):
    """The body goes on after its last field."""


class BadArgsz(BadBody):
    """`argsz` leaves no room for the fixed part of the structure."""


class CountMismatch(BadBody):
    """The count of a region access differs from what was asked, or from the data that came."""


class WrongPlace(PeerError):
    """A reply is about another region or another offset than the request."""


class WrongIndex(PeerError):
    """A reply describes another region or interrupt than the request named."""


class BadRegion(BadBody):
    """A region whose size or offset no file can have."""


class BadInterrupt(PeerError):
    """DEVICE_SET_IRQS asks for what no interrupt of the index can do, or contradicts itself."""


class BadRange(PeerError):
    """A range of DMA addresses that cannot be, or a part of one that was mapped."""


class RangeExists(PeerError):
    """DMA_MAP over a range that is mapped already."""


class TooManyRanges(PeerError):
    """DMA_MAP of more ranges than a client may have."""


class BadVersion(PeerError):
    """The peer speaks another major version."""


class BadJson(PeerError):
    """The capabilities of a VERSION message are not a JSON object, or are too long."""


class BadCapability(PeerError):
    """A capability of a VERSION message has a value of the wrong type or out of range."""


class TooManyDescriptors(PeerError):
    """A reply brought more descriptors than were allowed."""


class Number(IntEnum):
    """The commands, by their number on the wire."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13


def command_name(number: int) -> str:
    """The name of a command for messages to people."""
    try:
        return Number(number).name
    except ValueError:
        return f"command {number}"


@dataclass(frozen=True, slots=True)
class Message:
    """A complete message: the header's fields and the body, not yet looked at."""

    id: int
    command: int
    flags: int
    error: int
    body: bytes

    @property
    def is_reply(self) -> bool:
        return self.flags & FLAG_TYPE_MASK == FLAG_REPLY

    @property
    def is_error(self) -> bool:
        return bool(self.flags & FLAG_ERROR)

    @property
    def wants_reply(self) -> bool:
        return not self.flags & FLAG_NO_REPLY


class Decoder:
    """Cuts a stream into messages. `limit` is the size of the longest accepted one.

    After an error the stream is out of step: feed it no more.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Take over what was received."""
        self._buffer += data

    @property
    def empty(self) -> bool:
        """Whether the stream stands between two messages."""
        return not self._buffer

    @property
    def wanted(self) -> int:
        """How many bytes complete the header, or, once that is there, the message.

        Reading no more than this keeps the descriptors of one message apart from the next's.
        Raises what `next_message` raises.
        """
        have = len(self._buffer)
        if have < HEADER.size:
            return HEADER.size - have
        return self._size() - have

    def _size(self) -> int:
        _id, _command, size, flags, _error = HEADER.unpack_from(self._buffer)
        if size < HEADER.size:
            raise BadSize(f"a message of {size} bytes, shorter than its header")
        if size > self._limit:
            raise MessageTooLong(f"a message of {size} bytes; at most {self._limit} are accepted")
        if flags & FLAG_TYPE_MASK > FLAG_REPLY:
            raise BadType(f"message flags {flags:#x} mean neither a command nor a reply")
        return int(size)

    def next_message(self) -> Message | None:
        """The next complete message, None while it is incomplete.

        Raises BadSize, MessageTooLong or BadType as soon as the header is there.
        """
        if len(self._buffer) < HEADER.size:
            return None
        size = self._size()
        if len(self._buffer) < size:
            return None
        identifier, command, _size, flags, error = HEADER.unpack_from(self._buffer)
        body = bytes(memoryview(self._buffer)[HEADER.size : size])
        del self._buffer[:size]
        return Message(identifier, command, flags, error, body)


def encode(
    identifier: int, command: int, body: bytes = b"", *, flags: int = 0, error: int = 0
) -> bytes:
    """A whole message. Send it with one `sendmsg`: libvfio-user loses step when a body is split."""
    return HEADER.pack(identifier, command, HEADER.size + len(body), flags, error) + body
