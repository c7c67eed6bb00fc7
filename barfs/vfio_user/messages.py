# SPDX-License-Identifier: MIT
"""The bodies of vfio-user messages: commands and replies as frozen dataclasses; without I/O.

Rule 1: an invalid body raises one of the named errors of `wire`, and nothing else does.
Rule 2: a reply is checked against its request before it is used. Bytes after everything that was
        asked for are ignored.
Rule 3: accept what the specification leaves open, refuse what it forbids. A structure with an
        `argsz` of its own may be longer than ours: it is a newer one.
"""

import json
import struct
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from barfs.uapi import (
    REGION_INFO_SIZE,
    DeviceInfo,
    RegionInfo,
    decode_region_info,
    region_info_argsz,
)
from barfs.vfio_user.wire import (
    ACCESS_MESSAGE,
    DEFAULT_MAX_FDS,
    DEFAULT_MAX_TRANSFER,
    FLAG_ERROR,
    FLAG_REPLY,
    REGION_ACCESS,
    BadArgsz,
    BadCapability,
    BadJson,
    BadRegion,
    BadReplyType,
    BadVersion,
    CountMismatch,
    Message,
    Number,
    ShortBody,
    TrailingBytes,
    UnexpectedReply,
    UnknownCommand,
    WrongCommand,
    WrongIndex,
    WrongPlace,
    command_name,
    encode,
)

MAJOR_VERSION = 0
MINOR_VERSION = 0

JSON_LIMIT = 1 << 14
"""Longest accepted JSON text of a VERSION message; real ones take about 200 bytes."""

_VERSION = struct.Struct("=HH")
_DMA_MAP = struct.Struct("=IIQQQ")
_DMA_UNMAP = struct.Struct("=IIQQ")
_INFO = struct.Struct("=IIII")
_REGION_INFO = struct.Struct("=IIIIQQ")
_SET_IRQS = struct.Struct("=IIIII")

_LARGEST_FILE = (1 << 63) - 1


def _fields(layout: struct.Struct, body: bytes, what: str, *, more: bool = False) -> Any:
    """Unpack the fixed fields of `body`; only with `more` may bytes follow them."""
    if len(body) < layout.size:
        raise ShortBody(f"{what}: {len(body)} bytes, expected {layout.size}")
    if len(body) > layout.size and not more:
        raise TrailingBytes(f"{what}: {len(body)} bytes, expected {layout.size}")
    return layout.unpack_from(body)


def _check_argsz(argsz: int, layout: struct.Struct, what: str) -> None:
    if argsz < layout.size:
        raise BadArgsz(f"{what}: argsz {argsz}, smaller than the structure ({layout.size})")


@dataclass(frozen=True, slots=True)
class Version:
    """VERSION, alike in a command and its reply: the version and limits of its sender.

    `max_transfer` limits the data of one region access, in bytes (`max_data_xfer_size`).
    """

    NUMBER: ClassVar = Number.VERSION
    major: int = MAJOR_VERSION
    minor: int = MINOR_VERSION
    max_fds: int = DEFAULT_MAX_FDS
    max_transfer: int = DEFAULT_MAX_TRANSFER

    def body(self) -> bytes:
        capabilities = {"max_msg_fds": self.max_fds, "max_data_xfer_size": self.max_transfer}
        text = json.dumps({"capabilities": capabilities}, separators=(",", ":"))
        return _VERSION.pack(self.major, self.minor) + text.encode() + b"\0"

    @classmethod
    def decode(cls, body: bytes) -> Self:
        major, minor = _fields(_VERSION, body, "VERSION", more=True)
        if major != MAJOR_VERSION:
            raise BadVersion(f"the peer speaks vfio-user {major}.{minor}, not {MAJOR_VERSION}.x")
        capabilities = _capabilities(body[_VERSION.size :])
        return cls(
            major,
            minor,
            _number(capabilities, "max_msg_fds", DEFAULT_MAX_FDS, 0),
            _number(capabilities, "max_data_xfer_size", DEFAULT_MAX_TRANSFER, 1),
        )


def _capabilities(text: bytes) -> dict[str, Any]:
    """The `capabilities` object of a VERSION body; empty if the peer sent none."""
    text = text.partition(b"\0")[0]
    if not text:
        return {}
    if len(text) > JSON_LIMIT:
        raise BadJson(f"{len(text)} bytes of JSON in VERSION; at most {JSON_LIMIT} are accepted")
    try:
        # RecursionError: the parser recurses into nested brackets.
        document = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise BadJson(f"the JSON in VERSION cannot be read: {type(error).__name__}") from None
    capabilities = document.get("capabilities", {}) if isinstance(document, dict) else None
    if not isinstance(capabilities, dict):
        raise BadJson("the JSON in VERSION is not an object with an object `capabilities`")
    return capabilities


def _number(capabilities: dict[str, Any], name: str, default: int, least: int) -> int:
    value = capabilities.get(name, default)
    if type(value) is not int or value < least:
        raise BadCapability(f"capability {name} in VERSION is not a usable number")
    return value


@dataclass(frozen=True, slots=True)
class DmaMap:
    """DMA_MAP: the client offers memory of its own to the device."""

    NUMBER: ClassVar = Number.DMA_MAP
    flags: int
    offset: int
    address: int
    size: int

    def body(self) -> bytes:
        return _DMA_MAP.pack(_DMA_MAP.size, self.flags, self.offset, self.address, self.size)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        argsz, flags, offset, address, size = _fields(_DMA_MAP, body, "DMA_MAP")
        _check_argsz(argsz, _DMA_MAP, "DMA_MAP")
        return cls(flags, offset, address, size)


@dataclass(frozen=True, slots=True)
class DmaUnmap:
    """DMA_UNMAP, alike in a command and its reply."""

    NUMBER: ClassVar = Number.DMA_UNMAP
    flags: int
    address: int
    size: int

    def body(self) -> bytes:
        return _DMA_UNMAP.pack(_DMA_UNMAP.size, self.flags, self.address, self.size)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        argsz, flags, address, size = _fields(_DMA_UNMAP, body, "DMA_UNMAP", more=True)
        _check_argsz(argsz, _DMA_UNMAP, "DMA_UNMAP")
        return cls(flags, address, size)


@dataclass(frozen=True, slots=True)
class GetInfo:
    """DEVICE_GET_INFO; `argsz` is the longest answer that the client takes."""

    NUMBER: ClassVar = Number.DEVICE_GET_INFO
    argsz: int = _INFO.size

    def body(self) -> bytes:
        return _INFO.pack(self.argsz, 0, 0, 0)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        argsz, *_ignored = _fields(_INFO, body, "DEVICE_GET_INFO", more=True)
        _check_argsz(argsz, _INFO, "DEVICE_GET_INFO")
        return cls(argsz)


@dataclass(frozen=True, slots=True)
class GetRegionInfo:
    """DEVICE_GET_REGION_INFO of region `index`; `argsz` is the longest answer the client takes."""

    NUMBER: ClassVar = Number.DEVICE_GET_REGION_INFO
    index: int
    argsz: int = REGION_INFO_SIZE

    def body(self) -> bytes:
        return _REGION_INFO.pack(self.argsz, 0, self.index, 0, 0, 0)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        argsz, _flags, index, *_ignored = _fields(
            _REGION_INFO, body, "DEVICE_GET_REGION_INFO", more=True
        )
        _check_argsz(argsz, _REGION_INFO, "DEVICE_GET_REGION_INFO")
        return cls(index, argsz)


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """DEVICE_GET_IRQ_INFO, alike in a command and its reply; `count` is of vectors."""

    NUMBER: ClassVar = Number.DEVICE_GET_IRQ_INFO
    index: int
    flags: int = 0
    count: int = 0

    def body(self) -> bytes:
        return _INFO.pack(_INFO.size, self.flags, self.index, self.count)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        argsz, flags, index, count = _fields(_INFO, body, "DEVICE_GET_IRQ_INFO")
        _check_argsz(argsz, _INFO, "DEVICE_GET_IRQ_INFO")
        return cls(index, flags, count)


@dataclass(frozen=True, slots=True)
class SetIrqs:
    """DEVICE_SET_IRQS: an action on `count` vectors from `start`, and its data."""

    NUMBER: ClassVar = Number.DEVICE_SET_IRQS
    flags: int
    index: int
    start: int
    count: int
    data: bytes = b""

    def body(self) -> bytes:
        size = _SET_IRQS.size + len(self.data)
        return _SET_IRQS.pack(size, self.flags, self.index, self.start, self.count) + self.data

    @classmethod
    def decode(cls, body: bytes) -> Self:
        argsz, flags, index, start, count = _fields(_SET_IRQS, body, "DEVICE_SET_IRQS", more=True)
        _check_argsz(argsz, _SET_IRQS, "DEVICE_SET_IRQS")
        return cls(flags, index, start, count, body[_SET_IRQS.size :])


@dataclass(frozen=True, slots=True)
class RegionRead:
    """REGION_READ: `count` bytes at `offset` of `region`; one access of the device."""

    NUMBER: ClassVar = Number.REGION_READ
    region: int
    offset: int
    count: int

    def body(self) -> bytes:
        return REGION_ACCESS.pack(self.offset, self.region, self.count)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        offset, region, count = _fields(REGION_ACCESS, body, "REGION_READ")
        return cls(region, offset, count)


@dataclass(frozen=True, slots=True)
class RegionWrite:
    """REGION_WRITE: `data` to `offset` of `region`; one access of the device."""

    NUMBER: ClassVar = Number.REGION_WRITE
    region: int
    offset: int
    data: bytes

    def body(self) -> bytes:
        return REGION_ACCESS.pack(self.offset, self.region, len(self.data)) + self.data

    @classmethod
    def decode(cls, body: bytes) -> Self:
        offset, region, count = _fields(REGION_ACCESS, body, "REGION_WRITE", more=True)
        data = body[REGION_ACCESS.size :]
        if len(data) != count:
            raise CountMismatch(f"REGION_WRITE: count {count}, but {len(data)} bytes of data")
        return cls(region, offset, data)


@dataclass(frozen=True, slots=True)
class Reset:
    """DEVICE_RESET."""

    NUMBER: ClassVar = Number.DEVICE_RESET

    def body(self) -> bytes:
        return b""

    @classmethod
    def decode(cls, body: bytes) -> Self:
        if body:
            raise TrailingBytes(f"DEVICE_RESET: {len(body)} bytes, expected none")
        return cls()


Command = (
    Version
    | DmaMap
    | DmaUnmap
    | GetInfo
    | GetRegionInfo
    | IrqInfo
    | SetIrqs
    | RegionRead
    | RegionWrite
    | Reset
)

_COMMANDS: dict[int, type[Command]] = {
    kind.NUMBER: kind
    for kind in (
        Version,
        DmaMap,
        DmaUnmap,
        GetInfo,
        GetRegionInfo,
        IrqInfo,
        SetIrqs,
        RegionRead,
        RegionWrite,
        Reset,
    )
}


def decode_command(message: Message) -> Command:
    """The command of a client. Raises PeerError, which leaves the stream in step."""
    if message.is_reply:
        raise UnexpectedReply(f"a reply to {command_name(message.command)}, which was never sent")
    kind = _COMMANDS.get(message.command)
    if kind is None:
        raise UnknownCommand(f"{command_name(message.command)} is unknown")
    return kind.decode(message.body)


def encode_reply(message: Message, body: bytes = b"") -> bytes:
    """The reply to `message` on success."""
    return encode(message.id, message.command, body, flags=FLAG_REPLY)


def encode_error(message: Message, error: int) -> bytes:
    """The reply that refuses `message` with an errno: a header without a body."""
    return encode(message.id, message.command, flags=FLAG_REPLY | FLAG_ERROR, error=error)


def encode_access_reply(message: Message, command: RegionRead | RegionWrite, data: bytes) -> bytes:
    """The reply to a region access; `data` is what was read, empty for a write.

    For an access of no bytes it is a header without a body, as from libvfio-user.
    """
    count = command.count if isinstance(command, RegionRead) else len(command.data)
    if count == 0:
        return encode_reply(message)
    place = REGION_ACCESS.pack(command.offset, command.region, count)
    return encode_reply(message, place + data)


def _body_of(message: Message, number: Number) -> bytes:
    if message.command != number:
        raise WrongCommand(f"a reply to {command_name(message.command)} instead of {number.name}")
    if not message.is_reply:
        raise BadReplyType(f"the reply to {number.name} has the type of a command")
    return message.body


def reply_to_version(message: Message) -> Version:
    """The version and limits of the server."""
    return Version.decode(_body_of(message, Number.VERSION))


def reply_to_info(message: Message) -> DeviceInfo:
    """The device info."""
    body = _body_of(message, Number.DEVICE_GET_INFO)
    _fields(_INFO, body, "the reply to DEVICE_GET_INFO", more=True)
    return DeviceInfo.decode(body)


def reply_to_region_info(message: Message, request: GetRegionInfo) -> tuple[RegionInfo, int]:
    """The region info and its `argsz`; if that exceeds the request's, ask again with it."""
    what = "the reply to DEVICE_GET_REGION_INFO"
    body = _body_of(message, Number.DEVICE_GET_REGION_INFO)
    _fields(_REGION_INFO, body, what, more=True)
    argsz = region_info_argsz(body)
    info = decode_region_info(body)
    if info.index != request.index:
        raise WrongIndex(f"{what}: about region {info.index} instead of {request.index}")
    if info.size > _LARGEST_FILE or info.offset > _LARGEST_FILE - info.size:
        raise BadRegion(f"region {info.index}: {info.size:#x} bytes at {info.offset:#x}")
    return info, argsz


def reply_to_read(message: Message, request: RegionRead) -> bytes:
    """The data that was read: as many bytes as the request asked for."""
    body = _body_of(message, Number.REGION_READ)
    _check_place(body, request.region, request.offset, request.count)
    data = body[REGION_ACCESS.size :]
    if len(data) != request.count:
        raise CountMismatch(f"REGION_READ: count {request.count}, but {len(data)} bytes of data")
    return data


def reply_to_write(message: Message, request: RegionWrite) -> None:
    """Check that the server did the write of the request."""
    body = _body_of(message, Number.REGION_WRITE)
    _check_place(body, request.region, request.offset, len(request.data))


def _check_place(body: bytes, region: int, offset: int, count: int) -> None:
    found = _fields(REGION_ACCESS, body, "the reply to a region access", more=True)
    if found[:2] != (offset, region):
        raise WrongPlace(
            f"a reply about region {found[1]} at {found[0]:#x} instead of {region} at {offset:#x}"
        )
    if found[2] != count:
        raise CountMismatch(f"a region access of {found[2]} bytes instead of {count}")


def reply_to_reset(message: Message) -> None:
    """Check that the server did the reset."""
    _body_of(message, Number.DEVICE_RESET)


def access_templates(region: int) -> dict[tuple[int, int], tuple[bytes, bytes]]:
    """An access's request and its expected reply up to the data, with id and offset 0: by direction
    (0: read, 1: write) and width."""
    templates = {}
    for width in (1, 2, 4, 8):
        data = bytes(width)
        read, write = RegionRead(region, 0, width), RegionWrite(region, 0, data)
        commands: tuple[RegionRead | RegionWrite, ...] = (read, write)
        for direction, command in enumerate(commands):
            asked = Message(0, command.NUMBER, 0, 0, command.body())
            request = encode(0, command.NUMBER, asked.body)
            reply = encode_access_reply(asked, command, b"" if direction else data)
            templates[direction, width] = (
                request[: ACCESS_MESSAGE.size],
                reply[: ACCESS_MESSAGE.size],
            )
    return templates
