# SPDX-License-Identifier: MIT
"""SELinux's contexts as mount options: how far they get, and the mounts that are made with them."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

from barfs.attached.mounts import barfs_mounts
from barfs.fuse import context_mount
from barfs.fuse.fusermount import unmount
from barfs.host.apparmor import selinux_enabled
from barfs.host.sysfs import Machine
from tests.support import BARFS, mounted, require
from tests.support.namespace import NOBODY, barfs_as_nobody, run

CONTEXT = "system_u:object_r:usr_t:s0:c1,c2"

# Any kernel mounts without the contexts, which only one with SELinux takes.
WITHOUT = """
import sys
from barfs.cli import main
from barfs.fuse import context_mount
mount = context_mount._mount
context_mount._mount = lambda *words, data: mount(*words, data=data.partition(",context=")[0])
sys.exit(main())
"""


@pytest.fixture(autouse=True)
def _root() -> None:
    require("fuse", os.geteuid() == 0, "contexts take root")


def test_a_kernel_without_selinux_refuses_them(tmp_path: Path) -> None:
    if selinux_enabled(Machine()):
        pytest.skip("this kernel uses SELinux")
    options = f'ro,context="{CONTEXT}",rootcontext=a:b:c'
    result = run(*BARFS, "demo", "-o", options, tmp_path)
    assert result.returncode == 1
    assert result.stderr == (
        f"barfs: cannot mount on {tmp_path}: Invalid argument; this kernel does not use SELinux: "
        "leave out context=, rootcontext=\n"
    )
    assert tmp_path not in barfs_mounts()


def test_a_user_is_told_before_a_device_is_opened() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # tmp_path is root's alone
        os.chown(folder, NOBODY, NOBODY)
        result = barfs_as_nobody("mount", "-o", f'context="{CONTEXT}"', "0000:3f:1f.7", folder)
    assert result.returncode == 1
    assert result.stderr == (
        "barfs: only root can mount with context, which fusermount3 does not know; leave it out, "
        "or mount as root\n"
    )


def test_what_the_kernel_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(context_mount, "_mount", lambda *words, data: told.append((words, data)))
    words = ("default_permissions", "nosuid", "nodev", "noexec", "auto_unmount", "ro")
    fd = context_mount.mount(tmp_path, "demo", words, {"context": CONTEXT, "fscontext": "a:b:c"})
    os.close(fd)
    ids = f"user_id={os.getuid()},group_id={os.getgid()}"
    assert told == [
        (
            ("demo", tmp_path, 1 | 2 | 4 | 8),
            f"fd={fd},rootmode=40000,{ids},default_permissions,"
            f'context="{CONTEXT}",fscontext="a:b:c"',
        )
    ]


def test_such_a_mount_works_and_ends_like_any_other(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT]
    options = f'ro,context="{CONTEXT}"'
    with mounted(tmp_path, "demo", options=options, command=command) as mount:
        assert (mount.device() / "bar0").read_bytes()[:4] == b"barf"
        line = next(
            line
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if f" {mount.path} " in line
        )
        assert " ro,nosuid,nodev,noexec" in line
        assert " - fuse.barfs demo " in line
        assert "default_permissions" in line
    assert tmp_path / "mnt" not in barfs_mounts()


def test_one_that_was_killed_is_replaced(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT]
    with mounted(tmp_path, "demo", options=f'context="{CONTEXT}"', command=command) as mount:
        mount.process.kill()
        mount.process.wait()
        result = run(*BARFS, "demo", mount.path)
        try:
            assert (result.returncode, result.stderr) == (0, "")
            assert (mount.device() / "bar0").exists()
        finally:
            unmount(mount.path)
