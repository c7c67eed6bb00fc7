# SPDX-License-Identifier: MIT
"""The options of every run of pytest here, and the fixtures that several tiers share."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import require, require_fuse
from tests.support.leftovers import assert_nothing_left
from tests.support.namespace import NOBODY, barfs_as_nobody

# No test asserts a speed, and hypothesis would: 200 ms an example.
settings.register_profile("barfs", deadline=None)
settings.load_profile("barfs")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--campaign",
        choices=("short", "full"),
        default="short",
        help="how long tests/campaign works on each promise (scripts/soak: full)",
    )
    parser.addoption(
        "--soak-minutes",
        type=int,
        default=30,
        help="how long the soak of a full campaign is (default 30)",
    )


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that other users can reach."""
    with tempfile.TemporaryDirectory(prefix="barfs-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        assert_nothing_left(folder)


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
