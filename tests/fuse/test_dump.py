# SPDX-License-Identifier: MIT
"""`dump`, `diff` and `serve --from`: a device kept, compared, and brought back without the card."""

import contextlib
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from barfs.dump.file import Dump
from tests.support import BARFS, barfs, ended, mounted, served, wait_until

SCRATCH, FIFO, COUNTER, READS = 0x04, 0x18, 0x08, 0x24


def quiet(*words: str | Path) -> str:
    result = barfs(*words)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_from_card_to_file_to_card(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    with served(tmp_path) as server, mounted(tmp_path, server.name) as mount:
        server.accesses()
        result = barfs("dump", server.name, "-o", first, "--skip", f"bar0:{FIFO:#x}+4")
        assert result.returncode == 0
        assert result.stderr == (
            f"bar0: {FIFO:#x}-{FIFO + 3:#x} is left out: skipped\n"
            f"bar0: left out, since a read has side effects: COUNTER at {COUNTER:#x}, "
            f"READS at {READS:#x}\n"
        )
        unread = {hex(at) for at in (FIFO, COUNTER, READS)}
        assert not unread & {line.split()[2] for line in server.accesses() if " bar0 " in line}
        quiet("mw", mount.device() / "bar0", f"{SCRATCH:#x}", "0x1234")
        quiet("dump", server.name, "-o", second)
    result = barfs("diff", first, second)
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert f"bar0+{FIFO:#010x}-{FIFO + 3:#x}: not in the first: skipped" in lines
    assert f"bar0+{FIFO:#010x}-{FIFO + 3:#x}: not in the second: side-effects" in lines
    assert lines[2:] == [f"bar0+{SCRATCH:#010x}: 00000000 -> 00001234  SCRATCH"]
    with served(tmp_path, "--from", second, name="replica") as replica:
        quiet("dump", replica.name, "-o", third)
        assert quiet("diff", second, third) == ""
        shown = quiet("layout", replica.name, "bar0").splitlines()
        replica.accesses()
        assert quiet("md", f"{replica.name}:bar0", "0") == (
            "00000000: 66726162                               barf\n"
        )
        assert [line for line in replica.accesses() if "bar0" in line] == [
            "r bar0 0x0 4 0x66726162"
        ]
    with served(tmp_path) as server:
        assert quiet("layout", server.name, "bar0").splitlines() == shown


def test_a_guarded_mount_is_dumped_register_by_register(tmp_path: Path) -> None:
    with (
        served(tmp_path) as server,
        mounted(tmp_path, server.name, options="guard"),
    ):
        quiet("dump", server.name, "-o", tmp_path / "a", "--skip", "bar2")
        assert {line.split()[3] for line in server.accesses() if " bar0 " in line} == {"4"}


def test_a_device_that_has_to_be_opened_is_told(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        result = barfs("dump", server.name, "-o", tmp_path / "a")
    assert result.returncode == 0
    assert result.stderr.splitlines() == [
        f"opened {server.name}",
        "bar0: left out, since a read has side effects: "
        "COUNTER at 0x8, FIFO at 0x18, READS at 0x24",
    ]


CARD = Path(__file__).parents[1] / "support" / "card.rdl"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.usefixtures("cache")
def test_the_description_of_a_mount_says_what_is_left_out(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    options = f"registers=bar0={CARD}"
    with served(tmp_path) as server, mounted(tmp_path, server.name, options=options) as mount:
        server.accesses()
        result = barfs("dump", server.name, "-o", first)
        told = "bar0: left out, since a read has side effects: fifo at 0x18\n"
        assert (result.returncode, result.stderr) == (0, told)
        assert not [line for line in server.accesses() if f"r bar0 {FIFO:#x} " in line]
        chan = mount.device() / "registers/bar0/dma/chan1"
        (chan / "ctrl.mode").write_text("burst")
        (chan / "wide.high").write_text("7")
        (chan / "status").write_text("0x1")
        quiet("dump", server.name, "-o", second, "--skip", "bar2", "--skip", "bar0:dma.*.status")
        with Dump(second) as dump:
            skipped = [hole for hole in dump.holes["bar0"] if hole.reason == "skipped"]
            assert [hole.start for hole in skipped] == [0x4104, 0x4114, 0x4124, 0x4134]
    result = barfs("diff", first, second)
    changed = [line for line in result.stdout.splitlines() if " -> " in line]
    assert [line for line in changed if "dma" in line] == [
        "bar0+0x00004110: 00000000 -> 00000004  dma.chan1.ctrl mode[2:1]=idle->burst",
        "bar0+0x00004118: 0000000000000000 -> 0700000000000000  dma.chan1.wide high[63:56]=0->7",
    ]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("mount_it", [True, False])
def test_a_description_is_given_or_turned_off(tmp_path: Path, mount_it: bool) -> None:
    with served(tmp_path) as server, contextlib.ExitStack() as stack:
        if mount_it:
            stack.enter_context(mounted(tmp_path, server.name))
        words = ["dump", server.name, "-o", str(tmp_path / "a"), "--skip", "bar2"]
        server.accesses()
        result = barfs(*words, "--registers", str(CARD))
        assert "side effects: fifo at 0x18\n" in result.stderr
        read = {line.split()[2] for line in server.accesses() if line.startswith("r bar0")}
        assert "0x18" not in read
        assert {"0x8", "0x24"} <= read
        result = barfs(*words, "--registers", "off")
        assert "side effects" not in result.stderr
        assert [line for line in server.accesses() if line.startswith("r bar0 0x18 4 ")]
        with Dump(tmp_path / "a") as dump:
            assert dump.registers("bar0") is None
        result = barfs(*words, "--registers", "off", "--skip", "bar0:FIFO")
        assert result.returncode == 2
        assert "no description of the registers" in result.stderr
        result = barfs(*words, "--registers", str(tmp_path / "none.rdl"))
        assert result.returncode == 2
        assert "none.rdl: No such file" in result.stderr
        assert not list(tmp_path.glob("a?*"))


def test_shipped_names_are_known_again(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with served(tmp_path) as server, mounted(tmp_path, server.name) as mount:
        quiet("dump", server.name, "-o", first, "--skip", "bar2")
        (mount.device() / "registers/config/COMMAND.MASTER").write_text("1")
        quiet("dump", server.name, "-o", second, "--skip", "bar2")
    assert barfs("diff", first, second).stdout == (
        "config+0x00000004: 0003 -> 0007  COMMAND MASTER[2]=0->1\n"
    )


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with served(tmp_path) as server:
        subprocess.run(
            [*BARFS, "dump", server.name, "-o", tmp_path / "a"], stderr=theirs, check=True
        )
    os.close(theirs)
    text = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "bar2     [##############################] 100%" in text
    assert text.endswith("\r\x1b[K")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--skip", "bar9"), "is not a region"),
        (("--skip", "bar1"), "has no bar1; it has bar0, bar2"),
        (("--skip", "bar0:0xfffc+8"), "--skip must be inside bar0, which has 0x10000 bytes"),
        (("--skip", "bar0:0y"), "is not a number"),
        (("--skip", "bar0:x"), "has no x"),
        (("-o", "/nowhere/a"), "No such file or directory"),
    ],
)
def test_what_makes_no_sense(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    with served(tmp_path) as server:
        result = barfs("dump", server.name, "-o", tmp_path / "a", *words)
    assert result.returncode == 2
    assert message in result.stderr
    assert not (tmp_path / "a").exists()


def test_a_full_disk(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", folder], check=True)
    try:
        (folder / "ballast").write_bytes(bytes(4096))
        result = barfs("dump", "demo", "-o", folder / "a")
        left = list(folder.iterdir())
    finally:
        subprocess.run(["umount", folder], check=True)
    assert result.returncode == 1
    assert f"{folder / 'a'}: no space left on the device; free some" in result.stderr
    assert left == [folder / "ballast"]


LARGE = """
vendor = 0x1234
device = 0x11e8
class = 0xff0000
[[region]]
name = "bar0"
size = 0x1000
[[region]]
name = "bar2"
size = 0x4000000000
bits = 64
flags = ["read", "write", "mmap"]
initial = [{ offset = 0x4000, u32 = 5 }]
"""


def test_a_bar_of_256_gib_that_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "large.toml").write_text(LARGE)
    first, second = tmp_path / "first", tmp_path / "second"
    with served(tmp_path, tmp_path / "large.toml") as server:
        for file, skip in ((first, "bar2:0x10000-0x3fffffffff"), (second, "bar2")):
            result = barfs("dump", server.name, "-o", file, "--skip", skip)
            assert result.returncode == 0
            assert file.stat().st_size < 4096
    result = barfs("diff", first, second)
    assert result.stdout == (
        "bar2+0x00010000-0x3fffffffff: not in the first: skipped\n"
        "bar2+0x00000000-0x3fffffffff: not in the second: skipped\n"
    )
    with served(tmp_path, "--from", first, name="replica") as replica:
        assert quiet("md", f"{replica.name}:bar2", "0x4000").startswith("00004000: 00000005")


def test_zeros_of_a_software_device_stay_unallocated(tmp_path: Path) -> None:
    (tmp_path / "large.toml").write_text(LARGE)
    with served(tmp_path, tmp_path / "large.toml") as server:
        quiet("dump", server.name, "-o", tmp_path / "whole")
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        shared = int(status.partition("RssShmem:")[2].split()[0])
    assert shared < 64 << 10
    with served(tmp_path, "--from", tmp_path / "whole", name="replica") as replica:
        assert quiet("md", f"{replica.name}:bar2", "0x4000").startswith("00004000: 00000005")
    with Dump(tmp_path / "whole") as dump:
        assert [start for start, _ in dump.blocks("bar2")] == [0]
        assert dump.holes["bar2"] == []


def test_a_dump_goes_into_what_is_no_file(tmp_path: Path) -> None:
    pipe, link, target = (tmp_path / name for name in ("pipe", "link", "target"))
    os.mkfifo(pipe)
    link.symlink_to(target)
    target.write_text("old")
    target.chmod(0o640)
    skip = ("--skip", "bar2", "--skip", "bar0")
    piped = tmp_path / "piped"
    with piped.open("wb") as stream, subprocess.Popen(["cat", pipe], stdout=stream) as reader:
        quiet("dump", "demo", "-o", pipe, *skip)
        assert reader.wait() == 0
    quiet("dump", "demo", "-o", link, *skip)
    quiet("dump", "demo", "-o", "/dev/null", *skip)
    shown = subprocess.run(
        [*BARFS, "dump", "demo", "-o", "/dev/stdout", *skip], stdout=subprocess.PIPE, check=True
    )
    (tmp_path / "stdout").write_bytes(shown.stdout)
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert Path("/dev/null").is_char_device()
    assert target.stat().st_mode & 0o777 == 0o640
    for file in (piped, tmp_path / "stdout"):
        assert quiet("diff", target, file) == ""


def test_a_place_for_no_dump_is_refused_before_the_device_is_opened(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        for place, message in ((tmp_path, "is a directory"), (server.socket, "is a socket")):
            result = barfs("dump", server.name, "-o", place)
            assert (result.returncode, result.stderr.count("\n")) == (2, 1)
            assert f"{place} {message}" in result.stderr
        assert server.accesses() == []


def test_a_dump_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    """While the device takes its time for a register."""
    out = tmp_path / "out"
    out.mkdir()
    with served(tmp_path) as server, mounted(tmp_path, server.name, options="timeout=50"):
        for number, code in ((signal.SIGTERM, 128 + 15), (signal.SIGKILL, -9)):
            quiet("mw", f"{server.name}:bar0", "0x2c", "2000")
            server.accesses()
            process = subprocess.Popen(
                [*BARFS, "dump", server.name, "-o", out / "a"], stderr=subprocess.DEVNULL, text=True
            )
            wait_until(lambda: " bar0 0x28 " in server.log.read_text(), "the register")
            process.send_signal(number)
            assert ended(process) == code
            assert list(out.iterdir()) == []


def test_serving_what_is_no_dump(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("hello")
    result = barfs("serve", "--from", tmp_path / "a", "--socket", tmp_path / "s")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "is not a dump of barfs" in result.stderr
    result = barfs("serve", "--from", tmp_path / "a", tmp_path / "b.toml")
    assert result.returncode == 2
