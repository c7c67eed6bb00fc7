# SPDX-License-Identifier: MIT
"""The command line: `main` runs it, `make_parser` describes it."""

from barfs.cli.main import main, make_parser

__all__ = ["main", "make_parser"]
