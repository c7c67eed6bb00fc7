# SPDX-License-Identifier: MIT
"""The parts of `--help` besides the arguments. The manuals are made from the same parsers.

Rule 1: the description of a parser is whole sentences, and its epilog is examples, one command line
        each. The manuals rely on that.
"""

import argparse
import textwrap

EXAMPLES = "examples:"
_WIDTH = 78


def explain(parser: argparse.ArgumentParser, *examples: str, details: str = "") -> None:
    """Give a command its examples, and more sentences after its summary."""
    if details:
        parser.description = f"{parser.description}\n\n{textwrap.fill(details, _WIDTH)}"
    parser.epilog = "\n".join([EXAMPLES, *(f"  {example}" for example in examples)])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `-o`, and the table of mount options."""
    from barfs.cli.mount_options import OPTIONS

    parser.add_argument(
        "-o",
        dest="options",
        metavar="OPTIONS",
        action="append",
        default=[],
        help="mount options, separated by commas",
    )
    lines = []
    for option in OPTIONS:
        text = textwrap.wrap(option.text, _WIDTH - 26)
        fits = len(option.usage) <= 21
        lines.append(f"{option.usage:<22}{text.pop(0)}" if fits else option.usage)
        lines += [" " * 22 + line for line in text]
    parser.add_argument_group("options for -o", "\n".join(lines))
