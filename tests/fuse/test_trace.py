# SPDX-License-Identifier: MIT
"""`-o trace=FILE` and `barfs trace`: every access, as it was."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import barfs
from barfs.fuse.fusermount import unmount
from tests.support import BARFS, ended, mounted, served, wait_until
from tests.support import barfs as command

FAULT = 0x28  # of bar0 of the demo device: reads are refused while it is not 0
EDGE = 0x1000  # gap below, window above
SIZE = 0x10000


def lines(file: Path, region: str = "bar0") -> list[str]:
    """What a trace says of one region, without times and threads."""
    rows = [line.split() for line in file.read_text().splitlines() if line[0] != "#"]
    return [" ".join(row[2:]) for row in rows if row[3] == region]


def test_a_line_for_each_access(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    with (
        served(tmp_path) as server,
        mounted(tmp_path, server.name, options=f"trace={file}") as mount,
    ):
        bdf = mount.device().name
        fd = os.open(mount.device() / "bar0", os.O_RDWR)
        os.pread(fd, 8, EDGE - 4)
        os.pwrite(fd, b"\1\2\3\4\5", EDGE + 0x100)
        os.pwrite(fd, b"\1\0\0\0", FAULT)
        with pytest.raises(OSError, match="Input/output"):
            os.pread(fd, 4, FAULT)
        os.pwrite(fd, b"\0\0\0\0", FAULT)
        os.pread(fd, 4, SIZE)
        expected = [
            "r 0x00000ffc 4 0x00000000 pread",
            "r 0x00001000 4 0x66726162 mmap",
            "w 0x00001100 4 0x04030201 mmap",
            "w 0x00001104 1 0x05 mmap",
            "w 0x00000028 4 0x00000001 pread",
            "r 0x00000028 4 EIO pread",
            "w 0x00000028 4 0x00000000 pread",
        ]
        assert lines(file) == [f"{bdf} bar0 {line}" for line in expected]
        own = [line.split()[1] for line in file.read_text().splitlines() if " bar0 " in line]
        assert set(own) == {str(os.getpid())}
        assert len(os.pread(fd, 0x800, EDGE)) == 0x800
        os.close(fd)
        assert len(lines(file)) == len(expected) + 0x800 // 4
    assert file.read_text().startswith("# barfs trace v1: time pid device region direction")
    assert file.stat().st_mode & 0o777 == 0o600


def test_two_devices_and_two_mounts_share_a_file(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    for _ in range(2):
        with mounted(tmp_path, "demo", "demo", options=f"trace={file}") as mount:
            for device in (mount.path / "bus").iterdir():
                with (device / "bar0").open("rb", buffering=0) as bar0:
                    bar0.read(4)
    assert [line.split()[0] for line in lines(file)].count("ffff:00:00.0") == 2
    assert len(lines(file)) == 4
    assert file.read_text().count("#") == 1


def test_the_trace_of_a_device_in_python(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    with barfs.open("demo", trace=file) as device:
        device["bar0"].read32(EDGE)
        device["bar0"].write8(EDGE + 0x100, 0xAB)
        device["bar0"].read(EDGE, 8)
    rows = [line.split() for line in file.read_text().splitlines() if " bar0 " in line]
    assert [row[4:] for row in rows] == [
        ["r", "0x00001000", "4", "0x66726162", "mmap"],
        ["w", "0x00001100", "1", "0xab", "mmap"],
        ["r", "0x00001000", "8", "0x0000000166726162", "mmap"],
    ]
    assert {row[1] for row in rows} == {str(os.getpid())}


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def read_often(bar0: Path, times: int) -> None:
    fd = os.open(bar0, os.O_RDONLY)
    for _ in range(times):
        assert os.pread(fd, 4, EDGE) == b"barf"
    os.close(fd)


def test_a_full_disk_ends_the_trace_and_not_the_mount(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "16k") as folder:
        file = folder / "trace"
        with mounted(tmp_path, "demo", options=f"trace={file}") as mount:
            read_often(mount.device() / "bar0", 1000)
            wait_until(lambda: "ends: no space left" in mount.log.read_text(), "the log")
        text = file.read_text()
        told = mount.log.read_text()
    assert text.endswith("\n")
    assert text.endswith((" mmap\n", " pread\n", "# the trace ends: No space left on device\n"))
    assert told.count("ends: no space left on the device; free some") == 1
    missing = int(told.partition(" accesses are not in the trace")[0].split()[-1])
    assert missing + text.count("bar0 r 0x00001000") == 1000


def test_a_file_size_limit_ends_the_trace_and_not_the_mount(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    limited = ["sh", "-c", 'ulimit -f 40; exec "$@"', "sh", *BARFS]
    with (
        served(tmp_path) as server,
        mounted(tmp_path, server.name, options=f"trace={file}", command=limited) as mount,
    ):
        read_often(mount.device() / "bar0", 1000)
        wait_until(
            lambda: "ends: a file would become too large" in mount.log.read_text(), "the log"
        )
    assert file.read_text().endswith("\n")
    assert file.stat().st_size <= 40 * 512


def test_a_trace_at_its_limit_is_moved_and_begun_anew(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.touch(0o640)
    real.chmod(0o640)
    link.symlink_to(real)
    with mounted(tmp_path, "demo", options=f"trace={link},trace-limit=64k") as mount:
        read_often(mount.device() / "bar0", 3000)
    assert link.is_symlink()
    older = tmp_path / "real.1"
    for file in (real, older):
        assert file.stat().st_size < (64 << 10) + 100
        assert file.stat().st_mode & 0o777 == 0o640
        assert file.read_text().startswith("# barfs trace v1")
    assert older.stat().st_size >= 64 << 10
    assert len(lines(older)) + len(lines(real)) > 900
    assert {path.name for path in tmp_path.iterdir()} >= {"real", "real.1", "link"}
    assert not (tmp_path / "real.1.1").exists()


def test_several_mounts_move_a_trace_together(tmp_path: Path) -> None:
    """Not a line of theirs is lost, nor written into the wrong file."""
    file, count = tmp_path / "trace", 700
    options = f"trace={file},trace-limit=60k"
    for name in "ab":
        (tmp_path / name).mkdir()
    with (
        mounted(tmp_path / "a", "demo", "demo", options=options) as first,
        mounted(tmp_path / "b", "demo", "demo", options=options) as second,
    ):
        places = [next(iter((one.path / "bus").iterdir())) for one in (first, second)]
        with ThreadPoolExecutor() as pool:
            for done in [pool.submit(read_often, place / "bar0", count) for place in places]:
                done.result()
        reads = [
            line
            for one in (tmp_path / "trace.1", file)
            for line in lines(one)
            if line.endswith("r 0x00001000 4 0x66726162 mmap")
        ]
    assert len(reads) == 2 * count
    assert file.stat().st_size < 60 << 10


def directory(path: Path) -> None:
    path.mkdir()


def dangling(path: Path) -> None:
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("make", [directory, dangling, os.mkfifo])
def test_a_trace_takes_the_place_of_files_only(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    file, other = tmp_path / "trace", tmp_path / "trace.1"
    make(other)
    before = other.lstat()
    with mounted(tmp_path, "demo", options=f"trace={file},trace-limit=4k") as mount:
        read_often(mount.device() / "bar0", 200)
        wait_until(lambda: f"cannot be moved to {other}" in mount.log.read_text(), "the log")
    assert (other.lstat().st_ino, other.lstat().st_mode) == (before.st_ino, before.st_mode)
    last = file.read_text().splitlines()[-1]
    assert last == "# the trace ends: it has reached its limit and cannot be moved: File exists"
    assert file.stat().st_size < 5000


def test_a_trace_that_is_a_link_to_its_older_one(tmp_path: Path) -> None:
    """rename(2) would do nothing, and the file would grow for ever."""
    file = tmp_path / "trace"
    file.touch()
    os.link(file, tmp_path / "trace.1")
    with mounted(tmp_path, "demo", options=f"trace={file},trace-limit=4k") as mount:
        read_often(mount.device() / "bar0", 200)
    assert file.stat().st_size < 5000


@pytest.mark.parametrize(
    ("name", "reason"), [("missing/trace", "No such file"), (".", "Is a directory")]
)
def test_what_cannot_be_written(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "mnt").mkdir()
    result = command("mount", "-o", f"trace={tmp_path / name}", "demo", tmp_path / "mnt")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert reason in result.stderr


def test_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(barfs.UsageError, match="trace must name a regular file, not"):
        barfs.open("demo", trace=tmp_path / "pipe")
    os.close(reader)


def test_following_from_file_to_file(tmp_path: Path) -> None:
    out = tmp_path / "followed"
    options = f"trace={tmp_path / 'trace'},trace-limit=4k"
    with mounted(tmp_path, "demo", options=options) as mount:
        bar0 = mount.device() / "bar0"
        with out.open("w") as stream:
            process = subprocess.Popen([*BARFS, "trace", str(bar0)], stdout=stream, text=True)
        fd = os.open(bar0, os.O_RDONLY)

        def seen() -> bool:
            os.pread(fd, 4, EDGE)
            return bool(out.read_text())

        wait_until(seen, "the first line")
        expected = []
        for offset in range(EDGE, EDGE + 0x400, 4):
            os.pread(fd, 4, offset)
            expected.append(f"0x{offset:08x}")
            wait_until(lambda: out.read_text().count(expected[-1]) > 0, "a line")
        os.close(fd)
    assert ended(process) == 0
    assert (tmp_path / "trace.1").exists()
    text = out.read_text()
    assert "#" not in text
    shown = [line.split()[5] for line in text.splitlines()]
    assert list(dict.fromkeys(shown)) == expected


def test_following(tmp_path: Path) -> None:
    out = tmp_path / "followed"
    with mounted(tmp_path, "demo", options=f"trace={tmp_path / 'trace'}") as mount:
        bar0 = mount.device() / "bar0"
        os.pread(fd := os.open(bar0, os.O_RDWR), 4, 0)
        with out.open("w") as stream:
            process = subprocess.Popen(
                [*BARFS, "trace", str(bar0), "0x1000+8"], stdout=stream, text=True
            )

        def seen() -> bool:
            os.pread(fd, 4, EDGE)
            return bool(out.read_text())

        wait_until(seen, "the first line")
        os.pread(fd, 4, EDGE + 8)
        os.pwrite(fd, b"last", EDGE + 4)
        os.close(fd)
    assert ended(process) == 0
    rows = [line.split()[4:] for line in out.read_text().splitlines()]
    assert {row[1] for row in rows} == {"0x00001000", "0x00001004"}
    assert rows[-1] == ["w", "0x00001004", "4", "0x7473616c", "mmap"]


CARD = Path(__file__).parents[1] / "support" / "card.rdl"


@contextlib.contextmanager
def followed(out: Path, *words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """`barfs trace`, told apart from the others by its own output; ends with its mount."""
    with out.open("w") as stream:
        process = subprocess.Popen(
            [*BARFS, "trace", *map(str, words)], stdout=stream, stderr=subprocess.PIPE, text=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for_follower(out: Path, access: Callable[[], object]) -> None:
    def seen() -> bool:
        access()
        return bool(out.read_text())

    wait_until(seen, "the first line")


def test_names_and_fields_of_what_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out, some = tmp_path / "followed", tmp_path / "some"
    options = f"trace={tmp_path / 'trace'},registers={CARD}"
    with mounted(tmp_path, "demo", options=options) as mount:
        dma = mount.device() / "registers/bar0/dma"
        ctrl = dma / "chan2/ctrl"
        command_register = mount.device() / "registers/config/COMMAND"
        command_register.read_text()  # the mount's own reads, of its map, are made now
        with (
            followed(out, mount.path) as all_of_it,
            followed(some, mount.device(), "bar0.dma.chan[2].ctrl.mode"),
        ):
            wait_for_follower(out, ctrl.read_text)
            wait_for_follower(some, ctrl.read_text)
            (dma / "chan1/ctrl.mode").write_text("single")
            ctrl.write_text("0x00070103")
            command_register.read_text()
            ctrl.write_text("0x00070001")
            for file in (out, some):
                wait_until(lambda file=file: "0x00070001" in file.read_text(), "the last write")  # type: ignore[misc]
            unmount(mount.path)
            assert ended(all_of_it) == 0
    names = [line.partition(" pread  ")[2] for line in out.read_text().splitlines()]
    last = names.index("dma.chan1.ctrl enable[0]=0 mode[2:1]=idle error[8]=0 count[31:16]=0")
    assert names[last:] == [
        "dma.chan1.ctrl enable[0]=0 mode[2:1]=idle error[8]=0 count[31:16]=0",
        "dma.chan1.ctrl mode[2:1]=idle->single",
        "dma.chan2.ctrl enable[0]=0->1 mode[2:1]=idle->single error[8]=1 count[31:16]=0->7",
        "COMMAND IO[0]=1 MEMORY[1]=1 MASTER[2]=0 SPECIAL[3]=0 INVALIDATE[4]=0 VGA_PALETTE[5]=0 "
        "PARITY[6]=0 WAIT[7]=0 SERR[8]=0 FAST_BACK[9]=0 INTX_DISABLE[10]=0",
        "dma.chan2.ctrl mode[2:1]=single->idle",
    ]
    assert {line.split()[5] for line in some.read_text().splitlines()} == {"0x00004120"}


def test_a_trace_does_not_show_the_accesses_that_find_names(tmp_path: Path) -> None:
    out, file = tmp_path / "followed", tmp_path / "trace"
    with mounted(tmp_path, "demo", options=f"trace={file}") as mount:
        vendor = mount.device() / "registers/config/VENDOR_ID"
        with followed(out, mount.device() / "config") as process:
            wait_for_follower(out, vendor.read_text)
            (mount.device() / "config").read_bytes()
            wait_until(lambda: "0x000000fc" in out.read_text(), "the last word")
            unmount(mount.path)
            assert ended(process) == 0
    own = {line.split()[1] for line in out.read_text().splitlines()}
    assert str(process.pid) in file.read_text()
    assert str(process.pid) not in own
    assert "0xba5f1234 pread  VENDOR_ID; DEVICE_ID" in out.read_text()


def test_names_of_one_device_of_several(tmp_path: Path) -> None:
    options = f"trace={tmp_path / 'trace'}"
    with mounted(tmp_path, "demo", "demo", options=options) as mount:
        device = mount.device("ffff:00:00.0")
        cases: list[tuple[Path, str, str]] = [
            (mount.path, "bar0.ID", "not a mount of 2 devices"),
            (device, "bar0.IX", "has no IX"),
            (device / "bar0", "ID*X", "matches no register"),
            (device / "bar2", "ID", "no description of the registers of bar2"),
        ]
        for place, name, message in cases:
            result = command("trace", place, name)
            assert (result.returncode, result.stdout) == (2, "")
            assert message in result.stderr
            assert result.stderr.count("\n") == 1


def test_following_what_is_not_traced(tmp_path: Path) -> None:
    with mounted(tmp_path, "demo") as mount:
        result = command("trace", mount.path)
        assert result.returncode == 2
        assert "is mounted without -o trace=FILE" in result.stderr
    result = command("trace", tmp_path)
    assert result.returncode == 2
    assert "is not in a barfs mount" in result.stderr
