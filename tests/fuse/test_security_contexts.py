# SPDX-License-Identifier: MIT
"""SELinux's contexts as mount options: what reaches the helper, and the kernel's refusal."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from barfs.host.apparmor import selinux_enabled
from barfs.host.sysfs import Machine
from tests.support import BARFS

CONTEXT = "system_u:object_r:usr_t:s0:c1,c2"


def mount(folder: Path, options: str) -> subprocess.CompletedProcess[str]:
    """A mount whose helper is the real one, behind a script that writes its arguments down."""
    helper = shutil.which("fusermount3")
    assert helper is not None
    script = folder / "bin/fusermount3"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >>{folder}/arguments\nexec {helper} "$@"\n')
    script.chmod(0o755)
    (folder / "mnt").mkdir()
    return subprocess.run(
        [*BARFS, "demo", "-o", options, str(folder / "mnt")],
        env={**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_kernel_gets_a_context_and_refuses_it_without_selinux(tmp_path: Path) -> None:
    if selinux_enabled(Machine()):
        pytest.skip("this kernel uses SELinux")
    result = mount(tmp_path, f'ro,context="{CONTEXT}",rootcontext=a:b:c')
    assert result.returncode == 1
    assert result.stderr == (
        f"barfs: cannot mount on {tmp_path}/mnt: {shutil.which('fusermount3')}: mount failed: "
        "Invalid argument; this kernel does not use SELinux: leave out context=, rootcontext=\n"
    )
    options = (tmp_path / "arguments").read_text().splitlines()[1]
    assert options.endswith(f',ro,context="{CONTEXT}",rootcontext="a:b:c"')
