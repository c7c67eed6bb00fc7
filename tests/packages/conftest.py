# SPDX-License-Identifier: MIT
"""The packages, each built once a run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import require

ROOT = Path(__file__).parents[2]


def package(kind: str, folder: Path) -> list[Path]:
    """What `scripts/package KIND FOLDER` makes, without what it installs before."""
    result = subprocess.run(
        [sys.executable, "-m", "package_lib", kind, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [Path(line) for line in result.stdout.splitlines()]


def require_programs(what: str, *programs: str) -> None:
    missing = [program for program in programs if not shutil.which(program)]
    require(what, not missing, f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = package("sdist", tmp_path_factory.mktemp("sdist"))
    return path


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = package("wheel", tmp_path_factory.mktemp("wheel"))
    return path


@pytest.fixture(scope="session")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with manuals and completion, as /usr/share."""
    require_programs("man", "scdoc")
    folder = tmp_path_factory.mktemp("share")
    assert all(path.is_file() for path in package("share", folder))
    return folder
