# SPDX-License-Identifier: MIT
"""The vfio-user client: region infos and the descriptors that come with them."""

import errno
import logging
import os
import re
import socket
import struct
import tempfile
import threading
from collections.abc import Callable

import pytest

from barfs.errors import AccessTimeout, DeviceError
from barfs.uapi import RegionInfo, SparseArea, encode_region_info
from barfs.vfio_user import messages as m
from barfs.vfio_user import wire
from tests.support.peer import Answer, Peer, client_of, data, raw, refuse, reply, say_nothing

SHORT = 0.05


def memory(size: int) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


def region(info: RegionInfo, make: Callable[[], list[int]]) -> Answer:
    """Answer with a region info and descriptors."""

    def answer(peer: Peer, message: wire.Message) -> None:
        fds = make()
        socket.send_fds(peer.sock, [m.encode_reply(message, encode_region_info(info))], fds)
        for fd in fds:
            os.close(fd)

    return answer


AREAS = (SparseArea(0x1000, 0x1000), SparseArea(0x3000, 0x800))
SPARSE = RegionInfo(0, 0xF, 0x10000, 0x2000, areas=AREAS)
WHOLE = RegionInfo(0, 7, 0x1000, 0)
BAD = "bad-descriptor"


@pytest.mark.parametrize("count", [1, 2, 16])
def test_one_descriptor_is_kept_and_the_others_of_its_file_closed(count: int) -> None:
    def copies() -> list[int]:
        first = memory(0x5800)
        return [first, *(os.dup(first) for _ in range(count - 1))]

    with client_of(region(SPARSE, copies)) as (client, _peer):
        assert client.region_info(0) == SPARSE
        fd = client.region_fd(0)
        assert isinstance(fd, int)
        assert os.fstat(fd).st_size == 0x5800
        assert not os.get_inheritable(fd)


def pipe_end() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def disk_file() -> int:
    # /proc is a file system that is always there, and is no memory.
    return os.open("/proc/self/maps", os.O_RDONLY)


def memory_folder() -> int:
    return os.open("/dev/shm", os.O_RDONLY)


@pytest.mark.parametrize(
    ("info", "make", "reason", "said"),
    [
        (SPARSE, lambda: [memory(0x57FF)], BAD, "ends at 0x57ff, the windows at 0x5800"),
        (WHOLE, lambda: [memory(0xFFF)], BAD, "ends at 0xfff"),
        (WHOLE, lambda: [disk_file()], BAD, "must be in tmpfs or hugetlbfs"),
        (WHOLE, lambda: [pipe_end()], BAD, "must be in tmpfs or hugetlbfs"),
        (
            WHOLE,
            lambda: [memory_folder()],
            BAD,
            "must be in tmpfs or hugetlbfs|must be a regular file",
        ),
        (
            WHOLE,
            lambda: [os.open("/dev/zero", os.O_RDWR)],
            BAD,
            "must be in tmpfs or hugetlbfs",
        ),
        (WHOLE, lambda: [disk_file(), memory(0x1000)], BAD, "must be in tmpfs or hugetlbfs"),
        (WHOLE, lambda: [memory(0x1000), disk_file()], BAD, "must be in tmpfs or hugetlbfs"),
        (SPARSE, lambda: [memory(0x5800), memory(0x5800)], "descriptors-differ", "of 2 files"),
        (WHOLE, list, "no-descriptor", "no descriptor came"),
    ],
)
def test_a_descriptor_that_cannot_be_trusted_is_refused_with_a_reason(
    info: RegionInfo,
    make: Callable[[], list[int]],
    reason: str,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with client_of(region(info, make), data(b"abcd")) as (client, _peer):
        assert client.region_fd(0) == reason
        assert client.region_info(0) == info
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert record.getMessage().startswith("vfio-user:test: bar0 has no windows")
        assert re.search(said, record.getMessage())
        assert client.read(0, 0, 4) == b"abcd"


def test_a_file_on_tmpfs_is_accepted() -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(0x1000)
        with client_of(region(WHOLE, lambda: [os.dup(file.fileno())])) as (client, _peer):
            assert isinstance(client.region_fd(0), int)


@pytest.mark.parametrize(
    "info",
    [
        RegionInfo(0, 3, 0x1000, 0),
        RegionInfo(0, 0xF, 0x1000, 0, areas=()),
        RegionInfo(0, 0, 0, 0),
    ],
)
def test_a_descriptor_without_windows_is_closed(info: RegionInfo) -> None:
    with client_of(region(info, lambda: [memory(0x1000)])) as (client, _peer):
        assert client.region_fd(0) == "no-descriptor"


def test_more_descriptors_than_allowed_break_the_protocol() -> None:
    answer = region(WHOLE, lambda: [memory(0x1000) for _ in range(17)])
    with client_of(answer) as (client, _peer), pytest.raises(wire.TooManyDescriptors):
        client.region_fd(0)


def test_descriptors_where_none_belong_are_dropped() -> None:
    def with_descriptor(peer: Peer, message: wire.Message) -> None:
        fd = memory(0x1000)
        socket.send_fds(peer.sock, [m.encode_reply(message, message.body + b"abcd")], [fd])
        os.close(fd)

    with client_of(with_descriptor, with_descriptor) as (client, _peer):
        assert client.read(0, 0, 4) == b"abcd"
        assert client.read(0, 0, 4) == b"abcd"


def many_areas(count: int) -> RegionInfo:
    areas = tuple(SparseArea(0x2000 * number, 0x1000) for number in range(count))
    return RegionInfo(0, 0xF, 0x2000 * count, 0, areas=areas)


@pytest.mark.parametrize("caps", [True, False])
def test_a_region_info_that_did_not_fit_is_asked_for_again(caps: bool) -> None:
    info = many_areas(300)
    whole = encode_region_info(info)

    def too_small(message: wire.Message) -> bytes:
        """As the kernel (CAPS set, no offset), or as libvfio-user (CAPS clear)."""
        fields = list(struct.unpack_from("=IIIIQQ", whole))
        fields[1] = 0xF if caps else 0x7
        fields[3] = 0
        return m.encode_reply(message, struct.pack("=IIIIQQ", *fields))

    answer = region(info, lambda: [memory(info.size)])
    with client_of(raw(too_small), answer) as (client, peer):
        assert client.region_info(0) == info
        assert isinstance(client.region_fd(0), int)
        asked = [m.decode_command(one) for one in peer.seen[1:]]
        assert asked == [m.GetRegionInfo(0, 4096), m.GetRegionInfo(0, len(whole))]


def test_a_region_info_that_never_fits_leaves_a_region_without_windows() -> None:
    def grow(message: wire.Message) -> bytes:
        command = m.decode_command(message)
        assert isinstance(command, m.GetRegionInfo)
        fields = struct.pack("=IIIIQQ", command.argsz + 1, 7, 0, 0, 0x1000, 0)
        return m.encode_reply(message, fields)

    with client_of(*[raw(grow)] * 4, data(b"abcd")) as (client, _peer):
        info = client.region_info(0)
        assert info.chain_error is not None
        assert info.size == 0x1000
        assert client.region_fd(0) == "no-descriptor"
        assert client.read(0, 0, 4) == b"abcd"


def test_a_huge_region_info_is_not_asked_for() -> None:
    huge = reply(struct.pack("=IIIIQQ", 0xFFFFFFFF, 0xF, 0, 32, 0x1000, 0))
    with client_of(huge) as (client, _peer):
        assert client.region_info(0).chain_error is not None


@pytest.mark.parametrize("error", [0, errno.EINVAL])
def test_a_region_that_is_refused_is_not_there(error: int) -> None:
    with client_of(refuse(error)) as (client, _peer):
        assert client.region_info(8) == RegionInfo(8, 0, 0, 0)


def test_a_region_that_fails_is_an_error() -> None:
    with (
        client_of(refuse(errno.EIO)) as (client, _peer),
        pytest.raises(DeviceError, match="Input/output error"),
    ):
        client.region_info(0)


def test_the_descriptor_of_a_late_region_info_is_not_taken_for_another() -> None:
    late: list[wire.Message] = []
    info = RegionInfo(0, 7, 0x1000, 0)
    wrong, right = memory(0x1000), memory(0x2000)

    def late_then(peer: Peer, message: wire.Message) -> None:
        body = encode_region_info(info)
        socket.send_fds(peer.sock, [m.encode_reply(late[0], body)], [wrong])
        socket.send_fds(peer.sock, [m.encode_reply(message, body)], [right])

    script = (lambda _peer, message: late.append(message), late_then)
    with client_of(*script, timeout=SHORT) as (client, _peer):
        with pytest.raises(DeviceError, match="DEVICE_GET_REGION_INFO"):
            client.region_info(0)
        fd = client.region_fd(0)
        assert isinstance(fd, int)
        assert os.fstat(fd).st_size == 0x2000
        os.close(wrong)
        os.close(right)


def test_the_descriptor_behind_a_late_access_belongs_to_its_own_message() -> None:
    """The kernel gives both messages to one recvmsg, when that has room for them."""
    both_sent = threading.Event()

    def answer_this_and_the_next(peer: Peer, message: wire.Message) -> None:
        peer.release.wait()
        data(b"OLD!")(peer, message)
        number = wire.Number.DEVICE_GET_REGION_INFO
        following = wire.Message(message.id + 1, number, wire.FLAG_REPLY, 0, b"")
        region(WHOLE, lambda: [memory(0x1000)])(peer, following)
        both_sent.set()

    with client_of(answer_this_and_the_next, say_nothing, timeout=SHORT) as (client, peer):
        with pytest.raises(AccessTimeout):
            client.read(0, 0, 4)
        peer.release.set()
        both_sent.wait()
        assert isinstance(client.region_fd(0), int)
