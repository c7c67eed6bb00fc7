# SPDX-License-Identifier: MIT
"""The command `serve`: a software device for vfio-user clients."""

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from barfs.cli.accounts import find_group
from barfs.cli.edge import abandon_output, announce
from barfs.cli.help import explain
from barfs.daemon.logs import log_to_stderr
from barfs.dump.file import Dump
from barfs.dump.replay import spec_of
from barfs.emulated.demo import demo_device
from barfs.emulated.description import load
from barfs.emulated.device import SoftwareDevice
from barfs.emulated.spec import DeviceSpec
from barfs.errors import UsageError
from barfs.process.places import passing_directory, runtime_directory
from barfs.text import shell_word
from barfs.text.system_errors import line, raise_open_files_limit, reason
from barfs.vfio_user.server import PRIVATE, SHARED
from barfs.vfio_user.server import serve as serve_device

log = logging.getLogger(__name__)


def add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--socket", metavar="PATH", type=Path, help="listen on this socket")
    parser.add_argument(
        "--mode", type=_mode, help="mode of the socket, in octal (default 600; with --group 660)"
    )
    parser.add_argument("--group", metavar="GROUP", help="let this group connect, too")
    parser.add_argument(
        "--log", metavar="FILE", help="append a line for each access; - is standard output"
    )
    parser.add_argument(
        "description",
        metavar="DESCRIPTION.toml",
        nargs="?",
        type=Path,
        help="description of the device (default: the demo device)",
    )
    parser.add_argument(
        "--from",
        dest="dump",
        metavar="FILE",
        type=Path,
        help="a device saved by barfs dump",
    )
    explain(
        parser,
        "barfs serve --socket /run/device.sock",
        "barfs serve --socket /run/device.sock --log - device.toml",
        "barfs serve --from card.dump",
        "barfs serve --socket /run/device.sock --group lab",
        details="Serves one client at a time until SIGTERM or ^C; the device keeps its contents "
        "between clients. Without --socket, listens on /run/barfs.sock (root only) or "
        "$XDG_RUNTIME_DIR/barfs.sock, or in a new directory if it cannot write there; it prints "
        "where.",
    )
    parser.set_defaults(run=_serve)


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise argparse.ArgumentTypeError(f"must be octal, 0 to 777, like 660, not {text!r}")
    return mode


def _serve(choice: argparse.Namespace) -> int:
    log_to_stderr()
    raise_open_files_limit()
    group = find_group(choice.group)
    mode = choice.mode
    if mode is None:
        mode = PRIVATE if group is None else SHARED
    spec = _spec(choice)
    with contextlib.ExitStack() as stack:
        socket = choice.socket
        if socket is None:
            folder = runtime_directory() or stack.enter_context(passing_directory("barfs-serve-"))
            socket = folder / "barfs.sock"
        record = None
        if choice.log == "-":
            record = _line_writer(sys.stdout)
        elif choice.log is not None:
            record = _line_writer(stack.enter_context(_open_log(choice.log)))
        device = demo_device(record) if spec is None else SoftwareDevice(spec, record)
        stack.callback(device.close)
        device_name = shell_word(f"vfio-user:{socket}")
        message = f"listening; mount it: barfs mount {device_name} MOUNTPOINT"
        serve_device(device, str(socket), lambda: announce(message), mode, group)
    return 0


def _spec(choice: argparse.Namespace) -> DeviceSpec | None:
    """The device to serve, None for the demo device."""
    if choice.description is not None and choice.dump is not None:
        raise UsageError("use barfs serve DESCRIPTION.toml or barfs serve --from FILE, not both")
    if choice.dump is not None:
        with Dump(choice.dump) as dump:
            return spec_of(dump)
    return None if choice.description is None else load(choice.description)


def _open_log(path: str) -> TextIO:
    try:
        return open(path, "a", buffering=1)
    except OSError as error:
        raise UsageError(f"{path}: {reason(error)}") from error


def _line_writer(stream: TextIO) -> Callable[[str], None]:
    """A function that writes lines to `stream`, and logs once if that fails."""
    works = True

    def write(text: str) -> None:
        nonlocal works
        if not works:
            return
        try:
            stream.write(f"{text}\n")
            stream.flush()
        except OSError as error:
            works = False
            if stream is sys.stdout:
                abandon_output()
            else:
                with contextlib.suppress(OSError):
                    stream.close()
            log.warning("accesses are no longer logged: %s", line(error))

    return write
