# SPDX-License-Identifier: MIT
"""Fixtures of the tests without a mount."""

from pathlib import Path

import pytest

from tests.unit.fake_machine import FakeMachine


@pytest.fixture
def fake(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)
