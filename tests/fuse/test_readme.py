# SPDX-License-Identifier: MIT
"""The session at the top of README runs, and prints what README shows."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support import is_mounted, require_fuse

README = Path(__file__).parents[2] / "README.md"


def session() -> list[tuple[str, str]]:
    """The commands of the first console block, each with what it prints."""
    block = re.search(r"^```console\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    steps = re.split(r"^\$ ", block[1], flags=re.MULTILINE)[1:]
    return [(step.partition("\n")[0], step.partition("\n")[2]) for step in steps]


def test_the_session_prints_what_is_shown(tmp_path: Path, command: Path) -> None:
    require_fuse()
    home = tmp_path / "home"
    (home / "bar").mkdir(parents=True)
    steps = session()
    assert len(steps) > 5
    # `ls` writes columns to a terminal only.
    words = [re.sub(r"^ls$", "ls -C -T 0 -w 100", line) for line, _ in steps]
    script = "\n".join(["set -o pipefail", *(f"{line} || exit\necho '~~~'" for line in words)])
    environment = {"HOME": str(home), "PATH": f"{command}:{os.environ['PATH']}"}
    try:
        result = subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=120
        )
    finally:
        if is_mounted(home / "bar"):
            subprocess.run([command / "barfs", "umount", home / "bar"], check=True)
            pytest.fail("the session left its mount")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split("~~~\n")[:-1] == [output for _, output in steps]


def test_it_is_short_and_says_first_what_is_dangerous() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 200
    assert any("resets" in line for line in lines[:20])
