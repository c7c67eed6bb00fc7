# SPDX-License-Identifier: MIT
"""The vfio-user codec: any input decodes to a message or raises a named error."""

import json
import struct
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs.errors import PeerError
from barfs.uapi import DeviceInfo, RegionInfo, SparseArea, encode_region_info
from barfs.vfio_user import messages as m
from barfs.vfio_user import wire
from tests.support.raw import encode_command

LIMIT = 4096

T = TypeVar("T")

u16 = st.integers(0, (1 << 16) - 1)
u32 = st.integers(0, (1 << 32) - 1)
u64 = st.integers(0, (1 << 64) - 1)

commands: st.SearchStrategy[m.Command] = st.one_of(
    st.builds(m.Version, minor=u16, max_fds=u32, max_transfer=st.integers(1, (1 << 32) - 1)),
    st.builds(m.DmaMap, u32, u64, u64, u64),
    st.builds(m.DmaUnmap, u32, u64, u64),
    st.builds(m.GetInfo, st.integers(16, 1 << 20)),
    st.builds(m.GetRegionInfo, u32, st.integers(32, 1 << 20)),
    st.builds(m.IrqInfo, u32, u32, u32),
    st.builds(m.SetIrqs, u32, u32, u32, u32, st.binary(max_size=64)),
    st.builds(m.RegionRead, u32, u64, u32),
    st.builds(m.RegionWrite, u32, u64, st.binary(max_size=64)),
    st.just(m.Reset()),
)

NUMBERS = [*wire.Number, 0, 6, 11, 15, 65535]


def message(body: bytes, command: int, *, flags: int = wire.FLAG_REPLY) -> wire.Message:
    return wire.Message(1, command, flags, 0, body)


def outcome(decode: Callable[[], T]) -> tuple[T | None, PeerError | None]:
    """The result of decoding, or the peer's error; any other exception fails the test."""
    try:
        return decode(), None
    except PeerError as error:
        return None, error


def decode_all(stream: bytes, cuts: list[int]) -> list[wire.Message]:
    """Feed a stream in pieces, as a socket delivers it."""
    decoder = wire.Decoder(LIMIT)
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        decoder.feed(stream[start:end])
        while (one := decoder.next_message()) is not None:
            found.append(one)
    return found


@given(u16, commands)
def test_a_command_comes_back_from_its_bytes(identifier: int, command: m.Command) -> None:
    decoder = wire.Decoder(LIMIT)
    decoder.feed(encode_command(identifier, command))
    got = decoder.next_message()
    assert got is not None
    assert (got.id, got.command, got.is_reply) == (identifier, command.NUMBER, False)
    assert m.decode_command(got) == command
    assert decoder.empty


@given(st.lists(commands, max_size=6), st.data())
def test_where_the_stream_is_cut_makes_no_difference(
    sent: list[m.Command], data: st.DataObject
) -> None:
    stream = b"".join(encode_command(number, one) for number, one in enumerate(sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    assert [m.decode_command(one) for one in decode_all(stream, cuts)] == sent


@given(commands)
def test_a_stream_that_ends_early_is_an_incomplete_message(command: m.Command) -> None:
    stream = encode_command(1, command)
    for end in range(len(stream)):
        decoder = wire.Decoder(LIMIT)
        decoder.feed(stream[:end])
        assert decoder.next_message() is None
        assert 0 < decoder.wanted <= len(stream) - end
        assert decoder.empty == (end == 0)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_junk_gives_messages_or_a_named_error(stream: bytes, cuts: list[int]) -> None:
    cuts = sorted(min(cut, len(stream)) for cut in cuts)
    found, error = outcome(lambda: decode_all(stream, cuts))
    if found is not None:
        assert sum(wire.HEADER.size + len(one.body) for one in found) <= len(stream)
    else:
        assert type(error) in (wire.BadSize, wire.MessageTooLong, wire.BadType)


READ = m.RegionRead(0, 0x10, 4)
WRITE = m.RegionWrite(0, 0x10, b"abcd")
REPLIES: list[Callable[[wire.Message], object]] = [
    m.reply_to_version,
    m.reply_to_info,
    lambda one: m.reply_to_region_info(one, m.GetRegionInfo(0, 4096)),
    lambda one: m.reply_to_read(one, READ),
    lambda one: m.reply_to_write(one, WRITE),
    m.reply_to_reset,
    m.decode_command,
]
bodies = st.one_of(
    st.binary(max_size=100),
    commands.map(lambda command: command.body()),
    st.builds(lambda *fields: struct.pack("=IIIIQQ", *fields), u32, u32, u32, u32, u64, u64),
    st.builds(
        lambda text: struct.pack("=HH", 0, 0) + text + b"\0",
        st.one_of(
            st.binary(max_size=50),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(
                        st.sampled_from(["capabilities", "max_msg_fds", "max_data_xfer_size", "x"]),
                        inner,
                        max_size=3,
                    )
                ),
            ).map(lambda value: json.dumps(value).encode()),
        ),
    ),
)


@given(bodies, st.sampled_from(NUMBERS), u32, st.sampled_from(REPLIES))
def test_a_body_of_junk_is_read_or_refused_by_name(
    body: bytes, number: int, flags: int, decode: Callable[[wire.Message], object]
) -> None:
    _found, error = outcome(lambda: decode(message(body, number, flags=flags)))
    assert type(error) is not PeerError
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("size", "flags", "error"),
    [
        (0, 0, wire.BadSize),
        (15, 0, wire.BadSize),
        (LIMIT + 1, 0, wire.MessageTooLong),
        (0xFFFFFFFF, 1, wire.MessageTooLong),
        (16, 2, wire.BadType),
        (16, 0xF, wire.BadType),
    ],
)
def test_a_bad_header_is_refused_before_its_body_comes(
    size: int, flags: int, error: type[PeerError]
) -> None:
    decoder = wire.Decoder(LIMIT)
    decoder.feed(wire.HEADER.pack(1, 13, size, flags, 0))
    with pytest.raises(error):
        decoder.next_message()
    with pytest.raises(error):
        _ = decoder.wanted


def test_the_longest_accepted_message_is_as_long_as_the_limit() -> None:
    stream = wire.encode(1, wire.Number.DEVICE_SET_IRQS, bytes(LIMIT - wire.HEADER.size))
    (one,) = decode_all(stream, [])
    assert len(one.body) == LIMIT - wire.HEADER.size


def irq(argsz: int) -> bytes:
    return struct.pack("=IIII", argsz, 0, 0, 0)


@pytest.mark.parametrize(
    ("number", "body", "error"),
    [
        (0, b"", wire.UnknownCommand),
        (6, b"", wire.UnknownCommand),
        (15, b"", wire.UnknownCommand),
        (wire.Number.VERSION, b"\0\0\0", wire.ShortBody),
        (wire.Number.VERSION, struct.pack("=HH", 1, 0), wire.BadVersion),
        (wire.Number.DMA_MAP, bytes(31), wire.ShortBody),
        (wire.Number.DMA_MAP, bytes(32), wire.BadArgsz),
        (wire.Number.DMA_MAP, struct.pack("=IIQQQ", 32, 0, 0, 0, 0) + b"x", wire.TrailingBytes),
        (wire.Number.DEVICE_GET_INFO, irq(15), wire.BadArgsz),
        (wire.Number.DEVICE_GET_REGION_INFO, bytes(32), wire.BadArgsz),
        (wire.Number.DEVICE_GET_IRQ_INFO, irq(16)[:-1], wire.ShortBody),
        (wire.Number.DEVICE_SET_IRQS, bytes(19), wire.ShortBody),
        (wire.Number.REGION_READ, bytes(15), wire.ShortBody),
        (wire.Number.REGION_READ, bytes(17), wire.TrailingBytes),
        (wire.Number.REGION_WRITE, struct.pack("=QII", 0, 0, 4) + b"abc", wire.CountMismatch),
        (wire.Number.REGION_WRITE, struct.pack("=QII", 0, 0, 4) + b"abcde", wire.CountMismatch),
        (wire.Number.DEVICE_RESET, b"x", wire.TrailingBytes),
    ],
)
def test_a_malformed_command_has_its_own_error(
    number: int, body: bytes, error: type[PeerError]
) -> None:
    with pytest.raises(error):
        m.decode_command(message(body, number, flags=0))


def test_a_reply_is_no_command() -> None:
    with pytest.raises(wire.UnexpectedReply):
        m.decode_command(message(b"", wire.Number.DEVICE_RESET))


def version(text: bytes) -> m.Version:
    body = struct.pack("=HH", 0, 1) + text
    return m.reply_to_version(message(body, wire.Number.VERSION))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0",
        b"{}\0",
        b'{"capabilities":{}}',
        b'{"x":1}\0',
        b"{}\0\xff after the end of the text",
        b"\0\0\0\0",
    ],
)
def test_capabilities_that_are_not_there_have_their_defaults(text: bytes) -> None:
    assert version(text) == m.Version(0, 1, 1, 1 << 20)


def test_capabilities_are_read() -> None:
    text = b'{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":4,"new":[]}}\0'
    assert version(text) == m.Version(0, 1, 8, 4)
    most = b'{"capabilities":{"max_data_xfer_size":18446744073709551615}}'
    assert version(most) == m.Version(0, 1, 1, (1 << 64) - 1)


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"\xff\xfe",
        b"[]",
        b"1",
        b'"capabilities"',
        b'{"capabilities":[]}',
        b"[" * 10_000,
        b"9" * 10_000,
        b" " * (m.JSON_LIMIT + 1),
    ],
)
def test_json_junk_is_refused(text: bytes) -> None:
    with pytest.raises(wire.BadJson):
        version(text)


@pytest.mark.parametrize("value", [True, None, "8", 1.5, -1, [], 0])
def test_a_capability_must_be_a_number_in_range(value: object) -> None:
    text = json.dumps({"capabilities": {"max_data_xfer_size": value}}).encode()
    with pytest.raises(wire.BadCapability):
        version(text)


def access(number: int, offset: int, region: int, count: int, data: bytes = b"") -> wire.Message:
    return message(struct.pack("=QII", offset, region, count) + data, number)


def test_a_read_gives_its_data() -> None:
    assert m.reply_to_read(access(wire.Number.REGION_READ, 0x10, 0, 4, b"abcd"), READ) == b"abcd"
    m.reply_to_write(access(wire.Number.REGION_WRITE, 0x10, 0, 4), WRITE)
    m.reply_to_write(access(wire.Number.REGION_WRITE, 0x10, 0, 4, b"and more"), WRITE)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (access(wire.Number.REGION_WRITE, 0x10, 0, 4, b"abcd"), wire.WrongCommand),
        (access(wire.Number.REGION_READ, 0x14, 0, 4, b"abcd"), wire.WrongPlace),
        (access(wire.Number.REGION_READ, 0x10, 1, 4, b"abcd"), wire.WrongPlace),
        (access(wire.Number.REGION_READ, 0x10, 0, 2, b"ab"), wire.CountMismatch),
        (access(wire.Number.REGION_READ, 0x10, 0, 4, b"ab"), wire.CountMismatch),
        (access(wire.Number.REGION_READ, 0x10, 0, 4, b"abcdefgh"), wire.CountMismatch),
        (message(bytes(15), wire.Number.REGION_READ), wire.ShortBody),
        (message(b"", wire.Number.REGION_READ), wire.ShortBody),
    ],
)
def test_a_read_reply_must_fit_its_request(reply: wire.Message, error: type[PeerError]) -> None:
    with pytest.raises(error):
        m.reply_to_read(reply, READ)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (access(wire.Number.REGION_WRITE, 0x10, 0, 2), wire.CountMismatch),
        (access(wire.Number.REGION_WRITE, 0x18, 0, 4), wire.WrongPlace),
        (access(wire.Number.REGION_READ, 0x10, 0, 4), wire.WrongCommand),
        (message(b"", wire.Number.REGION_WRITE), wire.ShortBody),
    ],
)
def test_a_write_reply_must_fit_its_request(reply: wire.Message, error: type[PeerError]) -> None:
    with pytest.raises(error):
        m.reply_to_write(reply, WRITE)


def region_reply(info: RegionInfo, *, cut: int | None = None) -> wire.Message:
    return message(encode_region_info(info)[:cut], wire.Number.DEVICE_GET_REGION_INFO)


def test_region_info_comes_with_the_size_that_it_needs() -> None:
    info = RegionInfo(0, 0xF, 0x10000, 0, areas=(SparseArea(0x1000, 0x1000),))
    decoded, argsz = m.reply_to_region_info(region_reply(info), m.GetRegionInfo(0, 4096))
    assert (decoded, argsz) == (info, 32 + 16 + 16)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (region_reply(RegionInfo(1, 3, 0x1000, 0)), wire.WrongIndex),
        (region_reply(RegionInfo(0, 3, 0x1000, 0), cut=31), wire.ShortBody),
        (region_reply(RegionInfo(0, 3, 1 << 63, 0)), wire.BadRegion),
        (region_reply(RegionInfo(0, 3, 1, (1 << 63) - 1)), wire.BadRegion),
        (message(bytes(32), wire.Number.DEVICE_GET_REGION_INFO, flags=0), wire.BadReplyType),
    ],
)
def test_region_info_that_cannot_be_is_refused(reply: wire.Message, error: type[PeerError]) -> None:
    with pytest.raises(error):
        m.reply_to_region_info(reply, m.GetRegionInfo(0, 4096))


def test_a_bad_capability_chain_is_told_not_raised() -> None:
    info = RegionInfo(0, 0xF, 0x10000, 0, areas=(SparseArea(0x1000, 0x1000),))
    decoded, _argsz = m.reply_to_region_info(region_reply(info, cut=60), m.GetRegionInfo(0, 4096))
    assert decoded.chain_error is not None
    assert decoded.areas is None


def test_device_info() -> None:
    info = DeviceInfo(3, 9, 5)
    assert m.reply_to_info(message(info.encode(), wire.Number.DEVICE_GET_INFO)) == info
    with pytest.raises(wire.ShortBody):
        m.reply_to_info(message(info.encode()[:-1], wire.Number.DEVICE_GET_INFO))


def test_an_error_reply_is_a_header_and_an_access_of_nothing_too() -> None:
    (asked,) = decode_all(encode_command(9, m.RegionRead(0, 0, 0)), [])
    (error,) = decode_all(m.encode_error(asked, 22), [])
    assert (error.id, error.command, error.is_reply, error.is_error) == (9, 9, True, True)
    assert (error.error, error.body) == (22, b"")
    (nothing,) = decode_all(m.encode_access_reply(asked, m.RegionRead(0, 0, 0), b""), [])
    assert nothing.body == b""
    assert not nothing.is_error
