# SPDX-License-Identifier: MIT
"""Programs in C that tests run, and programs that run under `barfs run`."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.support import BARFS, DEADLINE, require

ROOT = Path(__file__).parents[2]
PEEK = Path(__file__).with_name("peek.c")
FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror"]


def compiled(source: Path, folder: Path, *flags: str, name: str = "") -> Path:
    """The program, or with -shared the library, that a file of C is."""
    require("cc", shutil.which("cc") is not None, "cc is not installed")
    program = folder / (name or source.stem)
    command = ["cc", *FLAGS, *flags, "-o", str(program), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return program


def run_mapped(
    *command: str | Path, timeout: float = DEADLINE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command by `barfs run`, in a directory from which programs import `tests.support`."""
    return subprocess.run(
        [*BARFS, "run", *map(str, command)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )
