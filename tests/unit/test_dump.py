# SPDX-License-Identifier: MIT
"""Reading a device whole, keeping it in a file, and what a bad file says."""

import errno
import json
import zipfile
from pathlib import Path

import pytest

from barfs.comparison import Change, changes
from barfs.dump import Dump, DumpError, Hole, new_dump
from barfs.layout import Layout, Segment
from barfs.snapshot import RegionReader, Skip, SnapshotError

SIZE = 0x20000
"""More than one chunk."""


def layout(*segments: Segment, size: int = SIZE, region: str = "bar0") -> Layout:
    whole = (Segment(0, size, "pread", "rw", 8),)
    return Layout("0000:01:00.0", region, size, ("read", "write"), 4, None, segments or whole)


class FakeSource:
    """A device of bytes that count up, with registers that fail."""

    name = "0000:01:00.0"

    def __init__(self, shown: Layout, bad: dict[int, int] | None = None, most: int = SIZE) -> None:
        self.layouts = {shown.region: shown}
        self.data = bytes(at * 7 & 0xFF for at in range(shown.size))
        self.bad = bad or {}
        self.most = most
        self.reads: list[tuple[int, int]] = []

    def read(self, region: str, offset: int, count: int) -> bytes:
        assert region in self.layouts
        if count > self.most:
            raise OSError(errno.EINVAL, "guard")
        self.reads.append((offset, count))
        for at, error in sorted(self.bad.items()):
            if offset <= at < offset + count:
                if offset == at:
                    raise OSError(error, "bad")
                count = at - offset
        return self.data[offset : offset + count]


def read(source: FakeSource, *skips: Skip) -> tuple[bytes, list[Hole]]:
    (shown,) = source.layouts.values()
    reader = RegionReader(source, shown, skips)
    data = bytearray(shown.size)
    for offset, piece in reader.pieces():
        data[offset : offset + len(piece)] = piece
    return bytes(data), reader.holes


def test_a_region_is_read_once() -> None:
    source = FakeSource(layout())
    assert read(source) == (source.data, [])
    covered = [byte for start, count in source.reads for byte in (start, start + count)]
    assert covered == sorted(covered)
    assert len(source.reads) == 2


def test_bad_registers_are_holes() -> None:
    source = FakeSource(layout(), {0x100: errno.EIO, 0x104: errno.EIO, 0x10000: errno.EACCES})
    data, holes = read(source)
    assert holes == [Hole(0x100, 0x108, "EIO"), Hole(0x10000, 0x10004, "EACCES")]
    expected = bytearray(source.data)
    for hole in holes:
        expected[hole.start : hole.end] = bytes(hole.end - hole.start)
    assert data == expected


@pytest.mark.parametrize("error", [errno.ENODEV, errno.ETIMEDOUT])
def test_a_device_that_is_gone_ends_it(error: int) -> None:
    with pytest.raises(SnapshotError, match=r"0000:01:00\.0: bar0\+0x40: "):
        read(FakeSource(layout(), {0x40: error}))


def test_what_is_skipped_or_denied_is_not_read() -> None:
    shown = layout(
        Segment(0, 0x10, "mmap", "rw", 8),
        Segment(0x10, 0x18, "none", "--", 8, "policy"),
        Segment(0x18, 0x20, "pread", "-w", 8),
        Segment(0x20, 0x40, "pread", "rw", 8),
        size=0x40,
    )
    source = FakeSource(shown)
    data, holes = read(source, Skip("bar0", (0x28, 0x2C)), Skip("bar2"))
    assert holes == [
        Hole(0x10, 0x18, "policy"),
        Hole(0x18, 0x20, "not-readable"),
        Hole(0x28, 0x2C, "skipped"),
    ]
    assert source.reads == [(0, 0x10), (0x20, 8), (0x2C, 0x14)]
    assert len(data) == 0x40
    source.reads.clear()
    assert read(source, Skip("bar0"))[1][-1] == Hole(0x20, 0x40, "skipped")
    assert source.reads == []


def test_single_accesses_where_no_others_are_taken() -> None:
    source = FakeSource(layout(size=0x1A), most=4)
    assert read(source) == (source.data, [])
    assert source.reads == [*((at, 4) for at in range(0, 0x18, 4)), (0x18, 2)]


def write(path: Path, *regions: tuple[Layout, bytes, list[Hole]]) -> Dump:
    with new_dump(path) as dump:
        for shown, data, holes in regions:
            half = len(data) // 2
            dump.add(shown, [(0, data[:half]), (half, data[half:])], holes)
    return Dump(path)


def contents(dump: Dump, region: str = "bar0") -> bytes:
    data = bytearray(dump.layouts[region].size)
    for start, block in dump.blocks(region):
        data[start : start + len(block)] = block
    return bytes(data)


def test_a_dump_comes_back(tmp_path: Path) -> None:
    data = bytes(range(256)) * (SIZE // 256)
    with write(tmp_path / "a", (layout(), data, [Hole(4, 8, "policy")])) as dump:
        assert dump.device == "0000:01:00.0"
        assert dump.layouts == {"bar0": layout()}
        assert dump.holes == {"bar0": [Hole(4, 8, "policy")]}
        assert contents(dump) == data
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("kept")
    source = FakeSource(layout(), {0x10000: errno.ENODEV})
    reader = RegionReader(source, layout())
    with pytest.raises(SnapshotError), new_dump(tmp_path / "a") as dump:
        dump.add(layout(), reader.pieces(), reader.holes)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "kept"


def test_changes_where_both_have_them(tmp_path: Path) -> None:
    old, new = bytearray(SIZE), bytearray(SIZE)
    new[0x10] = 1
    new[0x21] = 2
    new[0x10004:0x10008] = b"\1\2\3\4"
    with (
        write(tmp_path / "a", (layout(), bytes(old), [Hole(0x20, 0x24, "EIO")])) as before,
        write(tmp_path / "b", (layout(), bytes(new), [])) as after,
    ):
        assert list(changes(before, after)) == [
            Change("bar0", 0x10, 4, 0, 1),
            Change("bar0", 0x10004, 4, 0, 0x04030201),
        ]
        assert list(changes(before, before)) == []


def archive(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, text in members.items():
            file.writestr(name, text)
    return path


INDEX = {"format": "barfs dump v1", "device": "x", "regions": {"bar0": []}}


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"dump.json": "{"},
        {"dump.json": "[]"},
        {"dump.json": json.dumps({**INDEX, "format": "other"})},
        {"dump.json": json.dumps(INDEX)},
        {"dump.json": json.dumps(INDEX), "bar0.layout": "nonsense"},
        {"dump.json": json.dumps({**INDEX, "regions": {"bar0": [{"start": "a"}]}})},
    ],
)
def test_archives_that_are_no_dump(tmp_path: Path, members: dict[str, str]) -> None:
    with pytest.raises(DumpError, match="is not a dump of barfs"):
        Dump(archive(tmp_path / "a", members))


def test_files_that_are_no_dump(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(DumpError, match="is not a dump of barfs"):
        Dump(tmp_path / "text")
    with pytest.raises(DumpError, match="No such file"):
        Dump(tmp_path / "missing")


def test_a_region_that_is_cut_short(tmp_path: Path) -> None:
    members = {"dump.json": json.dumps(INDEX), "bar0.layout": layout().to_text(), "bar0": "123"}
    with (
        Dump(archive(tmp_path / "a", members)) as dump,
        pytest.raises(DumpError, match="bar0 is cut short"),
    ):
        list(dump.blocks("bar0"))


def test_a_damaged_region(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path, (layout(), bytes(range(256)) * (SIZE // 256), [])).close()
    data = bytearray(path.read_bytes())
    place = data.index(b"PK", 4) + 60
    data[place : place + 40] = bytes(40)
    path.write_bytes(data)
    with Dump(path) as dump, pytest.raises(DumpError, match=r"cannot be read|cut short"):
        list(dump.blocks("bar0"))
