# SPDX-License-Identifier: MIT
"""No test leaves anything on the machine: no mount, no process, no socket."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.leftovers import assert_nothing_left


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    if "tmp_path" not in request.fixturenames:
        yield
        return
    folder: Path = request.getfixturevalue("tmp_path")
    yield
    assert_nothing_left(folder)


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """A directory with nothing but the command `barfs` in it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "barfs").write_text(f'#!/bin/sh\nexec {sys.executable} -m barfs "$@"\n')
    (folder / "barfs").chmod(0o755)
    return folder
