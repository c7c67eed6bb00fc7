# SPDX-License-Identifier: MIT
"""The parser of a command's arguments."""

import argparse
import os
import re
from typing import Any, NoReturn

from barfs.cli.exit_codes import EXIT_USAGE
from barfs.text import printable


class Parser(argparse.ArgumentParser):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # These are values, not options. By itself, argparse knows -1, but not -0x1 or -1k.
        self._negative_number_matcher = re.compile("-[0-9]")

    def error(self, message: str) -> NoReturn:
        """Exit with one line; argparse would print the whole usage above it."""
        self.exit(EXIT_USAGE, printable(f"{self.prog}: {message}; see {self.prog} --help") + "\n")

    def _get_formatter(self) -> argparse.HelpFormatter:
        # argparse makes one for each argument, and imports shutil to find the width.
        return argparse.RawDescriptionHelpFormatter(self.prog, width=_columns() - 2)


def _columns() -> int:
    """The width of the terminal, as shutil.get_terminal_size finds it."""
    try:
        columns = int(os.environ.get("COLUMNS", ""))
    except ValueError:
        columns = 0
    if columns <= 0:
        try:
            columns = os.get_terminal_size(1).columns
        except OSError:
            columns = 0
    return columns if columns > 0 else 80
