# SPDX-License-Identifier: MIT
"""The command `run`: a program that maps regions."""

import argparse
import sys

from barfs import preload
from barfs.cli.edge import release_streams, tell
from barfs.cli.exit_codes import EXIT_NOT_FOUND, EXIT_NOT_RUN
from barfs.cli.help import explain
from barfs.errors import UsageError
from barfs.preload.program import why_not_reached
from barfs.process.become import become, environment, find
from barfs.text.system_errors import reason


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [-h] COMMAND [ARGUMENT...]"
    parser.add_argument(
        "command",
        metavar="COMMAND",
        nargs=argparse.REMAINDER,
        help="a program and its arguments; behind --, its name may begin with -",
    )
    explain(
        parser,
        "barfs run pcimem ~/bar/bus/0000:01:00.0/bar0 0x1000 w",
        "barfs run memtool md -s ~/bar/bus/0000:01:00.0/bar0 0x1000+0x40",
        "barfs run python3 tool.py",
        details="A shared mmap of a region's file, which the kernel does not allow, becomes one of "
        "the region's windows, also in the programs that COMMAND starts. Needs a mount with "
        "-o map. Does not reach programs that are statically linked or setuid, or in Go. Exits as "
        "COMMAND does, with 126 if it cannot be run, and with 127 if it is not found.",
    )
    parser.set_defaults(run=_run)


def _run(choice: argparse.Namespace) -> int:
    words: list[str] = choice.command
    if words[:1] == ["--"]:
        words = words[1:]
    if not words:
        raise UsageError("run needs a COMMAND; see barfs run --help")
    variables = preload.environment(environment())
    try:
        program = find(words[0])
        if why := why_not_reached(program):
            tell(f"barfs: {program} {why}, and cannot map regions")
        sys.stdout.flush()
        release_streams()
        become(program, words, variables)
    except (FileNotFoundError, NotADirectoryError) as error:
        tell(f"barfs: {words[0]}: {reason(error)}")
        return EXIT_NOT_FOUND
    except (OSError, ValueError) as error:
        tell(f"barfs: {words[0]}: {reason(error)}")
        return EXIT_NOT_RUN
