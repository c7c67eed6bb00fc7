# SPDX-License-Identifier: MIT
"""The command `barfs`.

Exit codes: 0 done, 1 the operation failed, 2 the command line makes no sense. Errors are one line
on standard error.
"""

import argparse
import importlib.metadata
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from barfs.cli.devices import add_bind, add_doctor, add_list, add_unbind
from barfs.cli.dump import add_diff, add_dump
from barfs.cli.edge import guarded
from barfs.cli.exit_codes import EXIT_USAGE
from barfs.cli.help import explain
from barfs.cli.layout import add_layout
from barfs.cli.mount import add_demo, add_mount, add_umount
from barfs.cli.registers import add_md, add_mw, add_poll, add_rmw
from barfs.cli.serve import add_serve
from barfs.cli.trace import add_trace
from barfs.daemon.logs import log_to_stderr
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
    parser = make_parser()
    # `mount -t fuse.barfs` and fstab call `barfs DEVICE MOUNTPOINT -o ...`.
    if len(words) >= 2 and words[0] not in _COMMANDS and not words[0].startswith("-"):
        words.insert(0, "mount")
    log_to_stderr()
    choice = parser.parse_args(words)
    return int(choice.run(choice))


def make_parser() -> argparse.ArgumentParser:
    """The command line; help, manuals and completion are made from it."""
    parser = _Parser(
        prog="barfs",
        description="The BARs of PCI devices as files, through VFIO.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = importlib.metadata.version("barfs")
    parser.add_argument("--version", action="version", version=f"barfs {version}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (add, summary) in _COMMANDS.items():
        add(
            commands.add_parser(
                name,
                help=summary,
                description=summary[0].upper() + summary[1:] + ".",
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
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


_COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "mount": (add_mount, "mount devices and serve their regions as files"),
    "umount": (add_umount, "unmount, and wait until the devices are given back"),
    "layout": (add_layout, "show which parts of a device's regions are windows and gaps"),
    "demo": (add_demo, "mount the built-in software device"),
    "serve": (add_serve, "run a software device that vfio-user clients can use"),
    "md": (add_md, "display registers"),
    "mw": (add_mw, "write registers"),
    "rmw": (add_rmw, "read a register, and write it with some bits changed"),
    "poll": (add_poll, "read a register until some of its bits have a value"),
    "dump": (add_dump, "save what a device's regions hold"),
    "diff": (add_diff, "show the registers that differ between two dumps"),
    "trace": (add_trace, "follow the accesses of a mount"),
    "list": (add_list, "show the machine's PCI devices and what stands between them and a mount"),
    "bind": (add_bind, "give devices to a VFIO driver, and their nodes to a user"),
    "unbind": (add_unbind, "give devices back to the drivers that they had"),
    "doctor": (add_doctor, "check what a mount needs, and say what to do where it is missing"),
}
