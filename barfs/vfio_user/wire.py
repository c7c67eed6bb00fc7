# SPDX-License-Identifier: MIT
"""The framing of vfio-user, without I/O: cuts a stream into messages. `messages` has their bodies.

Rule 1: for any input, the only exceptions that leave this module and `messages` are the children
        of `PeerError` below, one for each mistake that a peer can make.
Rule 2: memory is bounded. A message longer than the decoder's limit is refused as soon as its
        header is complete, without waiting for its body.
Rule 3: one codec serves both directions. A client encodes commands and decodes replies, a server
        the reverse; both read their stream with a `Decoder`.

Usage: feed the bytes from `recv` to a `Decoder`; each `next_message()` is a `Message` whose body is
undecoded. A server passes it to `messages.decode_command`, a client to the function
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
"""offset, region, count: the body of REGION_READ, and the bytes before the data elsewhere."""
ACCESS_MESSAGE = struct.Struct("=HHIIIQII")
"""HEADER and REGION_ACCESS in one."""

ID_AT = 0
OFFSET_AT = HEADER.size
"""Where an access's message has its id and its offset, in the formats above."""

FLAG_TYPE_MASK = 0xF
FLAG_REPLY = 0x1
FLAG_NO_REPLY = 0x10
FLAG_ERROR = 0x20

DEFAULT_MAX_FDS = 1
DEFAULT_MAX_TRANSFER = 1 << 20
"""Defaults for a peer that names no limits: descriptors per message, bytes of data per access."""
CLIENT_LIMIT = ACCESS_MESSAGE.size + DEFAULT_MAX_TRANSFER
"""Longest message that a client accepts: a DMA_WRITE of the advertised size. The replies to its
own requests are much shorter."""
SERVER_LIMIT = ACCESS_MESSAGE.size + DEFAULT_MAX_TRANSFER
"""Longest message that a server accepts: a REGION_WRITE of the advertised size."""


class BadSize(PeerError):
    """The header's size is smaller than a header."""


class MessageTooLong(PeerError):
    """The header announces more bytes than this side accepts."""


class BadType(PeerError):
    """The message is neither a command nor a reply."""


class TooManyCommands(PeerError):
    """The server sends commands faster than it receives the answers."""


class UnexpectedReply(PeerError):
    """A reply that answers no request (its id is unknown), or a reply sent to a server."""


class WrongCommand(PeerError):
    """A reply has the id of a request, but names another command."""


class UnknownCommand(PeerError):
    """A command whose number this side does not know."""


class OutOfTurn(PeerError):
    """A command before VERSION, or a second VERSION."""


class BadBody(PeerError):
    """A whole message that names its request, with an invalid body.

    The stream is still in step, so only that request fails.
    """


class BadReplyType(BadBody):
    """A message has the id and the command of a request, but the type of a command."""


class ShortBody(BadBody):
    """The body ends before the fields that it must have, or before the data it announces."""


class TrailingBytes(BadBody):
    """The body goes on after its last field."""


class BadArgsz(BadBody):
    """`argsz` is smaller than the fixed part of the structure."""


class CountMismatch(BadBody):
    """The count of a region access differs from the request's, or from the length of the data."""


class WrongPlace(PeerError):
    """A reply names another region or offset than its request."""


class WrongIndex(PeerError):
    """A message names a region or interrupt that does not exist, or that was not asked for."""


class BadRegion(BadBody):
    """A region whose size or offset is too large for a file."""


class BadInterrupt(PeerError):
    """DEVICE_SET_IRQS contradicts itself, or asks an interrupt for what it cannot do."""


class BadRange(PeerError):
    """An impossible range of DMA addresses, or only a part of a mapped one."""


class RangeExists(PeerError):
    """DMA_MAP over a range that is already mapped."""


class TooManyRanges(PeerError):
    """DMA_MAP of more ranges than a client may have."""


class BadVersion(PeerError):
    """The peer speaks another major version."""


class BadJson(PeerError):
    """The capabilities of a VERSION message are no JSON object, or too long."""


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
    """The name of a command, for errors and logs."""
    try:
        return Number(number).name
    except ValueError:
        return f"command {number}"


@dataclass(frozen=True, slots=True)
class Message:
    """A complete message: the fields of its header, and its undecoded body."""

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
    """Cuts a stream into messages of at most `limit` bytes.

    An error leaves the stream out of step: do not feed the decoder again.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Append received bytes."""
        self._buffer += data

    @property
    def empty(self) -> bool:
        """Whether the stream is between two messages."""
        return not self._buffer

    @property
    def wanted(self) -> int:
        """The number of bytes that complete the header, or, after that, the message.

        A reader that asks for no more never mixes the descriptors of two messages. Raises as
        `next_message`.
        """
        have = len(self._buffer)
        if have < HEADER.size:
            return HEADER.size - have
        _id, _command, size, _flags, _error = self._header()
        return size - have

    def _header(self) -> tuple[int, int, int, int, int]:
        header: tuple[int, int, int, int, int] = HEADER.unpack_from(self._buffer)
        _id, _command, size, flags, _error = header
        if size < HEADER.size:
            raise BadSize(f"a message of {size} bytes, shorter than its header")
        if size > self._limit:
            raise MessageTooLong(f"a message of {size} bytes; at most {self._limit} are accepted")
        if flags & FLAG_TYPE_MASK > FLAG_REPLY:
            raise BadType(f"message flags {flags:#x} mean neither a command nor a reply")
        return header

    def next_message(self) -> Message | None:
        """The next message, or None while it is incomplete.

        Raises BadSize, MessageTooLong or BadType as soon as the header is complete.
        """
        have = len(self._buffer)
        if have < HEADER.size:
            return None
        identifier, command, size, flags, error = self._header()
        if have < size:
            return None
        body = bytes(self._buffer[HEADER.size : size])
        del self._buffer[:size]
        return Message(identifier, command, flags, error, body)


def encode(
    identifier: int, command: int, body: bytes = b"", *, flags: int = 0, error: int = 0
) -> bytes:
    """A whole message. Send it in one call: a split body puts libvfio-user out of step."""
    return HEADER.pack(identifier, command, HEADER.size + len(body), flags, error) + body
