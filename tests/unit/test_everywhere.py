# SPDX-License-Identifier: MIT
"""scripts/test-everywhere: which lanes it runs, what it says of them. The lanes are stand-ins."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import DEADLINE

SCRIPTS = Path(__file__).parents[2] / "scripts"
STAND_INS = {
    "scripts/common": "venv=venv; repo=$PWD; base_packages=(); cache=$PWD/cache log=log\n"
    'need_packages() { :; }; need_venv() { :; }; as_root() { "$@"; }\n',
    "scripts/everywhere_lib/index.py": "",
    "venv/bin/python": "#!/bin/sh\n",
    "scripts/everywhere_lib/debian": '#!/bin/sh\ntar -tf "$3/source.tar" scripts/common\n'
    'echo "demo passed;" >"$2/$1.parts"; [ ! -e "$1.dies" ] || rm "$2/$1.parts"\n'
    '[ ! -e "$1.fails" ] && [ ! -e "$1.dies" ]\n',
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    text = (SCRIPTS / "test-everywhere").read_text()
    for name, content in {**STAND_INS, "scripts/test-everywhere": text}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    return tmp_path


def run(folder: Path, *lanes: str) -> tuple[int, list[str], str]:
    """Its exit status, the results it prints without their times, and its complaints."""
    command = ["scripts/test-everywhere", *lanes]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DEADLINE)
    lines = [line for line in result.stdout.splitlines() if not line.startswith("===")]
    words = [line.split() for line in lines]
    return result.returncode, [" ".join([*w[:2], *w[4:]]) for w in words], result.stderr


def test_all_lanes_run_and_the_last_lines_tell_of_them(folder: Path) -> None:
    expected = ["trixie passed demo passed;", "sid passed demo passed;"]
    assert run(folder) == (0, expected, "")
    assert (folder / "cache/roots/sid.log").read_text() == "scripts/common\n"


@pytest.mark.parametrize(
    ("how", "told"), [("fails", "demo passed;"), ("dies", "its root: scripts/common")]
)
def test_a_lane_behind_one_that_fails_runs_too(folder: Path, how: str, told: str) -> None:
    (folder / f"trixie.{how}").touch()
    expected = [f"trixie failed {told}", "sid passed demo passed;"]
    assert run(folder) == (1, expected, "")


def test_only_the_lanes_that_are_named_run(folder: Path) -> None:
    assert run(folder, "sid") == (0, ["sid passed demo passed;"], "")


def test_a_lane_that_is_not_known_is_refused_before_any_runs(folder: Path) -> None:
    told = "test-everywhere: a lane must be trixie or sid, not buster\n"
    assert run(folder, "sid", "buster") == (2, [], told)
    assert not (folder / "cache").exists()


def test_the_index_is_found_below_host(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    settings = {
        "HOME": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_CERT": f"{tmp_path}/ca.pem",
        "PIP_EXTRA_INDEX_URL": "file:///srv/one/simple\nhttps://index.invalid/simple",
    }
    command = [sys.executable, "-I", str(SCRIPTS / "everywhere_lib/index.py")]
    shown = subprocess.run(command, env=settings, capture_output=True, text=True, check=True).stdout
    lines = shown.splitlines()
    assert [line for line in lines if line.startswith("bind ")] == [
        f"bind {place}" for place in sorted([f"{tmp_path}/ca.pem", "/srv/one"])
    ]
    assert f"PIP_CERT=/host{tmp_path}/ca.pem" in lines
    index = "PIP_EXTRA_INDEX_URL=file:///host/srv/one/simple https://index.invalid/simple"
    assert index in lines
