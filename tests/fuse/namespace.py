# SPDX-License-Identifier: MIT
"""Commands run as somebody else, or where they may mount over the system's own files."""

import os
import subprocess
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
    return run(*AS_NOBODY, *BARFS, *arguments, HOME="/nonexistent", TMPDIR="/tmp", **env)
