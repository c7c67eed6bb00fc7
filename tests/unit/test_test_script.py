# SPDX-License-Identifier: MIT
"""scripts/test: which parts it runs, what it says of them, how it ends. The parts are stand-ins."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import DEADLINE, wait_until

SCRIPTS = Path(__file__).parents[2] / "scripts"
PARTS = ("here", "deb", "guest", "kernel", "cdev", "group", "noiommu")
STAND_INS = {
    "scripts/common": "venv=venv; repo=$PWD; base_packages=(); deb_packages=()\n"
    "need_packages() { :; }; need_venv() { :; }\n",
    "venv/bin/pytest": '#!/bin/sh\necho "pytest $*"; exec ./ending "pytest $1"\n',
    "scripts/vm-test": '#!/bin/sh\necho "vm-test $*"; exec ./ending "vm-test ${BARFS_VFIO-}"\n',
    "scripts/guest-kernel": "#!/bin/sh\necho /the/kernel; exec ./ending kernel\n",
    "ending": '#!/bin/sh\nstatus=$(sed -n "s|^$1: ||p" endings); exit "${status:-0}"\n',
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with scripts/test and stand-ins, whose exit codes are lines of `endings`."""
    (tmp_path / "endings").touch()
    for name, text in {**STAND_INS, "scripts/test": (SCRIPTS / "test").read_text()}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["scripts/test", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def results(output: str) -> dict[str, str]:
    """The last lines: how each part ended."""
    lines = output.splitlines()[-len(PARTS) :]
    found = [re.fullmatch(r"(\w+) +(\w+(?: \(\d+\))?) +\d+ s", line) for line in lines]
    assert all(found), output
    return {match[1]: match[2] for match in found if match}


def test_all_parts_run_and_the_last_lines_tell_of_them(folder: Path) -> None:
    result = run(folder)
    assert (result.returncode, result.stderr) == (0, "")
    assert results(result.stdout) == dict.fromkeys(PARTS, "passed")
    commands = [line for line in result.stdout.splitlines() if line[:6] in ("pytest", "vm-tes")]
    assert commands == [
        "pytest --ignore=tests/vm",
        "pytest -m deb tests/packages",
        "vm-test ",
        *["vm-test --kernel /the/kernel"] * 3,
    ]


def test_those_behind_one_that_fails_run_too(folder: Path) -> None:
    (folder / "endings").write_text("pytest -m: 2\nvm-test group: 5\n")
    result = run(folder)
    assert result.returncode == 1
    expected = dict.fromkeys(PARTS, "passed") | {"deb": "failed (2)", "group": "failed (5)"}
    assert results(result.stdout) == expected


def test_without_its_kernel_no_way_into_vfio_has_passed(folder: Path) -> None:
    (folder / "endings").write_text("kernel: 1\n")
    result = run(folder)
    assert result.returncode == 1
    failed = dict.fromkeys(("kernel", "cdev", "group", "noiommu"), "failed (1)")
    assert results(result.stdout) == dict.fromkeys(PARTS, "passed") | failed
    assert "--kernel" not in result.stdout


def test_with_arguments_there_is_one_pytest(folder: Path) -> None:
    (folder / "endings").write_text("pytest -k: 5\n")
    result = run(folder, "-k", "one or two")
    assert (result.returncode, result.stdout) == (5, "pytest -k one or two\n")


def test_an_interrupt_ends_all_of_it(folder: Path) -> None:
    """As from a terminal, to the whole group; pytest then ends with an exit code of its own."""
    (folder / "venv/bin/pytest").write_text(
        "#!/usr/bin/env python3\nimport pathlib, signal, sys\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(2))\n"
        "pathlib.Path('started').touch()\n"
        "signal.pause()\n"
    )
    with subprocess.Popen(
        ["scripts/test"], cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            wait_until((folder / "started").exists, "the first part")
            os.killpg(process.pid, signal.SIGINT)
            output, _ = process.communicate(timeout=DEADLINE)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert output == "\n=== here\n"
