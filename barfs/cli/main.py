# SPDX-License-Identifier: MIT
"""The command `barfs`.

Exit codes: 0 done, 1 the operation failed, 2 the command line makes no sense. Errors are one line
on standard error.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Container, Sequence
from typing import Any, NoReturn

from barfs import __version__
from barfs.cli.edge import guarded
from barfs.cli.exit_codes import EXIT_USAGE
from barfs.cli.help import explain
from barfs.process.signals import ended_by_signals
from barfs.text import printable, take_all_text


class _Parser(argparse.ArgumentParser):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # What is a value though it begins with "-"; argparse itself knows -1, and no -0x1 or -1k.
        self._negative_number_matcher = re.compile("-[0-9]")

    def error(self, message: str) -> NoReturn:
        """One line, where argparse prints the whole usage above it."""
        self.exit(EXIT_USAGE, printable(f"{self.prog}: {message}; see {self.prog} --help") + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, whatever ends it."""
    for stream in (sys.stdout, sys.stderr):
        take_all_text(stream)
    with ended_by_signals():
        return guarded(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    # `mount -t fuse.barfs` and fstab call `barfs DEVICE MOUNTPOINT -o ...`.
    if len(words) >= 2 and words[0] not in _COMMANDS and not words[0].startswith("-"):
        words.insert(0, "mount")
    if words and words[0] in _COMMANDS:
        choice = _declare(_Parser(**_about(words[0])), words[0]).parse_args(words[1:])
    else:
        choice = make_parser(words).parse_args(words)
    return int(choice.run(choice))


def make_parser(names: Container[str] | None = None) -> argparse.ArgumentParser:
    """The command line; help, manuals and completion are made from it.

    All commands are in it; those of `names`, by default all, with their arguments.
    """
    parser = _Parser(
        prog="barfs",
        description="The BARs of PCI devices as files, through VFIO.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"barfs {__version__}")
    commands = parser.add_subparsers(prog=parser.prog, metavar="COMMAND", required=True)
    for name, (_module, summary) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, **_about(name))
        if names is None or name in names:
            _declare(command, name)
    explain(
        parser,
        "barfs demo ~/bar",
        "barfs list",
        "barfs mount 0000:01:00.0 ~/bar",
        "barfs umount ~/bar",
        details="barfs COMMAND --help says more of each command. barfs DEVICE MOUNTPOINT is "
        "barfs mount, as mount(8) and fstab call it.",
    )
    return parser


def _about(name: str) -> dict[str, Any]:
    """How argparse makes the parser of a command."""
    _module, summary = _COMMANDS[name]
    return {
        "prog": f"barfs {name}",
        "description": f"{summary[0].upper()}{summary[1:]}.",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def _declare(parser: argparse.ArgumentParser, name: str) -> argparse.ArgumentParser:
    """Add the arguments of a command. Only here its module is imported."""
    module = importlib.import_module(f"barfs.cli.{_COMMANDS[name][0]}")
    getattr(module, f"add_{name}")(parser)
    return parser


_COMMANDS = {
    "mount": ("mount", "mount devices and serve their regions as files"),
    "umount": ("mount", "unmount, and wait until the devices are given back"),
    "layout": ("layout", "show which parts of a device's regions are windows and gaps"),
    "demo": ("mount", "mount the built-in software device"),
    "serve": ("serve", "run a software device that vfio-user clients can use"),
    "md": ("registers", "display registers"),
    "mw": ("registers", "write registers"),
    "rmw": ("registers", "read a register, and write it with some bits changed"),
    "poll": ("registers", "read a register until some of its bits have a value"),
    "dump": ("dump", "save what a device's regions hold"),
    "diff": ("dump", "show the registers that differ between two dumps"),
    "trace": ("trace", "follow the accesses of a mount"),
    "list": ("devices", "show the machine's PCI devices and what stands between them and a mount"),
    "bind": ("devices", "give devices to a VFIO driver, and their nodes to a user"),
    "unbind": ("devices", "give devices back to the drivers that they had"),
    "doctor": ("devices", "check what a mount needs, and say what to do where it is missing"),
}
"""By name: the module of `barfs.cli` that has it, and what it does."""
