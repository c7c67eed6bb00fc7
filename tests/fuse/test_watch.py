# SPDX-License-Identifier: MIT
"""`barfs watch`: what changes, with time, until the device leaves or ^C."""

import contextlib
import datetime
import select
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import BARFS, DEADLINE, barfs, ended, mounted, served

CARD = Path(__file__).parents[1] / "support" / "card.rdl"


@dataclass
class Watch:
    """A `barfs watch` that has read everything once; `told` is what it said before that."""

    process: subprocess.Popen[str]
    told: list[str]

    def line(self) -> list[str]:
        """The words of its next line, after the time, which is checked."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE)
        assert ready, "no change was printed"
        when, *words = self.process.stdout.readline().split()
        assert abs(datetime.datetime.fromisoformat(when) - datetime.datetime.now()).seconds < 120
        return words

    def end(self, number: int | None = None) -> tuple[int, str, str]:
        """Its exit code, what it had not printed yet, and what it said."""
        if number is not None:
            self.process.send_signal(number)
        output, errors = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, output, errors


@contextlib.contextmanager
def watching(*words: str | Path) -> Iterator[Watch]:
    process = subprocess.Popen(
        [*BARFS, "watch", "--interval", "0.01", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        bufsize=0,
    )
    assert process.stderr is not None
    told: list[str] = []
    try:
        while not told or not told[-1].startswith("watching "):
            line = process.stderr.readline()
            assert line, told
            told.append(line.rstrip("\n"))
        yield Watch(process, told)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("options", ["", ",guard"])
def test_changes_of_registers_and_fields(tmp_path: Path, options: str) -> None:
    with (
        served(tmp_path) as server,
        mounted(tmp_path, server.name, options=f"registers={CARD}{options}") as mount,
    ):
        card = mount.device() / "registers/bar0/dma/chan2"
        with watching(mount.device(), "dma.*", "dma.chan3.ctrl.mode") as watch:
            assert watch.told == ["watching 12 registers; ^C ends it"]
            (card / "ctrl.mode").write_text("burst")
            assert watch.line() == [
                "bar0+0x00004120", "dma.chan2.ctrl", "0x00000000", "->", "0x00000004",
                "mode[2:1]=idle->burst",
            ]  # fmt: skip
            (card / "ctrl").write_text("0x00070001")
            assert watch.line()[1:] == [
                "dma.chan2.ctrl", "0x00000004", "->", "0x00070001",
                "enable[0]=0->1", "mode[2:1]=burst->idle", "count[31:16]=0->7",
            ]  # fmt: skip
            (card / "wide").write_text("0x5500000000000000")
            assert watch.line()[1:] == [
                "dma.chan2.wide", "0x0000000000000000", "->", "0x5500000000000000",
                "high[63:56]=0->0x55",
            ]  # fmt: skip
            assert watch.end(signal.SIGINT) == (130, "", "")
        with watching(mount.device(), "--count", "1", "dma.chan2.ctrl.mode") as watch:
            (card / "ctrl.count").write_text("8")
            (card / "ctrl.mode").write_text("single")
            assert watch.line()[1:] == ["dma.chan2.ctrl.mode", "idle", "->", "single"]
            assert watch.end() == (0, "", "")


def test_reads_with_side_effects_are_asked_for(tmp_path: Path) -> None:
    with served(tmp_path) as server, mounted(tmp_path, server.name, options="guard") as mount:
        server.accesses()
        with watching(mount.device(), "bar0") as watch:
            assert watch.told == [
                "bar0.COUNTER, bar0.FIFO, bar0.READS: not read: that has side effects; "
                "name it to read it",
                "watching 9 registers; ^C ends it",
            ]
            barfs("mw", mount.device() / "bar0", "SCRATCH", "7")
            assert watch.line()[1:] == ["SCRATCH", "0x00000000", "->", "0x00000007"]
            watch.end(signal.SIGTERM)
        read = {line.split()[2] for line in server.accesses() if line.startswith("r bar0")}
        assert read == {hex(at) for at in range(0, 0x30, 4)} - {"0x8", "0x18", "0x24"}
        with watching(mount.device(), "bar0.READS", "bar0.R*", "--count", "2") as watch:
            assert watch.told == ["watching 1 register; ^C ends it"]
            first, second = watch.line(), watch.line()
            assert first[:2] == ["bar0+0x00000024", "READS"]
            assert int(second[-1], 16) == int(first[-1], 16) + 1
        result = barfs("watch", mount.device(), "bar0.F*O")
        assert (result.returncode, result.stdout) == (2, "")
        assert "bar0.FIFO: not read: that has side effects" in result.stderr


def test_a_register_that_fails_is_a_change(tmp_path: Path) -> None:
    with served(tmp_path) as server, mounted(tmp_path, server.name) as mount:
        fault = mount.device() / "registers/bar0/FAULT"
        with watching(mount.device(), "FAULT") as watch:
            fault.write_text("1")
            assert watch.line()[1:] == ["FAULT", "0x00000000", "->", "EIO"]
            with watching(mount.device(), "bar0.F*T", "bar0.ID") as other:
                assert other.told[0] == "barfs: bar0.FAULT cannot be read yet: EIO"
            fault.write_text("0")
            assert watch.line()[1:] == ["FAULT", "EIO", "->", "0x00000000"]
            watch.end(signal.SIGHUP)
            assert watch.process.returncode == 129


WIDE = """
addrmap wide {
    default sw = rw; default hw = na;
    reg { regwidth = 32; field {} a[31:0]; } x4 @ 0x40;
    reg { regwidth = 64; field {} a[63:0]; } x8 @ 0x48;
    reg { regwidth = 64; accesswidth = 32; field {} a[63:0]; } x84 @ 0x50;
};
"""


def test_what_can_never_be_read_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "wide.rdl").write_text(WIDE)
    options = f"widths=4,registers=bar0+0x4000={tmp_path / 'wide.rdl'}"
    with mounted(tmp_path, "demo", options=options) as at, watching(at.device(), "bar0") as watch:
        assert watch.told == [
            "barfs: bar0+0x4048 (8 bytes): width or alignment not possible here: "
            "this place takes accesses of 4 bytes only",
            "watching 2 registers; ^C ends it",
        ]
        (at.device() / "registers/bar0/x84").write_text("7")
        assert watch.line()[1] == "x84"


def test_a_device_that_leaves_ends_it_with_a_line(tmp_path: Path) -> None:
    with served(tmp_path) as server, mounted(tmp_path, server.name) as mount:
        with watching(mount.device(), "bar0.ID") as in_mount, watching(server.name, "bar0.ID"):
            server.process.terminate()
            ended(server.process)
            code, output, errors = in_mount.end()
        assert (code, output) == (1, "")
        assert errors == "barfs: bar0+0x0 (4 bytes): the device is gone\n"


def test_a_mount_that_ends_ends_it_with_a_line(tmp_path: Path) -> None:
    with mounted(tmp_path, "demo") as mount, watching(mount.device(), "bar0.ID") as watch:
        mount.process.kill()
        ended(mount.process)
        code, output, errors = watch.end()
        assert (code, output) == (1, "")
        assert errors == "barfs: bar0+0x0 (4 bytes): the device is gone\n"
        subprocess.run(["fusermount3", "-uz", mount.path], check=False)


def test_a_device_that_is_not_mounted(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        description = f"bar0+0x1000={CARD}"
        with watching("--registers", description, server.name, "dma.chan0.ctrl") as watch:
            assert watch.told == [f"opened {server.name}", "watching 1 register; ^C ends it"]
            server.process.terminate()
            ended(server.process)
            code, _output, errors = watch.end()
            assert (code, errors.count("\n")) == (1, 1)


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    with mounted(tmp_path, "demo") as mount, watching(mount.device(), "bar0.SCRATCH") as watch:
        assert watch.process.stdout is not None
        watch.process.stdout.close()
        (mount.device() / "registers/bar0/SCRATCH").write_text("1")
        assert ended(watch.process) == 1
        assert watch.process.stderr is not None
        assert watch.process.stderr.read() == ""
        watch.process.stdout = None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing*"], "matches no register"),
        (["bar0.ID", "--interval", "-1"], "--interval must be 0 to"),
        (["bar0.ID", "--interval", "nan"], "--interval must be 0 to"),
        (["bar0.ID", "--count", "0"], "--count must be 1 or more"),
        ([], "required: PATTERN"),
    ],
)
def test_what_makes_no_sense(tmp_path: Path, words: list[str], message: str) -> None:
    with mounted(tmp_path, "demo") as mount:
        result = barfs("watch", mount.device(), *words)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr


def test_a_device_without_registers_by_name(tmp_path: Path) -> None:
    with mounted(tmp_path, "demo", options="registers=off") as mount:
        result = barfs("watch", mount.device(), "bar0.ID")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
