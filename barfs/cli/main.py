# SPDX-License-Identifier: MIT
"""The command `barfs`: parse the command line and run one of its commands.

Rule 1: exit code 0 is success, 1 a failed operation, 2 a bad command line. An error is one line on
        standard error.
Rule 2: only the module of the command that runs is imported; help of all commands needs none.
"""

import argparse
import importlib
import sys
from collections.abc import Container, Sequence
from typing import Any

from barfs import __version__
from barfs.cli.edge import guarded
from barfs.cli.help import explain
from barfs.cli.parser import Parser
from barfs.process.signals import ended_by_signals
from barfs.text import take_all_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit code, whatever ends it; never raises."""
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
        choice = _declare(Parser(**_about(words[0])), words[0]).parse_args(words[1:])
    else:
        choice = make_parser(words).parse_args(words)
    return int(choice.run(choice))


def make_parser(names: Container[str] | None = None) -> argparse.ArgumentParser:
    """The parser of the command line, from which help, manuals and completion are made.

    It has all commands, and the arguments of those in `names` (default: of all).
    """
    parser = Parser(
        prog="barfs",
        description="Access the BARs of PCI devices as files, through VFIO.",
    )
    parser.add_argument("--version", action="version", version=f"barfs {__version__}")
    commands = parser.add_subparsers(
        prog=parser.prog, title="commands", metavar="COMMAND", required=True
    )
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
        details="Run barfs COMMAND --help for more about a command. barfs DEVICE MOUNTPOINT, as "
        "mount(8) and fstab call it, is barfs mount.",
    )
    return parser


def _about(name: str) -> dict[str, Any]:
    """The arguments of a command's parser."""
    _module, summary = _COMMANDS[name]
    return {
        "prog": f"barfs {name}",
        "description": f"{summary[0].upper()}{summary[1:]}.",
    }


def _declare(parser: argparse.ArgumentParser, name: str) -> argparse.ArgumentParser:
    """Import the module of a command and let it add its arguments to the parser."""
    module = importlib.import_module(f"barfs.cli.{_COMMANDS[name][0]}")
    getattr(module, f"add_{name}")(parser)
    return parser


_COMMANDS = {
    "mount": ("mount", "mount devices and serve their regions as files"),
    "umount": ("mount", "unmount, and wait until the devices are released"),
    "add": ("change", "add devices to a mount"),
    "remove": ("change", "remove devices from a mount"),
    "layout": ("layout", "show the windows and gaps of a device's regions"),
    "demo": ("mount", "mount the built-in software device"),
    "serve": ("serve", "run a software device for vfio-user clients"),
    "md": ("registers", "display registers"),
    "mw": ("registers", "write registers"),
    "rmw": ("registers", "read a register, change some bits and write it"),
    "poll": ("registers", "read a register until some of its bits have a value"),
    "script": ("script", "run lines of md, mw, rmw, poll and sleep from a file"),
    "reg": ("reg", "show and write registers and fields by name"),
    "watch": ("watch", "print the registers that change, as they do"),
    "dump": ("dump", "save the contents of a device's regions"),
    "diff": ("dump", "show the registers that differ between two dumps"),
    "trace": ("trace", "follow the accesses to a mount"),
    "run": ("run", "run a program that maps regions into its memory"),
    "list": ("devices", "list the PCI devices, and what keeps each from being mounted"),
    "bind": ("devices", "bind devices to a VFIO driver, and let a user open them"),
    "unbind": ("devices", "bind devices to their previous drivers again"),
    "doctor": ("devices", "check the requirements of a mount, and say how to meet them"),
}
"""Each command by name: its module in `barfs.cli`, and a summary."""
