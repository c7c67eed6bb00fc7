# SPDX-License-Identifier: MIT
"""What is built does not depend on who builds it, and the package index is still found."""

import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from package_lib import environment

from tests.packages.conftest import ROOT, package, runpaths
from tests.support import DEADLINE, require

FILE = """
[global]
index-url = https://index.invalid/simple
find-links = /srv/wheels
no-cache-dir = false
quiet = 2
constraint = /srv/constraints.txt
[install]
extra-index-url = https://more.invalid/simple
    https://most.invalid/simple
user = true
[wheel]
cert = /srv/of-another-command.pem
"""


def test_what_leads_to_the_index_stays(tmp_path: Path) -> None:
    settings = tmp_path / "pip.conf"
    settings.write_text(FILE)
    (tmp_path / ".netrc").touch()
    found = {
        "HOME": str(tmp_path),
        "HTTPS_PROXY": "http://proxy.invalid",
        "PIP_CERT": "/srv/index.pem",
        "PIP_CONFIG_FILE": str(settings),
        "PIP_DEFAULT_TIMEOUT": "",
        "PIP_TARGET": "/srv/target",
        "SSL_CERT_DIR": "/srv/certificates",
    }
    made = environment.clean(found)
    ours = environment.clean({"HOME": str(tmp_path), "PIP_CONFIG_FILE": os.devnull})
    assert {name: made[name] for name in made.keys() - ours.keys()} == {
        "HTTPS_PROXY": "http://proxy.invalid",
        "PIP_CERT": "/srv/index.pem",
        "PIP_EXTRA_INDEX_URL": "https://more.invalid/simple\nhttps://most.invalid/simple",
        "PIP_INDEX_URL": "https://index.invalid/simple",
        "SSL_CERT_DIR": "/srv/certificates",
    }
    assert ours["NETRC"] == str(tmp_path / ".netrc")
    assert ours["HOME"] != str(tmp_path)
    assert environment.clean(made) == made | {"NETRC": made["NETRC"]}


@pytest.mark.parametrize(("no_index", "expected"), [("1", "/srv/wheels"), ("0", None), ("", None)])
def test_a_folder_of_wheels_counts_where_it_is_the_index(
    no_index: str, expected: str | None
) -> None:
    user = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_FIND_LINKS": "/srv/wheels",
        "PIP_NO_INDEX": no_index,
    }
    assert environment.clean(user).get("PIP_FIND_LINKS") == expected


def test_the_command_runs_in_it() -> None:
    script = ROOT / "scripts/package_lib/environment.py"
    user = {**os.environ, "LD_RUN_PATH": "/srv", "CFLAGS": "-g3", "PIP_CONFIG_FILE": os.devnull}
    result = subprocess.run(
        [sys.executable, "-I", script, "/usr/bin/env"], env=user, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")
    made = dict(line.split("=", 1) for line in result.stdout.splitlines())
    assert made == environment.clean({**os.environ, "PIP_CONFIG_FILE": os.devnull})


def test_a_wheel_has_nothing_of_the_users(user: dict[str, str], tmp_path: Path) -> None:
    """The Python that runs the tests may be one that links with a RUNPATH to itself."""
    (wheel,) = package("wheel", tmp_path / "out", user)
    zipfile.ZipFile(wheel).extractall(tmp_path / "tree")
    own = ["barfs/engine/_engine.abi3.so", "barfs/preload/barfs_map.so"]
    assert runpaths(tmp_path / "tree") == {name: [] for name in own}


def test_an_sdist_has_the_modes_that_git_knows(user: dict[str, str], tmp_path: Path) -> None:
    copy = tmp_path / "a copy"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
            (copy / name).chmod((ROOT / name).stat().st_mode & 0o700)
    (sdist,) = package("sdist", tmp_path / "out", user, root=copy)
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert {stat.filemode(one.mode) for one in members if one.isfile()} == {
        "?rw-r--r--",
        "?rwxr-xr-x",
    }
    assert {stat.filemode(one.mode) for one in members if one.isdir()} == {"?rwxr-xr-x"}
    assert {(one.uname, one.gname) for one in members} == {("root", "root")}
    assert stat.S_IMODE((copy / "README.md").stat().st_mode) == 0o600


def test_a_virtual_environment_of_another_python_is_made_anew(tmp_path: Path) -> None:
    """What is in it was built for that one."""
    script = 'set -eu; . "$0/scripts/common"; python=$1 identity=$2; make_venv'
    python = getattr(sys, "_base_executable", sys.executable)

    def make(identity: str) -> None:
        environment = {**os.environ, "BARFS_VENV": str(tmp_path / "venv")}
        command = ["bash", "-c", script, ROOT, python, identity]
        subprocess.run(command, env=environment, check=True, timeout=2 * DEADLINE)

    make("one")
    installed = tmp_path / "venv/lib/extension.so"
    installed.touch()
    make("one")
    assert installed.exists()
    make("another")
    assert not installed.exists()
    assert (tmp_path / "venv/bin/pip").exists()


def test_a_checkout_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    require("deb", os.geteuid() == 0, "a read-only mount needs root")
    script = """
        mount --bind "$0" "$1"
        mount -o remount,bind,ro "$1"
        BARFS_VENV=$2 bash -euc '. "$0/scripts/common"; need_venv ""' "$1"
    """
    copy = tmp_path / "copy"
    copy.mkdir()
    command = [
        "unshare",
        "--mount",
        "sh",
        "-euc",
        script,
        *map(str, (ROOT, copy, tmp_path / "venv")),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    told = f"barfs is built in {copy}, which cannot be written to; copy it"
    assert (result.returncode, result.stderr.splitlines()) == (1, [f"copy: {told}"])


def test_what_building_the_debian_package_takes_is_installed() -> None:
    """dpkg-buildpackage takes build-essential for granted."""
    script = '. "$0/scripts/common"; printf "%s\\n" "${base_packages[@]}" "${deb_packages[@]}"'
    listed = subprocess.run(
        ["bash", "-c", script, ROOT], capture_output=True, text=True, check=True
    )
    control = (ROOT / "scripts/debian/control").read_text()
    needed = control.partition("Build-Depends:")[2].partition("\nStandards-Version")[0]
    names = {line.split()[0].strip(",") for line in needed.splitlines() if line.strip()}
    names = names - {"debhelper-compat"} | {"build-essential", "debhelper"}
    assert names - set(listed.stdout.split()) == set()
