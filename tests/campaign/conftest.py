# SPDX-License-Identifier: MIT
"""The size of a campaign, and the place of its figures."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.campaign.rig import Client
from tests.support import require
from tests.support.compiler import STRICT
from tests.support.leftovers import assert_nothing_left

_FIGURES = pytest.StashKey[list[tuple[str, str]]]()


@dataclass(frozen=True)
class Campaign:
    full: bool
    soak_minutes: int
    figures: list[tuple[str, str]]

    def size(self, short: int, full: int) -> int:
        """The size of this run: `short` or `full`."""
        return full if self.full else short

    def report(self, promise: str, figure: str) -> None:
        """Print the promise and its `figure` at the end of the run."""
        self.figures.append((promise, figure))


@pytest.fixture
def campaign(request: pytest.FixtureRequest) -> Campaign:
    figures = request.config.stash.setdefault(_FIGURES, [])
    return Campaign(
        request.config.getoption("--campaign") == "full",
        request.config.getoption("--soak-minutes"),
        figures,
    )


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Client:
    require("cc", shutil.which("cc") is not None, "cc is not installed")
    program = tmp_path_factory.mktemp("client") / "client"
    source = Path(__file__).with_name("client.c")
    subprocess.run(["cc", *STRICT, "-O2", str(source), "-o", str(program)], check=True)
    return Client(program)


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert_nothing_left(tmp_path)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    figures = config.stash.get(_FIGURES, [])
    if not figures:
        return
    terminalreporter.section("campaign")
    widest = max(len(promise) for promise, _ in figures)
    for promise, figure in figures:
        terminalreporter.line(f"{promise:<{widest}}  {figure}")
