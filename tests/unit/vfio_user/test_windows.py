# SPDX-License-Identifier: MIT
"""Devices whose server reports areas and descriptors, right and wrong: what becomes of windows."""

import contextlib
import ctypes
import errno
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest

from barfs import engine
from barfs.device import Device, MappingMode, Options
from barfs.errors import AccessDenied, InvalidAccess, PolicyDenied, UsageError
from barfs.pci import CONFIG_INDEX
from barfs.policy import AccessPolicy
from barfs.region import table_of
from barfs.uapi import DeviceInfo, RegionInfo, SparseArea, encode_region_info
from barfs.vfio_user import messages as m
from barfs.vfio_user import wire
from tests.support.peer import Peer, connect

PAGE = 0x1000
SIZE = 4 * PAGE
MEMORY = b"\x11"
MESSAGE = b"\x22"
"""The contents of memory and of messages, which show where an access went."""

IO_BAR = bytes(16) + b"\1\0\0\0"
ROM_INDEX = 6

Access = tuple[str, int, int]


def sparse(*areas: tuple[int, int], size: int = SIZE) -> RegionInfo:
    return RegionInfo(0, 0xF, size, 0, areas=tuple(SparseArea(*area) for area in areas))


def memory(size: int = SIZE) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    os.pwrite(fd, MEMORY * min(size, SIZE), 0)
    return fd


@dataclass
class Server:
    """Answers what `infos` and `fds` say of each region, and keeps the accesses of region 0."""

    infos: Mapping[int, RegionInfo]
    fds: Sequence[int] = ()
    config: bytes = b""
    most: int = 8
    first_argsz: int = 0
    first_info: RegionInfo | None = None
    accesses: list[Access] = field(default_factory=list)

    def answer(self, peer: Peer, message: wire.Message) -> None:
        fds: Sequence[int] = ()
        command = m.decode_command(message)
        body = b""
        match command:
            case m.GetInfo():
                body = DeviceInfo(3, 9, 5).encode()
            case m.GetRegionInfo(index, argsz):
                body, fds = self.describe(index, argsz)
            case m.RegionRead(region, offset, count):
                data = MESSAGE * count
                if region == CONFIG_INDEX:
                    data = self.config.ljust(256, b"\0")[offset : offset + count]
                else:
                    self.accesses.append(("r", offset, count))
                if count > self.most:
                    peer.sock.sendall(m.encode_error(message, errno.EINVAL))
                    return
                body = message.body + data
            case m.RegionWrite(_, offset, written):
                self.accesses.append(("w", offset, len(written)))
                body = message.body[: wire.REGION_ACCESS.size]
        socket.send_fds(peer.sock, [m.encode_reply(message, body)], fds)

    def describe(self, index: int, argsz: int) -> tuple[bytes, Sequence[int]]:
        if index == CONFIG_INDEX:
            return encode_region_info(RegionInfo(index, 3, 256, 0)), ()
        info = self.infos.get(index, RegionInfo(index, 0, 0, 0))
        if index == 0 and self.first_info is not None and argsz < self.first_argsz:
            body = encode_region_info(self.first_info)
            return self.first_argsz.to_bytes(4, "little") + body[4:], ()
        return encode_region_info(info), self.fds if info.size else ()


@contextlib.contextmanager
def opened(
    server: Server, options: Options | None = None, max_transfer: int = 1 << 20
) -> Iterator[Device]:
    version = m.Version(max_transfer=max_transfer)
    with Peer(*[server.answer] * 500, version=version) as peer:
        device = Device(connect(peer), options)
        try:
            yield device
        finally:
            device.close()
            for fd in server.fds:
                os.close(fd)


def rows(device: Device, region: str = "bar0") -> list[tuple[int, int, str, int, str]]:
    return [
        (row.start, row.end, row.access, row.width, row.reason)
        for row in device[region].layout.segments
    ]


def mapped(device: Device) -> list[tuple[int, int]]:
    """The windows of bar0 as they are mapped: start and size of each mmap."""
    return [
        (entry.start, entry.target.mapping.size)
        for entry in table_of(device["bar0"]).entries
        if isinstance(entry.target, engine.Memory)
    ]


ADJACENT = sparse((2 * PAGE, PAGE), (PAGE, PAGE))
JOINED = [
    (0, PAGE, "pread", 8, "not-in-sparse-area"),
    (PAGE, 3 * PAGE, "mmap", 8, "-"),
    (3 * PAGE, SIZE, "pread", 8, "not-in-sparse-area"),
]


@pytest.mark.parametrize("mapping", ["separate", "contiguous"])
def test_adjacent_areas_are_mapped_one_by_one_and_shown_as_one(mapping: MappingMode) -> None:
    server = Server({0: ADJACENT}, [memory()])
    with opened(server, Options(mapping=mapping)) as device:
        bar0 = device["bar0"]
        assert mapped(device) == [(PAGE, PAGE), (2 * PAGE, PAGE)]
        assert rows(device) == JOINED
        assert bar0.read(2 * PAGE - 6, 12) == MEMORY * 12
        assert bar0.write(2 * PAGE - 3, b"across") == 6
        assert os.pread(server.fds[0], 6, 2 * PAGE - 3) == b"across"
        assert server.accesses == []
        if mapping == "contiguous":
            assert ctypes.string_at(bar0.address + 2 * PAGE - 3, 6) == b"across"
        assert bar0.read(PAGE - 4, 8) == MESSAGE * 4 + MEMORY * 4
        assert server.accesses == [("r", PAGE - 4, 4)]


def test_pieces_of_pages_between_areas_are_left_to_messages() -> None:
    halves = sparse((0, PAGE + 0x802), (PAGE + 0x802, 2 * PAGE - 0x802), (3 * PAGE, PAGE))
    server = Server({0: halves}, [memory()])
    with opened(server) as device:
        assert mapped(device) == [(0, PAGE), (2 * PAGE, PAGE), (3 * PAGE, PAGE)]
        assert rows(device) == [
            (0, PAGE, "mmap", 8, "-"),
            (PAGE, 2 * PAGE, "pread", 8, "sub-page"),
            (2 * PAGE, SIZE, "mmap", 8, "-"),
        ]
        assert device["bar0"].read64(PAGE + 0x800) == int.from_bytes(MESSAGE * 8, "little")
        assert server.accesses == [("r", PAGE + 0x800, 8)], "one access across the areas' edge"


HUGE = 1 << 48
"""More than the address space: the kernel refuses an mmap of it, ENOMEM."""


@pytest.mark.parametrize("mapping", ["separate", "contiguous"])
def test_one_window_that_fails_leaves_its_neighbours(
    mapping: MappingMode, caplog: pytest.LogCaptureFixture
) -> None:
    size = 2 * PAGE + HUGE
    info = sparse((0, PAGE), (PAGE, HUGE), (PAGE + HUGE, PAGE), size=size)
    server = Server({0: info}, [memory(size)])
    with opened(server, Options(mapping=mapping)) as device:
        failed = (PAGE, PAGE + HUGE, "pread", 8, "mmap-failed:ENOMEM")
        if mapping == "separate":
            ends = [(0, PAGE, "mmap", 8, "-"), (PAGE + HUGE, size, "mmap", 8, "-")]
            assert rows(device) == [ends[0], failed, ends[1]]
            assert device["bar0"].read(PAGE - 4, 8) == MEMORY * 4 + MESSAGE * 4
            (record,) = caplog.records
            assert "ffff:00:00.0: bar0+0x1000 is not mapped: " in record.getMessage()
        else:  # nothing as large as the region can be reserved
            assert rows(device) == [(0, size, "pread", 8, "mmap-failed:ENOMEM")]
            with pytest.raises(UsageError, match="bar0 has no address: it has no window"):
                _ = device["bar0"].address


def test_no_address_where_no_window_could_be_mapped() -> None:
    writer = memory()
    reader = os.open(f"/proc/self/fd/{writer}", os.O_RDONLY)
    os.close(writer)
    server = Server({0: ADJACENT}, [reader])
    with opened(server, Options(mapping="contiguous")) as device:
        assert {row[4] for row in rows(device)} == {"not-in-sparse-area", "mmap-failed:EACCES"}
        with pytest.raises(UsageError, match="bar0 has no address"):
            _ = device["bar0"].address


def test_a_read_only_device_reads_across_adjacent_windows() -> None:
    with opened(Server({0: ADJACENT}, [memory()]), Options(read_only=True)) as device:
        assert {row.perm for row in device["bar0"].layout.segments} == {"r-"}
        assert mapped(device) == [(PAGE, PAGE), (2 * PAGE, PAGE)]
        assert device["bar0"].read(2 * PAGE - 4, 8) == MEMORY * 8
        with pytest.raises(AccessDenied):
            device["bar0"].write32(2 * PAGE, 0)


def test_a_policy_about_the_edge_between_adjacent_windows() -> None:
    rule = {"region": "bar0", "range": f"{2 * PAGE - 8:#x}+0x10", "access": "ro"}
    policy = AccessPolicy.from_toml({"rule": [rule]})
    with opened(Server({0: ADJACENT}, [memory()]), Options(policy=policy)) as device:
        assert rows(device)[1:4] == [
            (PAGE, 2 * PAGE - 8, "mmap", 8, "-"),
            (2 * PAGE - 8, 2 * PAGE + 8, "mmap", 8, "policy"),
            (2 * PAGE + 8, 3 * PAGE, "mmap", 8, "-"),
        ]
        assert device["bar0"].read(2 * PAGE - 12, 24) == MEMORY * 24
        assert device["bar0"].write(2 * PAGE - 12, bytes(24)) == 4
        with pytest.raises(PolicyDenied):
            device["bar0"].write32(2 * PAGE, 0)


TWO_AREAS = sparse((0, PAGE), (3 * PAGE, PAGE))


def same_file(count: int) -> list[int]:
    first = memory()
    return [first, *(os.dup(first) for _ in range(count - 1))]


@pytest.mark.parametrize("count", [1, 2, 3, 16])
def test_descriptors_of_one_file_are_used(count: int) -> None:
    server = Server({0: TWO_AREAS}, same_file(count))
    with opened(server) as device:
        assert mapped(device) == [(0, PAGE), (3 * PAGE, PAGE)]
        assert device["bar0"].read(3 * PAGE, 4) == MEMORY * 4


def zero() -> int:
    return os.open("/dev/zero", os.O_RDWR)


@pytest.mark.parametrize(
    ("make", "reason", "said"),
    [
        (lambda: [memory(), memory()], "descriptors-differ", "2 descriptors are of 2 files"),
        (lambda: [*same_file(2), memory()], "descriptors-differ", "3 descriptors are of 2 files"),
        (lambda: [memory(), memory(PAGE)], "descriptors-differ", "of 2 files"),
        (lambda: [memory(), zero()], "bad-descriptor", "must be in tmpfs or hugetlbfs"),
        (lambda: [zero()], "bad-descriptor", "must be in tmpfs or hugetlbfs"),
        (lambda: [memory(SIZE - 1)], "bad-descriptor", "ends at 0x3fff, the windows at 0x4000"),
        (list, "no-descriptor", "no descriptor came"),
    ],
)
@pytest.mark.parametrize("mapping", ["separate", "contiguous"])
def test_descriptors_that_cannot_be_believed_make_no_window(
    make: Callable[[], list[int]],
    reason: str,
    said: str,
    mapping: MappingMode,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server({0: TWO_AREAS}, make())
    with opened(server, Options(mapping=mapping)) as device:
        assert rows(device) == [
            (0, PAGE, "pread", 8, reason),
            (PAGE, 3 * PAGE, "pread", 8, "not-in-sparse-area"),
            (3 * PAGE, SIZE, "pread", 8, reason),
        ]
        assert device["bar0"].read(3 * PAGE, 4) == MESSAGE * 4
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"vfio-user:test: bar0 has no windows ({reason}): ")
    assert said in record.getMessage()


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (RegionInfo(0, 3, SIZE, 0), "no-mmap-flag"),
        (sparse(), "not-in-sparse-area"),
        (sparse((8 * SIZE, 0)), "not-in-sparse-area"),
        (sparse((0, 2 * PAGE), (PAGE, PAGE)), "bad-area"),
    ],
    ids=["no flag", "no areas", "an empty area", "overlapping"],
)
def test_descriptors_of_a_region_without_windows_do_not_matter(
    info: RegionInfo, reason: str
) -> None:
    with opened(Server({0: info}, [memory()])) as device:
        assert rows(device) == [(0, SIZE, "pread", 8, reason)]
        assert device["bar0"].read(0, 4) == MESSAGE * 4


def test_an_empty_area_outside_does_not_cost_the_others() -> None:
    with opened(Server({0: sparse((0, PAGE), (8 * SIZE, 0))}, [memory(PAGE)])) as device:
        assert mapped(device) == [(0, PAGE)]


@pytest.mark.parametrize(
    ("before", "changed"),
    [
        (replace(ADJACENT, areas=None, size=2 * SIZE), "its size changed"),
        (replace(ADJACENT, areas=None, offset=PAGE), "its offset changed"),
        (replace(ADJACENT, areas=None, flags=5), "its write flag changed"),
        (replace(ADJACENT, areas=None, flags=6, size=PAGE), "its size and read flag changed"),
    ],
)
def test_two_answers_that_contradict_each_other_make_no_window(
    before: RegionInfo, changed: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server({0: ADJACENT}, [memory()], first_argsz=0x1800, first_info=before)
    with opened(server) as device:
        assert rows(device) == [(0, SIZE, "pread", 8, "bad-capability")]
        assert device["bar0"].read(PAGE, 4) == MESSAGE * 4
    (record,) = caplog.records
    assert f"bar0: {changed} between two answers" in record.getMessage()


@pytest.mark.parametrize("flags", [3, 7])
def test_two_answers_that_agree(flags: int) -> None:
    """Whether the first, which has no room for areas, says already that there are some."""
    before = replace(ADJACENT, areas=None, flags=flags)
    server = Server({0: ADJACENT}, [memory()], first_argsz=0x1800, first_info=before)
    with opened(server) as device:
        assert rows(device) == JOINED


def test_an_io_region_is_like_any_other() -> None:
    server = Server({0: TWO_AREAS}, [memory()], IO_BAR)
    with opened(server) as device:
        bar0 = device["bar0"]
        assert rows(device) == [
            (0, PAGE, "mmap", 8, "-"),
            (PAGE, 3 * PAGE, "pread", 8, "not-in-sparse-area"),
            (3 * PAGE, SIZE, "mmap", 8, "-"),
        ]
        assert bar0.read64(0) == int.from_bytes(MEMORY * 8, "little")
        assert bar0.read(PAGE, 8) == MESSAGE * 8
        assert bar0.read(PAGE + 2, 10) == MESSAGE * 10
        assert bar0.write(SIZE - 2, bytes(8)) == 2, "short at the end, as in memory"
        assert server.accesses == [
            ("r", PAGE, 8),
            ("r", PAGE + 2, 2),
            ("r", PAGE + 4, 4),
            ("r", PAGE + 8, 4),
        ]


def test_an_io_region_takes_what_its_server_takes() -> None:
    server = Server({0: RegionInfo(0, 3, SIZE, 0)}, (), IO_BAR, most=4)
    with opened(server) as device:
        assert device["bar0"].read(0, 16) == MESSAGE * 16
        with pytest.raises(InvalidAccess):
            device["bar0"].read64(0)
    server = Server({0: RegionInfo(0, 3, SIZE, 0)}, (), IO_BAR)
    with opened(server, max_transfer=4) as device:
        assert rows(device) == [(0, SIZE, "pread", 4, "no-mmap-flag")]
        assert device["bar0"].read(0, 8) == MESSAGE * 8
        assert server.accesses == [("r", 0, 4), ("r", 4, 4)]


@pytest.mark.parametrize(
    ("make", "reason", "access"),
    [(lambda: [memory()], "-", "mmap"), (list, "no-descriptor", "pread")],
)
def test_windows_of_a_rom_are_as_narrow_as_a_rom(
    make: Callable[[], list[int]], reason: str, access: str
) -> None:
    info = RegionInfo(ROM_INDEX, 5, SIZE, 0)
    with opened(Server({ROM_INDEX: info}, make())) as device:
        assert rows(device, "rom") == [(0, SIZE, access, 4, reason)]
        with pytest.raises(InvalidAccess):
            device["rom"].read64(0)
