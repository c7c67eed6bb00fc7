# SPDX-License-Identifier: MIT
"""The gate over a socket in the place of /dev/fuse: what it answers, nonsense included."""

import errno
import os
from collections.abc import Iterator

import pytest

from tests.unit.fuse.gate_rig import (
    FLUSH,
    FORGET,
    GAP,
    GETATTR,
    INIT,
    INIT_IN,
    INIT_OUT,
    INTERRUPT,
    LOOKUP,
    OPEN,
    OPENED,
    OUT_HEADER,
    PATIENCE,
    READ,
    READ_ONLY,
    REGION,
    RELEASE,
    SIZE,
    SLOW,
    TRANSFER,
    WRITE,
    Kernel,
    gated,
)

DIRECT_IO, PARALLEL_WRITES = 1, 1 << 6
OTHER = 1
"""A node that is no region."""


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with gated() as found:
        yield found


def forwarded(kernel: Kernel) -> bytes:
    message: bytes = kernel.libfuse.recv(2 << 20)
    return message


def test_reads_and_writes(kernel: Kernel) -> None:
    for offset in (0, 8, GAP, GAP + 8):
        data = bytes(range(8))
        assert kernel.write(REGION, offset, data) == (0, (8).to_bytes(8, "little"))
        assert os.pread(kernel.memory, 8, offset) == data
        assert kernel.read(REGION, offset, 8) == (0, data)
    assert kernel.read(REGION, SIZE - 4, 64) == (0, bytes(4))
    assert kernel.read(REGION, SIZE, 4) == (0, b"")
    assert kernel.read(REGION, 0, 0) == (0, b"")
    assert kernel.write(REGION, SIZE, b"1234") == (errno.EFBIG, b"")
    assert kernel.write(REGION, SIZE - 2, b"1234") == (0, (2).to_bytes(8, "little"))


@pytest.mark.parametrize("offset", [0, GAP])
def test_a_read_of_the_page_cache_touches_nothing(kernel: Kernel, offset: int) -> None:
    os.pwrite(kernel.memory, b"data", offset)
    assert kernel.read(REGION, offset, 4096, read_flags=0) == (errno.EOPNOTSUPP, b"")
    assert kernel.read(SLOW, 0, 4, read_flags=0) == (errno.EOPNOTSUPP, b"")
    assert kernel.held.calls == []


@pytest.mark.parametrize(
    ("node", "mode", "error"),
    [
        (REGION, os.O_RDONLY, 0),
        (REGION, os.O_WRONLY, 0),
        (REGION, os.O_RDWR | os.O_APPEND, 0),
        (READ_ONLY, os.O_RDONLY, 0),
        (READ_ONLY, os.O_WRONLY, errno.EACCES),
        (READ_ONLY, os.O_RDWR, errno.EACCES),
        (READ_ONLY, os.O_ACCMODE, errno.EACCES),
    ],
)
def test_open(kernel: Kernel, node: int, mode: int, error: int) -> None:
    found, body = kernel.ask(OPENED, node, OPEN.pack(mode, 0))
    assert found == error
    if not error:
        assert int.from_bytes(body[:8], "little") == 0, "the gate keeps no open files"
        assert int.from_bytes(body[8:12], "little") == DIRECT_IO | PARALLEL_WRITES
        assert len(body) == 16


def test_release_is_answered_here(kernel: Kernel) -> None:
    assert kernel.ask(RELEASE, REGION, bytes(24)) == (0, b"")


@pytest.mark.parametrize(
    ("opcode", "node"),
    [
        (LOOKUP, OTHER),
        (READ, OTHER),
        (WRITE, OTHER),
        (OPENED, OTHER),
        (RELEASE, OTHER),
        (READ, 1 << 60),
        (GETATTR, REGION),
        (FLUSH, REGION),
        (9999, REGION),
        (9999, OTHER),
    ],
)
def test_all_else_is_libfuse_s(kernel: Kernel, opcode: int, node: int) -> None:
    body = bytes(range(100))
    unique = kernel.send(opcode, node, body)
    message = forwarded(kernel)
    assert int.from_bytes(message[4:8], "little") == opcode
    assert message.endswith(body)
    answer = OUT_HEADER.pack(OUT_HEADER.size + 3, 0, unique) + b"abc"
    kernel.libfuse.send(answer)
    assert kernel.reply() == (unique, 0, b"abc")


def test_what_libfuse_says_by_itself_is_passed_on(kernel: Kernel) -> None:
    """In its order, and also when no reply comes between."""
    for number in range(20):
        kernel.libfuse.send(OUT_HEADER.pack(OUT_HEADER.size + 1, 3, 0) + bytes([number]))
    assert [kernel.reply()[2] for _ in range(20)] == [bytes([number]) for number in range(20)]


def test_requests_after_libfuse_has_gone(kernel: Kernel) -> None:
    kernel.libfuse.close()
    assert kernel.ask(LOOKUP, OTHER, b"name\0") == (errno.EIO, b"")
    kernel.send(FORGET, OTHER, bytes(8))
    kernel.sync()


@pytest.mark.parametrize("opcode", [READ, WRITE, OPENED, INIT])
def test_a_request_without_its_body(kernel: Kernel, opcode: int) -> None:
    assert kernel.ask(opcode, REGION) == (errno.EIO, b"")
    assert kernel.ask(opcode, REGION, b"1234567") == (errno.EIO, b"")


@pytest.mark.parametrize("opcode", [READ, OPENED, LOOKUP])
@pytest.mark.parametrize("length", [0, 39, 4096, 0xFFFFFFFF])
def test_a_length_that_lies(kernel: Kernel, opcode: int, length: int) -> None:
    body = TRANSFER.pack(0, 0, 4, 2, 0, 0, 0)
    assert kernel.ask(opcode, REGION, body, length=length) == (errno.EIO, b"")


def test_half_a_header_is_not_answered(kernel: Kernel) -> None:
    for length in (1, 8, 39):
        kernel.end.send(b"\xff" * length)
    kernel.send(INTERRUPT, 0)  # nor is an interrupt that does not say of what
    kernel.send(FORGET, OTHER, bytes(8), length=1)
    kernel.sync()
    kernel.assert_silent()


@pytest.mark.parametrize("size", [0, 3, 5, 0xFFFFFFFF])
def test_a_write_whose_size_lies(kernel: Kernel, size: int) -> None:
    body = TRANSFER.pack(0, 0, size, 0, 0, 0, 0) + b"1234"
    assert kernel.ask(WRITE, REGION, body) == (errno.EIO, b"")
    assert os.pread(kernel.memory, 4, 0) == bytes(4)


@pytest.mark.parametrize("offset", [0, GAP, SIZE, 1 << 63, (1 << 64) - 1])
def test_a_huge_count(kernel: Kernel, offset: int) -> None:
    error, data = kernel.read(REGION, offset, 0xFFFFFFFF)
    assert error == 0
    assert data == bytes(max(0, SIZE - offset))


def test_init_loses_what_a_gate_cannot_do(kernel: Kernel) -> None:
    unique = kernel.send(INIT, 0, INIT_IN.pack(7, 45, 0x20000, 0xFFFFFFFF, 0xFFFFFFFF))
    _, _, _, flags, flags2 = INIT_IN.unpack(forwarded(kernel)[40:])
    splice, truncate = 0b111 << 7, 1 << 3
    assert flags == 0xFFFFFFFF & ~(splice | truncate)
    assert flags2 == 0xFFFFFFFF
    most = 16 << 20
    body = INIT_OUT.pack(7, 38, 0x20000, 0xFFFFFFFF, 12, 9, most, 1, 4096, 0, 0)
    kernel.libfuse.send(OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body)
    answered, error, data = kernel.reply()
    assert (answered, error) == (unique, 0)
    _, _, _, flags, background, _, max_write, _, max_pages, _, _ = INIT_OUT.unpack(data)
    assert not flags & (splice | truncate)
    assert max_write == 1 << 20
    assert max_pages * os.sysconf("SC_PAGESIZE") == 1 << 20
    assert background > 12, "a device that hangs would hold up the others' asynchronous I/O"


def test_a_refused_init_is_passed_on(kernel: Kernel) -> None:
    unique = kernel.send(INIT, 0, INIT_IN.pack(7, 45, 0, 0, 0))
    forwarded(kernel)
    kernel.libfuse.send(OUT_HEADER.pack(OUT_HEADER.size, -errno.EPROTO, unique))
    assert kernel.reply() == (unique, errno.EPROTO, b"")


def test_a_removed_device(kernel: Kernel) -> None:
    kernel.in_flight.close()
    kernel.device.remove()
    assert kernel.ask(OPENED, REGION, OPEN.pack(os.O_RDONLY, 0)) == (errno.ENXIO, b"")
    assert kernel.read(REGION, 0, 4) == (errno.ENODEV, b"")
    assert kernel.read(SLOW, 0, 4096) == (errno.ENODEV, b"")
    assert kernel.write(REGION, 0, b"1234") == (errno.ENODEV, b"")
    assert kernel.ask(RELEASE, REGION, bytes(24)) == (0, b"")


def test_a_device_that_takes_no_more_accesses(kernel: Kernel) -> None:
    """As when the peer is found to be gone: nothing was removed yet."""
    kernel.in_flight.close()
    assert kernel.ask(OPENED, REGION, OPEN.pack(os.O_RDONLY, 0)) == (errno.ENXIO, b"")
    for node, offset in ((REGION, 0), (REGION, GAP), (SLOW, 0)):
        assert kernel.read(node, offset, 4) == (errno.ENODEV, b"")
    assert kernel.held.calls == []


def test_a_node_id_is_given_once(kernel: Kernel) -> None:
    ((_name, table), *_others) = kernel.gate._tables.values()
    with pytest.raises(FileExistsError):
        kernel.gate.add_device("again", {REGION: (table, True, True)})
    with pytest.raises(OSError, match="No space") as caught:
        kernel.gate.add_device("again", {1 << 40: (table, True, True)})
    assert caught.value.errno == errno.ENOSPC


def test_the_end_of_requests(kernel: Kernel) -> None:
    kernel.end.close()
    assert kernel.ended.wait(PATIENCE)
