# SPDX-License-Identifier: MIT
"""The commands of barfs, and the examples in their help."""

import argparse

from barfs.cli import make_parser
from barfs.cli.help import EXAMPLES


def commands() -> dict[str, argparse.ArgumentParser]:
    parser = make_parser()
    (action,) = (one for one in parser._actions if isinstance(one.choices, dict))
    assert isinstance(action.choices, dict)
    return {"": parser, **action.choices}


COMMANDS = commands()


def examples(command: str) -> list[str]:
    head, *lines = (COMMANDS[command].epilog or "").splitlines()
    assert head == EXAMPLES
    return [line.strip() for line in lines]
