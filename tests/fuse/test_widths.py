# SPDX-License-Identifier: MIT
"""One request, these accesses: what reaches the device, seen by the device itself."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from barfs.layout import Layout
from tests.support.watched import Watched, opened, watched

WIDTHS = (1, 2, 4, 8)
GAP = 0x4000  # memory of bar0 behind messages
WINDOW = 0x3000


@pytest.fixture(scope="module", params=WIDTHS, ids=lambda width: f"width={width}")
def each(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    """A mount of the demo device for each `width=`."""
    with watched(tmp_path_factory.mktemp("width"), f"width={request.param}") as found:
        yield found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched(tmp_path_factory.mktemp("demo"), "") as found:
        yield found


@pytest.fixture(autouse=True)
def _only_its_own_accesses(request: pytest.FixtureRequest) -> None:
    for name in ("each", "demo"):
        if name in request.fixturenames:
            request.getfixturevalue(name).accesses()


@pytest.mark.parametrize("name", ["rom", "config"])
@pytest.mark.parametrize(("offset", "count"), [(0, 8), (0, 4), (2, 2), (1, 1), (2, 8), (8, 32)])
def test_no_more_than_4_bytes_at_once(each: Watched, name: str, offset: int, count: int) -> None:
    with opened(each.region(name), os.O_RDONLY) as fd:
        assert len(os.pread(fd, count, offset)) == count
    found = each.accesses()
    assert found == each.expected("r", offset, count, name)
    assert max(width for *_, width in found) <= 4


@pytest.mark.parametrize(
    "command",
    [
        "dd if=FILE bs=4 count=1 status=none",
        "hexdump -n4 FILE",
        "xxd -l 4 FILE",
        "od -N4 -tx4 FILE",
        "head -c4 FILE",
        f"{sys.executable} -c \"open('FILE','rb').read(4)\"",
    ],
    ids=lambda command: Path(command.split()[0]).name,
)
def test_tools_read_no_further_than_the_width(each: Watched, command: str) -> None:
    if "read(4)" in command and sys.version_info >= (3, 14):
        pytest.skip("this Python's buffered open() does not look at st_blksize")
    subprocess.run(
        ["bash", "-ec", command.replace("FILE", str(each.region()))],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    found = each.accesses()
    assert found
    assert found[0][:3] == ("r", "bar0", 0)
    assert sum(width for *_, width in found) <= max(each.width, 4)
    if each.width == 4:
        assert found == [("r", "bar0", 0, 4)]


def test_st_blksize_is_the_width(each: Watched) -> None:
    assert each.region().stat().st_blksize == max(each.width, 2)


def test_a_register_with_a_side_effect_is_read_once(demo: Watched) -> None:
    fifo = demo.region()
    with opened(fifo) as fd:
        for value in range(1, 6):
            os.pwrite(fd, value.to_bytes(4, "little"), 0x18)
        assert os.pread(fd, 4, 0x18) == b"\1\0\0\0"
    commands = {
        f"dd if={fifo} bs=4 skip=6 count=1 status=none | od -An -tu4": 2,
        f"hexdump -s 0x18 -n 4 -e '\"%u\"' {fifo}": 3,
        f"od -j 0x18 -N 4 -An -tu4 {fifo}": 4,
        f"xxd -s 0x18 -l 4 -p {fifo} | head -c2": 5,
    }
    for command, value in commands.items():
        output = subprocess.check_output(["bash", "-ec", command], text=True)
        assert int(output) == value, command
    with opened(fifo) as fd:
        assert os.pread(fd, 4, 0x1C) == bytes(4)


def test_the_device_sees_the_width(demo: Watched) -> None:
    with opened(demo.region(), os.O_RDONLY) as fd:
        for width in (1, 2, 4):
            assert os.pread(fd, width, 0x20)[0] == width


def test_a_failed_access_is_not_repeated(demo: Watched) -> None:
    with opened(demo.region()) as fd:
        os.pwrite(fd, b"\1\0\0\0", 0x28)
        demo.accesses()
        with pytest.raises(OSError, match="Input/output") as caught:
            os.pread(fd, 4, 0x28)
        assert caught.value.errno == errno.EIO
        assert demo.accesses() == [("r", "bar0", 0x28, 4)]
        assert len(os.pread(fd, 16, 0x20)) == 8, "what came before the fault"
        assert demo.accesses() == [("r", "bar0", at, 4) for at in (0x20, 0x24, 0x28)]
        os.pwrite(fd, bytes(4), 0x28)


@pytest.mark.parametrize(
    ("offset", "count", "accesses"),
    [
        (4, 1, [(4, 1)]),
        (4, 2, [(4, 2)]),
        (4, 4, [(4, 4)]),
        (8, 8, [(8, 8)]),
        (8, 3, [(8, 2), (10, 1)]),
        (6, 4, [(6, 2), (8, 2)]),
        (62, 4, [(62, 2)]),
        (64, 4, []),
    ],
)
def test_an_io_bar_of_a_server_is_accessed_like_memory(
    demo: Watched, offset: int, count: int, accesses: list[tuple[int, int]]
) -> None:
    """vfio-user has no ports: libvfio-user's regions are I/O unless they are flagged as memory."""
    with opened(demo.region("bar4")) as fd:
        assert len(os.pread(fd, count, offset)) == sum(width for _, width in accesses)
    assert demo.accesses() == [("r", "bar4", at, width) for at, width in accesses]


def test_windows_are_not_messages(demo: Watched) -> None:
    with opened(demo.region()) as fd:
        os.pwrite(fd, b"\x12\x34\x56\x78", WINDOW)
        assert os.pread(fd, 4, WINDOW) == b"\x12\x34\x56\x78"
        assert len(os.pread(fd, 0x1000, 0x1000)) == 0x1000
    assert demo.accesses() == []


def test_mapping_off_sends_everything_by_message(tmp_path: Path, demo: Watched) -> None:
    with watched(tmp_path, "mapping=off") as found:
        text = found.region("bar2.layout").read_text()
        reasons = {s.reason for s in Layout.from_text(text).segments}
        assert reasons == {"mapping-off"}
        with opened(found.region()) as fd, opened(demo.region()) as plain:
            os.pread(fd, 16, 0x1000)
            assert found.accesses() == found.expected("r", 0x1000, 16)
            os.pwrite(fd, bytes(8), WINDOW)
            assert found.accesses() == [("w", "bar0", WINDOW, 8)]
            os.pwrite(plain, bytes(8), WINDOW)
            assert os.pread(fd, 0x6000, 0x1000) == os.pread(plain, 0x6000, 0x1000)


def test_mapping_contiguous_gives_the_same_bytes(tmp_path: Path, demo: Watched) -> None:
    with watched(tmp_path, "mapping=contiguous") as found:
        assert found.places() == demo.places()
        with opened(found.region()) as fd, opened(demo.region()) as plain:
            for start in (WINDOW, GAP, 0x6000):
                for file in (fd, plain):
                    os.pwrite(file, bytes(range(200)), start)
            assert os.pread(fd, 0x6000, 0x1000) == os.pread(plain, 0x6000, 0x1000)
        with opened(found.region("bar2")) as fd, opened(demo.region("bar2")) as plain:
            assert os.pread(fd, 1 << 20, 0) == os.pread(plain, 1 << 20, 0)


STRADDLING = """\
vendor = 0x1234
device = 0x5678
class = 0x020000

[msix]
vectors = 300                        # 0x12c0 bytes: from 0x1800 into the page at 0x2000
table = {{ bar = 0, offset = 0x1800 }}
pba = {{ bar = 0, offset = 0x4000 }}
mappable = {mappable}

[[region]]
name = "bar0"
size = 0x8000
flags = ["read", "write", "mmap"]
"""


@pytest.mark.parametrize(
    ("mappable", "options", "carved"),
    [(True, "", False), (True, "msix=carve", True), (False, "", True), (False, "msix=map", True)],
)
def test_the_msix_table_in_a_window(
    tmp_path: Path, mappable: bool, options: str, carved: bool
) -> None:
    description = tmp_path / "device.toml"
    description.write_text(STRADDLING.format(mappable=str(mappable).lower()))
    with watched(tmp_path, options, description) as found:
        layout = Layout.from_text(found.region("bar0.layout").read_text())
        assert layout.msix is not None
        assert (layout.msix.table, layout.msix.pba) == ((0x1800, 0x12C0), (0x4000, 0x28))
        segments = [(s.start, s.end, s.access, s.reason) for s in layout.segments]
        windows = [(0, 0x1000), (0x3000, 0x8000)] if carved else [(0, 0x8000)]
        assert [(start, end) for start, end, access, _ in segments if access == "mmap"] == windows
        assert ((0x1000, 0x3000, "pread", "msix-table") in segments) == carved
        with opened(found.region()) as fd:
            os.pread(fd, 4, 0x1000)
            os.pread(fd, 4, 0x3000)
            os.pread(fd, 4, 0x4000)
        assert found.accesses() == ([("r", "bar0", 0x1000, 4)] if carved else [])
