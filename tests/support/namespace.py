# SPDX-License-Identifier: MIT
"""Commands run as another user, or in a namespace where they may mount over system files."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support import BARFS, require, require_fuse

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


def barfs_as_nobody(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """As a user with no home, no log folder, and no rights."""
    places = {"HOME": "/nonexistent", "TMPDIR": "/tmp"}
    return run(*AS_NOBODY, *BARFS, *arguments, **{**places, **env})


def opened_to_others(folder: Path) -> str:
    """Script lines that let other users reach this Python, even below a private home directory."""
    binds, homes = [], set()
    for prefix in {Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[2]}:
        for home in (parent for parent in prefix.parents if not parent.stat().st_mode & 0o001):
            copy = folder / str(home.relative_to("/")).replace("/", "-")
            target = copy / prefix.relative_to(home)
            target.mkdir(parents=True, exist_ok=True)
            binds.append(f"mount --bind {prefix} {target}")
            homes.add(f"mount --rbind {copy} {home}")
    return "\n".join([*binds, *sorted(homes)])
