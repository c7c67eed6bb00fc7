# SPDX-License-Identifier: MIT
"""Where barfs meets the rest of the system: other users, a missing helper."""

import os
import shutil
from pathlib import Path

import pytest

from barfs.attached.mounts import mountpoints_by_device
from tests.support import is_mounted
from tests.support.namespace import AS_NOBODY, NOBODY, barfs_as_nobody, in_namespace, run


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
        assert mountpoints_by_device().get("demo") == path  # but what it is shows
    finally:
        result = barfs_as_nobody("umount", path)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.usefixtures("_other_user")
def test_a_normal_user_without_a_home_mounts(public: Path) -> None:
    path = public / "mnt"
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)
    folder = public / "tmp"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    result = barfs_as_nobody("mount", "demo", path, TMPDIR=str(folder))
    assert (result.returncode, result.stderr) == (0, "")
    # No line, no log: the first one makes it, under a name that no other user can have taken.
    assert [path for path in folder.iterdir() if "-control-" not in path.name] == []
    assert barfs_as_nobody("umount", path).returncode == 0


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
