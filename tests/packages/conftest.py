# SPDX-License-Identifier: MIT
"""The packages, each built once a run."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from package_lib import environment

from tests.support import require

ROOT = Path(__file__).parents[2]


def package(
    kind: str, folder: Path, user: Mapping[str, str] | None = None, root: Path = ROOT
) -> list[Path]:
    """The files that `scripts/package KIND FOLDER` makes, for a user with these variables and
    umask 077. Debian packages that it needs are not installed."""
    user = user or {}
    path = [str(root / "scripts"), *filter(None, [user.get("PYTHONPATH")])]
    result = subprocess.run(
        [sys.executable, "-m", "package_lib", kind, str(folder)],
        env={**os.environ, **user, "PYTHONPATH": os.pathsep.join(path)},
        umask=0o077,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [Path(line) for line in result.stdout.splitlines()]


def require_programs(what: str, *programs: str) -> None:
    missing = [program for program in programs if not shutil.which(program)]
    require(what, not missing, f"not installed: {', '.join(missing)}")


def runpaths(folder: Path) -> dict[str, list[str]]:
    """The directories in which each extension below a folder has the linker look for libraries."""
    require_programs("deb", "readelf")
    found = {}
    for file in folder.rglob("*.so"):
        command = ["readelf", "--dynamic", "--wide", str(file)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        paths = [line for line in lines.splitlines() if "(RUNPATH)" in line or "(RPATH)" in line]
        found[str(file.relative_to(folder))] = paths
    return found


FOREIGN = "/foreign/python/lib"

MAPPER = """
import mmap, sys
with open(sys.argv[1], "rb", buffering=0) as file:
    print(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)[0x1000:0x1004])
"""
"""A program in Python that prints the beginning of the demo device's first window."""


@pytest.fixture(scope="session")
def user(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a user whose settings would each change or break a build."""
    home = tmp_path_factory.mktemp("home")
    index = {name: value for name, value in environment.clean().items() if name.startswith("PIP_")}
    del index["PIP_CONFIG_FILE"], index["PIP_NO_CACHE_DIR"]
    for name, text in {
        ".config/pip/pip.conf": "[global]\nno-deps = true\n[install]\nprefix = /foreign\n",
        ".config/dpkg/buildflags.conf": "APPEND CFLAGS -include /foreign.h\n",
        ".pydistutils.cfg": f"[build_ext]\nrpath = {FOREIGN}\n",
        "bin/gcc": "#!/bin/sh\nexit 1\n",
        "python/setuptools.py": "raise ImportError('the user's')\n",
    }.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    (home / "bin/gcc").chmod(0o755)
    return {
        **index,
        "HOME": str(home),
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(home / "python"),
        "CFLAGS": "-include /foreign.h",
        "LDFLAGS": f"-Wl,-rpath,{FOREIGN}",
        "LD_RUN_PATH": FOREIGN,
        "CC": "/foreign/cc",
        "MAKEFLAGS": "--dry-run",
        "DEB_BUILD_OPTIONS": "nodoc nostrip",
        "DH_OPTIONS": "--no-act",
        "PIP_CACHE_DIR": str(home / "cache"),
        "PIP_CONSTRAINT": "/foreign/constraints.txt",
        "PIP_FIND_LINKS": str(home / "wheels"),
        "PIP_TARGET": str(home / "target"),
        "PIP_USER": "1",
    }


@pytest.fixture(scope="session")
def foreign_wheel(user: dict[str, str]) -> None:
    """A pyfuse3 of another Python, in the user's cache and in a folder of wheels."""
    home = user["HOME"]
    made = {**environment.clean(), "LDFLAGS": user["LDFLAGS"], "PIP_CACHE_DIR": f"{home}/cache"}
    del made["PIP_NO_CACHE_DIR"]
    command = [sys.executable, "-I", "-m", "pip", "wheel", "--no-deps", "-w", f"{home}/wheels"]
    result = subprocess.run(
        [*command, "pyfuse3"], env=made, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr


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
    """A folder like /usr/share, with manuals and completion."""
    require_programs("man", "scdoc")
    folder = tmp_path_factory.mktemp("share")
    assert all(path.is_file() for path in package("share", folder))
    return folder
