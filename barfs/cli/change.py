# SPDX-License-Identifier: MIT
"""The commands that change a live mount: `add`, `remove`."""

import argparse
import os
import sys
from pathlib import Path

from barfs.cli.edge import tell
from barfs.cli.help import explain
from barfs.fuse.control import Request, ask
from barfs.opening import DeviceName
from barfs.text import printable_lines


def _add_arguments(parser: argparse.ArgumentParser, devices: str) -> None:
    parser.add_argument(
        "mountpoint", metavar="MOUNTPOINT", type=Path, help="where barfs is mounted"
    )
    parser.add_argument("devices", metavar="DEVICE", nargs="+", help=devices)


def add_add(parser: argparse.ArgumentParser) -> None:
    _add_arguments(parser, "as for barfs mount; it is all of them or none")
    explain(
        parser,
        "barfs add /mnt/bar 0000:02:00.0",
        "barfs add ~/bar vfio-user:/run/device.sock,bdf=ffff:01:00.0",
        details="Opens devices as the mount did when it started, with its options, and prints "
        "their directories. The process of the mount opens them, so it is the one that needs the "
        "permission. For the user who mounted, and root.",
    )
    parser.set_defaults(run=_change, command="add")


def add_remove(parser: argparse.ArgumentParser) -> None:
    _add_arguments(
        parser, "address in the mount, or name as for barfs mount; it is all of them or none"
    )
    explain(
        parser,
        "barfs remove /mnt/bar 0000:02:00.0",
        "barfs remove ~/bar vfio-user:/run/device.sock",
        details="Closes devices, also when their files are open, as the mount does when the kernel "
        "reclaims one: accesses under way finish, then open files get ENODEV. Returns when the "
        "devices are released. For the user who mounted, and root.",
    )
    parser.set_defaults(run=_change, command="remove")


def _change(choice: argparse.Namespace) -> int:
    names = [_in_full(DeviceName.parse(text)) for text in choice.devices]
    mountpoint = Path(os.path.realpath(choice.mountpoint))
    outcome = ask(mountpoint, Request(choice.command, names))
    if outcome.code:
        tell(f"barfs: {outcome.text}")
    else:
        sys.stdout.write(printable_lines(outcome.text))
    return outcome.code


def _in_full(name: DeviceName) -> str:
    """The name for a process with another working directory."""
    token = f",vf_token={name.token}" if name.token is not None else ""
    return f"{name.shown}{token}"
