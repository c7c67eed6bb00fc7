# SPDX-License-Identifier: MIT
"""The linters are tests."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import require

ROOT = Path(__file__).parents[2]

CHECKS = {
    "ruff check": ["-m", "ruff", "check", "--no-cache", "."],
    "ruff format": ["-m", "ruff", "format", "--no-cache", "--check", "."],
    "mypy": ["-m", "mypy", "--no-incremental"],
}


@pytest.mark.parametrize("check", CHECKS)
def test_linter(check: str) -> None:
    result = subprocess.run(
        [sys.executable, *CHECKS[check]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_c_is_formatted() -> None:
    require("clang-format", shutil.which("clang-format") is not None, "clang-format is missing")
    sources = [
        path
        for folder in ("barfs", "scripts", "tests")
        for path in sorted((ROOT / folder).rglob("*.[ch]"))
    ]
    assert sources
    result = subprocess.run(
        ["clang-format", "--dry-run", "-Werror", *sources], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    # It leaves comments alone, which may hold drawings and tables.
    long = [f"{path}:{n}" for path in sources for n, width in widths(path) if width > 100]
    assert not long


def widths(path: Path) -> list[tuple[int, int]]:
    lines = path.read_text().splitlines()
    return [(n, len(line.expandtabs(8))) for n, line in enumerate(lines, 1)]


def test_no_file_is_too_long() -> None:
    sources = [
        *ROOT.glob("barfs/**/*.py"),
        *ROOT.glob("barfs/**/*.[ch]"),
        *ROOT.glob("tests/**/*.py"),
    ]
    long = {str(path): lines for path in sources if (lines := path.read_text().count("\n")) > 500}
    assert not long
