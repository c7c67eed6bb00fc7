# SPDX-License-Identifier: MIT
"""Mounts under an AppArmor profile of fusermount3 that the kernel enforces."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from barfs.host import apparmor
from barfs.host.sysfs import Machine
from tests.support import BARFS, mounted, require
from tests.support.guest import SCRATCH

FOLDER = Path("/etc/apparmor.d")
HELPER = "/usr/bin/fusermount3"
PROFILE = f"""\
profile fusermount3 {HELPER} {{
  file,
  capability,
  network,
  unix,
  signal,
  ptrace,
  mount fstype=fuse.* options=(nosuid,nodev) options in (ro,rw,noexec) -> {SCRATCH}/allowed/**/,
  umount {SCRATCH}/allowed/**/,
  include if exists <local/fusermount3>
}}
"""


@pytest.fixture
def profile() -> Iterator[Path]:
    """The profile is loaded, and its folder ours."""
    require("vm", apparmor.enabled(Machine()), "this kernel does not use AppArmor")
    require("vm", shutil.which("apparmor_parser") is not None, "apt install apparmor")
    if not os.path.ismount("/sys/kernel/security"):
        subprocess.run(["mount", "-t", "securityfs", "none", "/sys/kernel/security"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "apparmor", FOLDER], check=True)
    (FOLDER / "local").mkdir()
    file = FOLDER / "fusermount3"
    file.write_text(PROFILE)
    try:
        subprocess.run(["apparmor_parser", "-K", "-r", file], check=True)
        yield file
    finally:
        subprocess.run(["apparmor_parser", "-R", file], check=False)
        subprocess.run(["umount", FOLDER], check=True)


def refused(place: Path) -> str:
    result = subprocess.run(
        [*BARFS, "demo", str(place)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_refused_mount_names_the_line_to_add(profile: Path) -> None:
    allowed, other = SCRATCH / "allowed", SCRATCH / "other"
    for folder in (allowed, other):
        folder.mkdir()
    with mounted(allowed, "demo") as mount:
        assert (mount.device() / "bar0").exists()
    (other / "mnt").mkdir()
    said = refused(other / "mnt")
    assert "mount failed: Permission denied; the AppArmor profile fusermount3 allows no mou" in said

    doctor = subprocess.run([*BARFS, "doctor"], capture_output=True, text=True, check=False)
    notes = [line for line in doctor.stdout.splitlines() if "AppArmor" in line]
    assert f"lets fusermount3 mount only on {SCRATCH}/allowed/**/; for another" in notes[0]
    assert notes[1].startswith(f"note  the kernel's log has a refused mount on {other}/mnt/: the ")

    lines = [word for word in said.split("'") if word.endswith(",")]
    (FOLDER / "local/fusermount3").write_text("\n".join(lines) + "\n")
    subprocess.run(said.rpartition("run as root: ")[2].split(), check=True)
    (other / "mnt").rmdir()
    with mounted(other, "demo") as mount:
        assert (mount.device() / "bar0").exists()
