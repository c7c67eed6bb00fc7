# SPDX-License-Identifier: MIT
"""`dump`, `diff` and `serve --from`: a device kept, compared, and brought back without the card."""

import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests.support import BARFS, barfs, mounted, served

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
        assert result.stderr == f"bar0: {FIFO:#x}-{FIFO + 3:#x} is left out: skipped\n"
        assert not [line for line in server.accesses() if f" bar0 {FIFO:#x} " in line]
        quiet("mw", mount.device() / "bar0", f"{SCRATCH:#x}", "0x1234")
        quiet("dump", server.name, "-o", second)
    result = barfs("diff", first, second)
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert f"bar0+{FIFO:#010x}-{FIFO + 3:#x}: not in the first: skipped" in lines
    assert f"bar0+{SCRATCH:#010x}: 00000000 -> 00001234" in lines
    assert {line.split(":")[0] for line in lines[1:]} <= {
        f"bar0+{at:#010x}" for at in (SCRATCH, COUNTER, READS)
    }
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
    assert (result.returncode, result.stderr) == (0, f"opened {server.name}\n")


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
        (("--skip", "bar0:0xfffc+8"), "bar0 has 0x10000 bytes"),
        (("--skip", "bar0:x"), "is no number"),
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
    assert f"{folder / 'a'}: No space left on device" in result.stderr
    assert left == [folder / "ballast"]


def test_serving_what_is_no_dump(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("hello")
    result = barfs("serve", "--from", tmp_path / "a", "--socket", tmp_path / "s")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "is not a dump of barfs" in result.stderr
    result = barfs("serve", "--from", tmp_path / "a", tmp_path / "b.toml")
    assert result.returncode == 2
