# SPDX-License-Identifier: MIT
"""Registers that a mount keeps people, and their tools, away from."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import barfs
from barfs.layout import Layout
from tests.support import Mounted, Served, mounted, served, wait_until
from tests.support import barfs as command

SCRATCH, COUNTER, INVERT = 0x04, 0x08, 0x10
WINDOW = 0x1000  # of bar0 of the demo device

RULES = f"""
[[rule]]
region = "bar0"
range = "{COUNTER:#x}+4"
access = "none"

[[rule]]
device = "vfio-user:*"
region = "bar0"
range = "{SCRATCH:#x}+4"
access = "ro"

[[rule]]
region = "bar0"
range = "{WINDOW:#x}-{WINDOW + 15:#x}"
access = "none"
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(RULES)
    return path


def error_of(call: Callable[..., object], *arguments: object) -> int | None:
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return None


def test_a_policy_on_every_path(tmp_path: Path, rules: Path) -> None:
    with (
        served(tmp_path) as server,
        mounted(tmp_path, server.name, options=f"policy={rules}") as mount,
    ):
        bar0 = mount.device() / "bar0"
        server.accesses()
        fd = os.open(bar0, os.O_RDWR)
        assert error_of(os.pread, fd, 4, COUNTER) == errno.EPERM
        assert error_of(os.pread, fd, 8, COUNTER) == errno.EPERM
        assert error_of(os.pwrite, fd, b"1234", SCRATCH) == errno.EPERM
        assert error_of(os.pread, fd, 4, WINDOW) == errno.EPERM
        assert error_of(os.pwrite, fd, b"1234", WINDOW + 12) == errno.EPERM
        assert server.accesses() == []
        assert len(os.pread(fd, 64, 0)) == COUNTER
        assert len(os.pread(fd, 64, COUNTER + 4)) == 64
        assert os.pwrite(fd, bytes(8), WINDOW + 16) == 8
        os.close(fd)
        rows = {
            (segment.start, segment.end): (segment.access, segment.perm)
            for segment in Layout.from_text((mount.device() / "bar0.layout").read_text()).segments
            if segment.reason == "policy"
        }
        assert rows == {
            (SCRATCH, SCRATCH + 4): ("pread", "r-"),
            (COUNTER, COUNTER + 4): ("none", "--"),
            (WINDOW, WINDOW + 16): ("none", "--"),
        }
        wait_until(lambda: "write of bar0+0x4 (4 bytes): the policy" in mount.log.read_text(), "it")


def test_a_policy_from_python(rules: Path) -> None:
    with barfs.open("demo", policy=rules, mapping="contiguous") as device:
        bar0 = device["bar0"]
        with pytest.raises(barfs.PolicyDenied, match=r"bar0\+0x8 \(4 bytes\)"):
            bar0.read32(COUNTER)
        with pytest.raises(barfs.PolicyDenied):
            bar0.write(WINDOW, b"1234")
        with pytest.raises(barfs.UsageError, match="a policy or widths restrict it"):
            _ = bar0.address
        assert device["bar2"].address


def test_a_policy_that_cannot_be(tmp_path: Path) -> None:
    rules = tmp_path / "policy.toml"
    rules.write_text('[[rule]]\ndevice = "demo"\nregion = "bar1"\naccess = "none"\n')
    (tmp_path / "mnt").mkdir()
    result = command("mount", "-o", f"policy={rules}", "demo", tmp_path / "mnt")
    assert result.returncode == 2
    assert result.stderr.strip().endswith(
        "policy: ffff:00:00.0 has no bar1; it has bar0, bar2, bar4, bar5, rom, config"
    )


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[Served, Mounted]]:
    with (
        served(tmp_path) as server,
        mounted(tmp_path, server.name, options="guard") as mount,
    ):
        server.accesses()
        yield server, mount


def touched(server: Served) -> set[str]:
    """The regions that were accessed, by direction; configuration space may be read."""
    return {" ".join(line.split()[:2]) for line in server.accesses()} - {"r config"}


@pytest.mark.parametrize("tool", ["grep", "tar", "cp", "cat", "dd"])
def test_careless_tools_have_no_effect(
    tmp_path: Path, guarded: tuple[Served, Mounted], tool: str
) -> None:
    server, mount = guarded
    out = str(tmp_path / "out")
    arguments = {
        "grep": ["-r", "x", "."],
        "tar": ["-cf", out, "."],
        "cp": ["-r", ".", out],
        "cat": ["bar0", "bar2"],
        "dd": ["if=bar0", f"of={out}", "bs=64"],
    }[tool]
    result = subprocess.run(
        [tool, *arguments], cwd=mount.device(), capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "Invalid argument" in result.stderr
    # The files of registers can be read, but for those whose reads do something.
    for line in server.accesses():
        direction, region, offset, width, _value = line.split()
        assert direction == "r"
        assert region == "config" or (region in ("bar0", "bar4") and width == "4")
        assert (region, offset) not in [("bar0", offset) for offset in ("0x8", "0x18", "0x24")]


def test_the_guard_leaves_single_accesses(guarded: tuple[Served, Mounted]) -> None:
    server, mount = guarded
    fd = os.open(mount.device() / "bar0", os.O_RDWR)
    assert os.pread(fd, 4, 0) == b"barf"
    assert os.pwrite(fd, b"1234", SCRATCH) == 4
    assert len(os.pread(fd, 8, WINDOW)) == 8
    assert error_of(os.pread, fd, 3, 0) == errno.EINVAL
    assert error_of(os.pwrite, fd, b"12345678", SCRATCH) == errno.EINVAL
    os.close(fd)
    assert touched(server) == {"r bar0", "w bar0"}
    hexdump = subprocess.run(
        ["hexdump", "-n4", mount.device() / "bar0"], capture_output=True, text=True, check=True
    )
    assert hexdump.stdout.startswith("0000000 6162 6672")
    assert len((mount.device() / "config").read_bytes()) == 4096
    assert error_of((mount.device() / "config").write_bytes, bytes(64)) == errno.EINVAL
