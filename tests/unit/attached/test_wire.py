# SPDX-License-Identifier: MIT
"""The messages by which windows are handed out: what is sent comes back, all else is refused."""

import errno
import random
import struct
from dataclasses import replace

import pytest

from barfs.attached.wire import (
    LONGEST_REPLY,
    MOST_WINDOWS,
    REQUEST_SIZE,
    BadMessage,
    Reply,
    Request,
    Window,
)

WINDOWS = [
    Window(0x1000, 0x1000, 0x5000, 0, readable=True, writable=True),
    Window(0x3000, 0x800, 0x7000, 1, readable=True, writable=False),
]
REPLY = Reply(0, 0x3800, WINDOWS, 2, stays=True)


def test_what_other_languages_rely_on() -> None:
    assert Request(7).encode() == struct.pack("=8sIIQ", b"barfsmap", 1, 0, 7)
    assert Request(7, stay=True).encode() == struct.pack("=8sIIQ", b"barfsmap", 1, 1, 7)
    head = struct.pack("=8sIIQIIII", b"barfsmap", 1, 0, 0x3800, 2, 2, 1, 0)
    rows = struct.pack("=QQQII", 0x1000, 0x1000, 0x5000, 0, 3)
    rows += struct.pack("=QQQII", 0x3000, 0x800, 0x7000, 1, 1)
    assert REPLY.encode() == head + rows


@pytest.mark.parametrize("request_", [Request(0), Request(2**64 - 1, stay=True)])
def test_requests_come_back(request_: Request) -> None:
    assert Request.decode(request_.encode()) == request_


@pytest.mark.parametrize("reply", [REPLY, Reply(errno.ENODEV, 4096), Reply()])
def test_replies_come_back(reply: Reply) -> None:
    assert Reply.decode(reply.encode()) == replace(reply, windows=list(reply.windows))


def test_the_longest_reply() -> None:
    windows = [Window(at, 1, at, 0, True, True) for at in range(MOST_WINDOWS)]
    assert len(Reply(0, MOST_WINDOWS, windows, 1).encode()) == LONGEST_REPLY


GOOD = Request(7).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:-1],
        GOOD + b"\0",
        b"barfsMAP" + GOOD[8:],
        GOOD[:8] + b"\2" + GOOD[9:],
        GOOD[:12] + b"\2" + GOOD[13:],
    ],
)
def test_bad_requests(data: bytes) -> None:
    with pytest.raises(BadMessage):
        Request.decode(data)


@pytest.mark.parametrize(
    "reply",
    [
        replace(REPLY, size=0x3000),
        replace(REPLY, size=1 << 63),
        replace(REPLY, descriptors=1),
        replace(REPLY, descriptors=254),
        replace(REPLY, error=errno.ENODEV),
        replace(REPLY, windows=WINDOWS[::-1]),
        replace(REPLY, windows=[replace(WINDOWS[0], size=0)]),
        replace(REPLY, windows=[replace(WINDOWS[0], fd_offset=(1 << 63) - 0x1000)]),
        Reply(123456),
    ],
)
def test_replies_that_contradict_themselves(reply: Reply) -> None:
    with pytest.raises(BadMessage):
        Reply.decode(reply.encode())


def test_no_bytes_raise_anything_else() -> None:
    source = random.Random(3)
    good = REPLY.encode()
    refused = 0
    for _ in range(5000):
        data = bytearray(good)
        for _ in range(source.randint(1, 4)):
            data[source.randrange(len(data))] = source.randrange(256)
        cut = bytes(data[: source.choice([len(data), source.randrange(len(data))])])
        try:
            Reply.decode(cut)
        except BadMessage:
            refused += 1
    assert refused > 3000
    assert REQUEST_SIZE == 24
