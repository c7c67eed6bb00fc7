# SPDX-License-Identifier: MIT
"""Invalid messages: a valid one with a few of its fields, bytes or edges changed.

Seeded, so that a failure can be reproduced.
"""

import random
import struct

NUMBERS = (0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 48, 255, 4095, 4096, 4097, 1 << 15, 1 << 16)
EDGES = (*NUMBERS, *((1 << bits) + step for bits in (31, 32, 40, 62, 63, 64) for step in (-1, 0)))
JSON = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b"NaN",
    b"-1",
    b"1e999",
    b"0.5",
    b"true",
    b'"\\ud800"',
    b'{"capabilities":',
    b'"max_msg_fds":',
    b'"max_data_xfer_size":',
    b"\xff\xfe",
    b"\0",
    b"[" * 3000,
    b'{"":' * 3000,
    b"9" * 5000,
    b" " * 20_000,
)


def mutate(source: random.Random, good: bytes) -> bytes:
    """A message that differs from `good` in one to eight places; now and then in none."""
    data = bytearray(good)
    for _change in range(source.choice((1, 1, 1, 2, 2, 3, 8))):
        _CHANGES[int(source.random() * len(_CHANGES))](source, data)
    return bytes(data)


def _field(source: random.Random, data: bytearray) -> None:
    """An integer of the header or the body becomes another one, at its natural place."""
    width, form = source.choice(((2, "=H"), (4, "=I"), (4, "=I"), (8, "=Q")))
    if len(data) >= width:
        at = int(source.random() * (len(data) // width)) * width
        value = source.choice(EDGES) if source.random() < 0.8 else source.getrandbits(64)
        struct.pack_into(form, data, at, value % (1 << 8 * width))


def _bit(source: random.Random, data: bytearray) -> None:
    if data:
        data[int(source.random() * len(data))] ^= 1 << int(source.random() * 8)


def _cut(source: random.Random, data: bytearray) -> None:
    del data[int(source.random() * (len(data) + 1)) :]


def _extend(source: random.Random, data: bytearray) -> None:
    data += source.randbytes(source.choice(NUMBERS[:16]))


def _repeat(source: random.Random, data: bytearray) -> None:
    """A piece of the message occurs twice: a second capability, a second message."""
    start = int(source.random() * (len(data) + 1))
    piece = data[start : start + int(source.random() * 40)]
    at = int(source.random() * (len(data) + 1))
    data[at:at] = piece


def _text(source: random.Random, data: bytearray) -> None:
    at = int(source.random() * (len(data) + 1))
    data[at : at + int(source.random() * 8)] = source.choice(JSON)


def _right_size(_source: random.Random, data: bytearray) -> None:
    """The header has the message's present length: only the body is wrong."""
    if len(data) >= 8:
        struct.pack_into("=I", data, 4, len(data))


_CHANGES = (_field, _field, _field, _bit, _cut, _extend, _repeat, _text, _right_size, _right_size)
