# SPDX-License-Identifier: MIT
"""Where barfs meets the rest of the system: mount(8), other users, a missing helper."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from barfs.fusermount import mounted_devices
from tests.support import BARFS, is_mounted, require, require_fuse

NOBODY = 65534
AS_NOBODY = ("/usr/bin/setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        stdin=subprocess.DEVNULL,
        env={"LANG": "C", **environment},
    )


def in_namespace(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script that may mount what it likes over the system's own files."""
    require_fuse()
    works = os.getuid() == 0 and run("/usr/bin/unshare", "-m", "/bin/true").returncode == 0
    require("fuse", works, "no mount namespace can be made here: this takes root")
    return run("/usr/bin/unshare", "-m", "/bin/sh", "-euc", script, "sh", *arguments)


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """A directory with nothing but the command `barfs` in it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "barfs").write_text(f'#!/bin/sh\nexec {sys.executable} -m barfs "$@"\n')
    (folder / "barfs").chmod(0o755)
    return folder


def test_mount_and_umount_without_a_path(tmp_path: Path, command: Path) -> None:
    """As from fstab: mount(8) looks for `barfs` in the system's places, and hands down no PATH."""
    path = tmp_path / "mnt"
    path.mkdir()
    result = in_namespace(
        """
        mount --bind "$1" /usr/local/bin
        mount -t fuse.barfs demo "$2" -o ro,width=8
        grep " $2 " /proc/mounts
        cat "$2"/bus/*/bar0.layout
        umount "$2"
        """,
        command,
        path,
    )
    assert (result.returncode, result.stderr) == (0, "")
    entry, *layout = result.stdout.splitlines()
    assert entry.split()[:3] == ["demo", str(path), "fuse.barfs"]
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(entry.split()[3].split(","))
    assert "width  8" in layout
    assert not is_mounted(path)


@pytest.mark.parametrize("subcommand", ["mount", "demo"])
def test_a_missing_fusermount3(tmp_path: Path, command: Path, subcommand: str) -> None:
    path = tmp_path / "mnt"
    path.mkdir()
    program = shutil.which("fusermount3")
    assert program
    result = in_namespace(
        'mount --bind /dev/null "$1"; shift; exec "$@"',
        os.path.realpath(program),
        command / "barfs",
        subcommand,
        *(["demo"] if subcommand == "mount" else []),
        path,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "barfs: fusermount3 is not installed; apt install fuse3\n"


def barfs_as_nobody(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """As a user with no home, no log folder, and no rights."""
    return run(*AS_NOBODY, *BARFS, *arguments, HOME="/nonexistent", TMPDIR="/tmp", **env)


@pytest.fixture
def _other_user() -> Iterator[None]:
    require_fuse()
    require("fuse", os.getuid() == 0, "only root can become another user")
    device = stat.S_IMODE(os.stat("/dev/fuse").st_mode)
    program = os.stat(shutil.which("fusermount3") or "/nonexistent").st_mode
    setuid = bool(program & stat.S_ISUID)
    require("fuse", device & 0o006 == 6 or setuid, "fusermount3 is not setuid root")
    result = barfs_as_nobody("--version")
    require("fuse", result.returncode == 0, f"uid {NOBODY} cannot run barfs: {result.stderr}")
    yield
    shutil.rmtree(f"/tmp/barfs-{NOBODY}", ignore_errors=True)  # the log


@pytest.mark.usefixtures("_other_user")
def test_a_normal_user_mounts(public: Path) -> None:
    path = public / "mnt"
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)
    state = public / "state"
    state.mkdir()
    os.chown(state, NOBODY, NOBODY)
    result = barfs_as_nobody("mount", "demo", path, XDG_STATE_HOME=str(state))
    assert (result.returncode, result.stderr) == (0, "")
    try:
        assert is_mounted(path)
        shown = run(*AS_NOBODY, "sh", "-c", f"stat -c '%u %a' {path}/bus/*/bar0")
        assert shown.stdout == f"{NOBODY} 600\n"
        with pytest.raises(PermissionError):
            os.listdir(path)  # not even root, without allow_other
        assert mounted_devices().get("demo") == path  # but what it is shows
    finally:
        result = barfs_as_nobody("umount", path)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.usefixtures("_other_user")
def test_a_normal_user_without_a_home_mounts(public: Path) -> None:
    path = public / "mnt"
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)
    result = barfs_as_nobody("mount", "demo", path)
    assert (result.returncode, result.stderr) == (0, "")
    assert barfs_as_nobody("umount", path).returncode == 0
    assert Path(f"/tmp/barfs-{NOBODY}/barfs.log").exists() or Path("/dev/log").exists()


@pytest.mark.usefixtures("_other_user")
def test_looking_at_the_machine_without_rights() -> None:
    result = barfs_as_nobody("list")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("BDF ")
    result = barfs_as_nobody("doctor")
    failed = "FAIL" in result.stdout
    assert (result.returncode, result.stderr) == (1 if failed else 0, "")
    for line in result.stdout.splitlines():
        assert line[:6] in ("ok    ", "FAIL  ", "note  ")


@pytest.mark.usefixtures("_other_user")
def test_allow_other_needs_permission(public: Path) -> None:
    lines = Path("/etc/fuse.conf").read_text().split("\n")
    if "user_allow_other" in lines:
        pytest.skip("this machine's /etc/fuse.conf has user_allow_other")
    path = public / "mnt"
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)
    result = barfs_as_nobody("mount", "-o", "allow_other", "demo", path)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "user_allow_other" in result.stderr
    assert "/etc/fuse.conf" in result.stderr
    assert not is_mounted(path)
