# SPDX-License-Identifier: MIT
"""The options that all runs of pytest here understand; `tests/campaign` explains them."""

import pytest


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
