# SPDX-License-Identifier: MIT
"""A device's `vpd` and its slot, which a mount takes from the host: what lspci makes of them.

No emulated device has a VPD, so a software device gets a file in place of sysfs's.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import DEADLINE, Mounted, mounted, require, served, wait_until
from tests.support.namespace import AS_NOBODY, run

# The command `barfs`, whose software devices have the files of VPD, and are in slot 7.
# A read waits while the file SLOW is there.
DAEMON = """
import os, sys, time
from pathlib import Path
from barfs.backend import HostFile
from barfs.cli import main
from barfs.fuse import host_files
from barfs.vfio_user.client import VfioUserClient

pread = os.pread

class Slow:
    def __getattr__(self, name):
        return getattr(os, name)
    def pread(self, *words):
        Path(os.environ["READING"]).touch()
        while os.path.exists(os.environ["SLOW"]):
            time.sleep(0.01)
        return pread(*words)

host_files.os = Slow()
VfioUserClient.host_files = lambda self: {"vpd": HostFile(Path(os.environ["VPD"]), 0)}
VfioUserClient.slot = lambda self: "7"
sys.exit(main())
"""
DEVICE = """\
vendor = 0x1234
device = 0x5678
class = 0x020000
[[region]]
name = "config"
size = 256
flags = ["read", "write"]
initial = [{ offset = 0x41, u8 = 0x80 }, { offset = 0x80, hex = "03 00 00 80" }]
[[region]]
name = "bar0"
size = 0x1000
flags = ["read", "write"]
"""
SHOWN = """\
	Physical Slot: 7
	Capabilities: [80] Vital Product Data
		Product Name: a card
		Read-only fields:
			[PN] Part number: barfs-1
			[SN] Serial number: 4711
			[RV] Reserved: checksum good, 0 byte(s) reserved
		End
"""


def vpd() -> bytes:
    """PCI Local Bus Specification 3.0, appendix I."""
    fields = b"".join(key + bytes([len(text)]) + text for key, text in FIELDS) + b"RV\1"
    name = b"a card"
    head = b"\x82" + len(name).to_bytes(2, "little") + name
    data = head + b"\x90" + (len(fields) + 1).to_bytes(2, "little") + fields
    return data + bytes([-sum(data) & 0xFF]) + b"\x78"


FIELDS = ((b"PN", b"barfs-1"), (b"SN", b"4711"))


@contextlib.contextmanager
def card(
    folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch, options: str = ""
) -> Iterator[Mounted]:
    for name in ("SLOW", "READING"):
        monkeypatch.setenv(name, str(folder / name.lower()))
    monkeypatch.setenv("VPD", str(file))
    description = folder / "card.toml"
    description.write_text(DEVICE)
    command = [sys.executable, "-c", DAEMON]
    with (
        served(folder, description) as device,
        mounted(folder, f"{device.name},bdf=05:00.0", options=options, command=command) as mount,
    ):
        yield mount


def lspci(mount: Mounted) -> tuple[list[str], list[str]]:
    words = ["lspci", "-A", "linux-sysfs", "-O", f"sysfs.path={mount.path}", "-vv", "-s", "05:00.0"]
    result = run("/usr/bin/env", *words)
    assert result.returncode == 0
    return result.stdout.splitlines(), [
        line for line in result.stderr.splitlines() if "libkmod" not in line
    ]


def test_lspci_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "vpd"
    file.write_bytes(vpd())
    with card(tmp_path, file, monkeypatch) as mount:
        lines, errors = lspci(mount)
        found = iter(lines)
        assert [line for line in SHOWN.splitlines() if line not in found] == [], lines
        assert errors == []
        ours = mount.device() / "vpd"
        assert ours.stat().st_mode & 0o777 == 0o400
        assert ours.read_bytes() == vpd()
        file.write_bytes(b"new")  # nothing is kept
        assert ours.read_bytes() == b"new"
        with pytest.raises(PermissionError):
            os.open(ours, os.O_WRONLY)
        assert (mount.path / "slots/7/address").read_text() == "0000:05:00\n"


def test_an_error_of_the_host_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A read at its start fails with EIO.
    with card(tmp_path, Path("/proc/self/mem"), monkeypatch) as mount:
        with pytest.raises(OSError, match="Input/output error"):
            (mount.device() / "vpd").read_bytes()
        lines, errors = lspci(mount)
        assert "\t\tNot readable" in lines
        assert errors == ["pcilib: sysfs_read_vpd: read failed: Input/output error"]
    with card(tmp_path, tmp_path / "gone", monkeypatch) as mount, pytest.raises(FileNotFoundError):
        (mount.device() / "vpd").read_bytes()


def test_a_slow_read_keeps_nothing_else_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "vpd"
    file.write_bytes(vpd())
    with card(tmp_path, file, monkeypatch) as mount:
        slow = tmp_path / "slow"
        slow.touch()
        found: list[bytes] = []
        ours = mount.device() / "vpd"
        readers = [
            threading.Thread(target=lambda: found.append(ours.read_bytes())) for _ in range(5)
        ]
        for reader in readers:
            reader.start()
        wait_until((tmp_path / "reading").exists, "the read")
        assert "bar0" in os.listdir(mount.device())
        assert (mount.device() / "vendor").read_text() == "0x1234\n"
        with (mount.device() / "bar0").open("rb", buffering=0) as bar0:
            assert bar0.read(4) == bytes(4)
        assert found == []
        slow.unlink()
        for reader in readers:
            reader.join(DEADLINE)
        assert found == [vpd()] * 5


def test_a_mount_ends_during_a_slow_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "vpd"
    file.write_bytes(vpd())
    with card(tmp_path, file, monkeypatch) as mount:
        slow = tmp_path / "slow"
        slow.touch()
        with subprocess.Popen(
            ["cat", str(mount.device() / "vpd")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as reader:
            wait_until((tmp_path / "reading").exists, "the read")
            mount.process.terminate()
            assert mount.process.wait(DEADLINE) == 0
            assert reader.wait(DEADLINE) == 1


def test_only_the_owner_may_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    require("fuse", os.geteuid() == 0, "to be another user takes root")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # tmp_path is root's alone
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "vpd").write_bytes(vpd())
        with card(folder, folder / "vpd", monkeypatch, "allow_other,umask=0") as mount:
            others = [run(*AS_NOBODY, "/bin/cat", mount.device() / file) for file in ("irq", "vpd")]
            assert [result.returncode for result in others] == [0, 1]
            assert others[1].stderr.endswith("Permission denied\n")
