# SPDX-License-Identifier: MIT
"""Reading a device whole, keeping it in a file, and what a bad file says."""

import errno
import itertools
import json
import random
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from barfs.dump.capture import RegionReader, Skip, SnapshotError
from barfs.dump.comparison import Change, changes
from barfs.dump.file import BLOCK, FORMAT, Dump, DumpError, Hole, new_dump
from barfs.layout import Layout, Segment
from barfs.process.output import OutputError
from barfs.ranges import Range

SIZE = 0x20000
"""More than one chunk."""


def layout(*segments: Segment, size: int = SIZE, region: str = "bar0") -> Layout:
    whole = (Segment(0, size, "pread", "rw", 8),)
    return Layout("0000:01:00.0", region, size, ("read", "write"), 4, None, segments or whole)


class Unknown:
    """A device of which nothing is known without reading."""

    def zeros_end(self, _region: str, _segment: Segment, offset: int) -> int:
        return offset


class FakeSource(Unknown):
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


def test_a_member_whose_name_has_no_encoding(tmp_path: Path) -> None:
    path = tmp_path / "x.dump"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("é", "")
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xc9\xff"))
    with pytest.raises(DumpError, match="is not a dump of barfs"):
        Dump(path)


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
    data, holes = read(source, Skip("bar0", Range(0x28, 0x2C)), Skip("bar2"))
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


class Islands(Unknown):
    """A device of 256 GiB in which only some ranges can be read."""

    name = "0000:01:00.0"

    def __init__(self, *islands: tuple[int, int], size: int = 256 << 30) -> None:
        self.layouts = {"bar0": layout(size=size)}
        self.islands = islands
        self.reads: list[tuple[int, int]] = []

    def read(self, region: str, offset: int, count: int) -> bytes:
        assert region == "bar0"
        self.reads.append((offset, count))
        for start, end in self.islands:
            if start <= offset < end:
                return b"\x5a" * min(count, end - offset)
        raise OSError(errno.EIO, "nothing there")

    def snapshot(self) -> RegionReader:
        return RegionReader(self, self.layouts["bar0"])


def test_a_region_that_cannot_be_read_takes_few_tries() -> None:
    source = Islands()
    reader = source.snapshot()
    assert list(reader.pieces()) == []
    assert reader.holes == [Hole(0, 256 << 30, "EIO")]
    assert len(source.reads) < 30_000


@pytest.mark.parametrize("size", [256 << 30, (1 << 30) + 20])
def test_what_can_be_read_again_is_found_to_the_register(size: int) -> None:
    island = (0x1234_5678, 0x1244_5670)
    source = Islands((0, 0x40), island, size=size)
    reader = source.snapshot()
    pieces = list(reader.pieces())
    assert pieces[0] == (0, b"\x5a" * 0x40)
    assert pieces[1][0] == island[0]
    at = island[0]
    for offset, data in pieces[1:]:
        assert offset == at
        at += len(data)
    assert at == island[1]
    assert reader.holes == [Hole(0x40, island[0], "EIO"), Hole(island[1], size, "EIO")]
    done = [offset for offset, _ in source.reads if island[0] <= offset < island[1]]
    assert len(done) == len(set(done))


def test_one_bad_register_after_another_costs_no_good_one() -> None:
    size = 0x10000
    source = Islands(*((at, at + 4) for at in range(0, size, 8)), size=size)
    reader = source.snapshot()
    assert [offset for offset, _ in reader.pieces()] == list(range(0, size, 8))
    assert len(reader.holes) == size // 8


def test_a_device_that_does_not_answer_is_asked_once() -> None:
    source = FakeSource(layout(), {0x40: errno.ETIMEDOUT})
    reader = RegionReader(source, layout())
    with pytest.raises(SnapshotError, match=r"; --skip leaves out .* bar0:0x40-0xffff"):
        list(reader.pieces())
    assert len(source.reads) == 2


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


HUGE = 256 << 30


def huge(
    path: Path, *blocks: tuple[int, bytes], holes: Sequence[Hole] = (), size: int = HUGE
) -> Dump:
    with new_dump(path) as dump:
        dump.add(layout(size=size), blocks, holes)
    return Dump(path)


def test_holes_and_zeros_cost_nothing(tmp_path: Path) -> None:
    hole = Hole(1 << 30, HUGE, "skipped")
    zeros = ((start, bytes(BLOCK)) for start in range(0, 1 << 30, BLOCK))
    last = (HUGE - 4, b"last")
    with (
        huge(tmp_path / "a", *zeros, last, holes=[Hole(1 << 30, HUGE - 4, "skipped")]) as before,
        huge(tmp_path / "b", holes=[hole]) as after,
        huge(tmp_path / "c", last) as full,
        Dump(tmp_path / "b") as other,
    ):
        assert list(before.blocks("bar0")) == [(HUGE - BLOCK, bytes(BLOCK - 4) + b"last")]
        assert list(after.blocks("bar0")) == []
        assert list(changes(before, after)) == []
        assert list(changes(before, full)) == []
        other.holes["bar0"] = []
        (change,) = changes(full, other)
        assert (change.offset, change.before) == (HUGE - 4, int.from_bytes(b"last", "little"))
    assert {path.stat().st_size < 1 << 13 for path in tmp_path.iterdir()} == {True}


def test_bulk_of_one_value_costs_nothing(tmp_path: Path) -> None:
    size = 1 << 30
    ones = bytes([255]) * BLOCK
    blocks = [(start, ones) for start in range(0, size, BLOCK)]
    with huge(tmp_path / "a", *blocks, size=size) as before:
        assert list(before.blocks("bar0")) == blocks
        assert list(changes(before, before)) == []
        blocks[7] = (7 * BLOCK, b"\0" + ones[1:])
        with huge(tmp_path / "b", *blocks, size=size) as after:
            assert list(changes(before, after)) == [
                Change("bar0", 7 * BLOCK, 4, 0xFFFFFFFF, 0xFFFFFF00)
            ]
    assert (tmp_path / "a").stat().st_size < 1 << 12


def test_what_one_dump_does_not_have_is_not_read_in_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * (4 * BLOCK // 256)
    with (
        huge(tmp_path / "a", (0, data), size=4 * BLOCK) as before,
        huge(tmp_path / "b", holes=[Hole(0, 4 * BLOCK, "skipped")], size=4 * BLOCK) as after,
    ):
        monkeypatch.setattr(Dump, "blocks", None)
        assert list(changes(before, after)) == []


def test_pieces_of_any_size_make_blocks(tmp_path: Path) -> None:
    size = 3 * BLOCK + 0x123
    data = random.Random(1).randbytes(size)
    cuts = [0, 5, BLOCK - 1, BLOCK + 1, 3 * BLOCK, size]
    pieces = [(start, data[start:end]) for start, end in itertools.pairwise(cuts)]
    with huge(tmp_path / "a", *pieces, size=size) as dump:
        assert contents(dump) == data
    with huge(tmp_path / "b", *pieces[:2], pieces[4], size=size) as dump:
        expected = data[: BLOCK - 1] + bytes(2 * BLOCK + 1) + data[3 * BLOCK :]
        assert contents(dump) == expected
    again = tmp_path / "c"
    huge(again, *pieces, size=size).close()
    assert again.read_bytes() == (tmp_path / "a").read_bytes()


def test_too_many_holes_end_a_dump(tmp_path: Path) -> None:
    holes = [Hole(at, at + 4, "EIO") for at in range(0, 1 << 20, 8)]
    holes.append(Hole(1 << 20, (1 << 20) + 4, "EIO"))
    with pytest.raises(OutputError, match=r"more than 131072 ranges .*--skip bar0$"):
        huge(tmp_path / "a", holes=holes)
    assert list(tmp_path.iterdir()) == []


def test_the_format_before_is_read(tmp_path: Path) -> None:
    size = BLOCK + 0x100
    data = bytes(BLOCK) + bytes(range(256))
    path = tmp_path / "a"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bar0.layout", layout(size=size).to_text())
        file.writestr("bar0", data)
        hole = {"start": 16, "end": 32, "reason": "policy"}
        file.writestr("dump.json", json.dumps({**INDEX, "regions": {"bar0": [hole]}}))
    with Dump(path) as dump, huge(tmp_path / "b", (BLOCK, data[BLOCK:]), size=size) as new:
        assert dump.holes == {"bar0": [Hole(16, 32, "policy")]}
        assert contents(dump) == data
        assert list(changes(dump, new)) == []


def archive(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, text in members.items():
            file.writestr(name, text)
    return path


TEXT = layout().to_text()
EMPTY: dict[str, list[object]] = {"stored": [], "fills": [], "holes": []}
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
        {"dump.json": "[" * 100_000},
        {"dump.json": '{"format": "barfs dump v1", "device": "x", "regions": 1}'},
        {"dump.json": json.dumps({**INDEX, "regions": {"../bar0": []}}), "../bar0.layout": TEXT},
        {"dump.json": json.dumps(INDEX), "bar0.layout": TEXT.replace("width  4", "width  0")},
        {"dump.json": json.dumps(INDEX), "bar0.layout": TEXT.replace(" rw ", " r ")},
        {"dump.json": json.dumps(INDEX), "bar0.layout": layout(size=1 << 63).to_text()},
        {"dump.json": json.dumps(INDEX), "bar0.layout": layout(region="bar1").to_text()},
        {"dump.json": json.dumps(INDEX), "bar0.layout": " " * (1 << 24)},
        *(
            {"dump.json": json.dumps({**INDEX, "regions": {"bar0": [hole]}}), "bar0.layout": TEXT}
            for hole in (
                {"start": 8, "end": 4, "reason": "x"},
                {"start": 0, "end": SIZE + 1, "reason": "x"},
                {"start": 0, "end": 1e999, "reason": "x"},
                {"start": 0, "end": 4, "reason": "\x1b[2J"},
                {"start": 0, "end": 4, "reason": 5},
            )
        ),
        *(
            {
                "dump.json": json.dumps(
                    {**INDEX, "format": FORMAT, "regions": {"bar0": {**EMPTY, **facts}}}
                ),
                "bar0.layout": TEXT,
            }
            for facts in (
                {"stored": [[0, 8]]},
                {"stored": [[0, SIZE], [0, SIZE]]},
                {"stored": [[0, SIZE]], "fills": [[0, SIZE, 1]]},
                {"stored": [[0, SIZE, 1]]},
                {"stored": [[False, SIZE]]},
                {"fills": [[0, SIZE, 256]]},
                {"fills": 7},
                {"holes": None},
            )
        ),
    ],
)
def test_archives_that_are_no_dump(tmp_path: Path, members: dict[str, str]) -> None:
    with pytest.raises(DumpError, match="is not a dump of barfs"):
        Dump(archive(tmp_path / "a", members))


def test_a_dump_that_is_packed_in_another_way(tmp_path: Path) -> None:
    """The dictionary of LZMA may be gigabytes, whatever the file has."""
    with zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_LZMA) as file:
        file.writestr("dump.json", json.dumps(INDEX))
    with pytest.raises(DumpError, match=r"dump.json is not packed as barfs does it"):
        Dump(tmp_path / "a")


def test_damage_is_told_in_a_line(tmp_path: Path) -> None:
    """Each byte of a small dump, changed."""
    path = tmp_path / "a"
    small = layout(size=64)
    write(path, (small, bytes(range(64)), [Hole(4, 8, "policy")])).close()
    whole = path.read_bytes()
    bad = 0
    for at in range(len(whole)):
        for value in (0, 0xFF, whole[at] ^ 1):
            path.write_bytes(whole[:at] + bytes((value,)) + whole[at + 1 :])
            try:
                with Dump(path) as dump:
                    for region in dump.layouts:
                        list(dump.blocks(region))
            except DumpError as error:
                bad += 1
                assert "\n" not in str(error)  # noqa: PT017
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DumpError):
            Dump(path)
    assert bad > len(whole)


def test_a_directory_of_an_archive_without_end(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w") as file:
        for number in range(40_000):
            file.writestr(f"{number:060}", "")
    with pytest.raises(DumpError, match="is not a dump of barfs"):
        Dump(tmp_path / "a")


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
