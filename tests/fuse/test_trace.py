# SPDX-License-Identifier: MIT
"""`-o trace=FILE` and `barfs trace`: every access, as it was."""

import os
import subprocess
from pathlib import Path

import pytest

import barfs
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


def test_lines_that_are_lost_are_told(tmp_path: Path) -> None:
    """The disk is full for a while."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", folder], check=True)
    try:
        file, ballast = folder / "trace", folder / "ballast"
        with barfs.open("demo", trace=file) as device:
            file.write_text("")  # what configuration space was read for
            ballast.write_bytes(bytes(12 << 10))
            for _ in range(100):
                device["bar0"].read32(EDGE)
            ballast.unlink()
            device["bar0"].read32(EDGE + 4)
        text = file.read_text()
    finally:
        subprocess.run(["umount", folder], check=True)
    whole, told = (text.count(word) for word in ("r 0x00001000 4", " lines of ffff:00:00.0 bar0"))
    assert told == 1
    lost = int(text.partition("# ")[2].split()[0])
    assert whole + lost >= 100
    assert text.endswith("r 0x00001004 4 0x00000001 mmap\n")


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
    with pytest.raises(barfs.UsageError, match="it is not a file"):
        barfs.open("demo", trace=tmp_path / "pipe")
    os.close(reader)


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


def test_following_what_is_not_traced(tmp_path: Path) -> None:
    with mounted(tmp_path, "demo") as mount:
        result = command("trace", mount.path)
        assert result.returncode == 2
        assert "is mounted without -o trace=FILE" in result.stderr
    result = command("trace", tmp_path)
    assert result.returncode == 2
    assert "is not in a mount of barfs" in result.stderr
