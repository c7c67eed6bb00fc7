# SPDX-License-Identifier: MIT
"""The option that all runs of pytest here understand; `tests/campaign` explains it."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--campaign",
        choices=("short", "full"),
        default="short",
        help="how long tests/campaign works on each promise (scripts/soak: full)",
    )
