# SPDX-License-Identifier: MIT
"""Whatever a test does, nothing of it stays on the machine."""

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import require, require_fuse, wait_until

from .namespace import NOBODY, barfs_as_nobody


def processes(word: str) -> list[str]:
    """The command lines of running processes in which `word` stands, without this one's."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # ended while we looked
        if word in line:
            found.append(line)
    return found


def assert_nothing_left(folder: Path) -> None:
    """No mount below `folder`, no process that has it in its command line, no socket in it."""
    wait_until(lambda: not processes(str(folder)), f"the end of {processes(str(folder))}")
    assert os.fsencode(folder) not in Path("/proc/self/mountinfo").read_bytes()
    assert not [path for path in folder.rglob("*") if path.is_socket()]


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    if "tmp_path" not in request.fixturenames:
        yield
        return
    folder: Path = request.getfixturevalue("tmp_path")
    yield
    assert_nothing_left(folder)


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that other users can reach."""
    with tempfile.TemporaryDirectory(prefix="barfs-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        assert_nothing_left(folder)


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """A directory with nothing but the command `barfs` in it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "barfs").write_text(f'#!/bin/sh\nexec {sys.executable} -m barfs "$@"\n')
    (folder / "barfs").chmod(0o755)
    return folder


@pytest.fixture
def _other_user() -> None:
    require_fuse()
    require("fuse", os.getuid() == 0, "only root can become another user")
    device = stat.S_IMODE(os.stat("/dev/fuse").st_mode)
    program = os.stat(shutil.which("fusermount3") or "/nonexistent").st_mode
    setuid = bool(program & stat.S_ISUID)
    require("fuse", device & 0o006 == 6 or setuid, "fusermount3 is not setuid root")
    result = barfs_as_nobody("--version")
    require("fuse", result.returncode == 0, f"uid {NOBODY} cannot run barfs: {result.stderr}")
