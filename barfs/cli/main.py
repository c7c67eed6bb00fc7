# SPDX-License-Identifier: MIT
"""The command `barfs`.

Exit codes: 0 done, 1 the operation failed, 2 the command line makes no sense. Errors are one line
on standard error.
"""

import argparse
import contextlib
import importlib.metadata
import logging
import os
import re
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from barfs.attach import DeviceName
from barfs.cli.devices import add_bind, add_doctor, add_list, add_unbind, find_group
from barfs.cli.dump import add_diff, add_dump
from barfs.cli.edge import EXIT_USAGE, abandon_output, announce, exit_code, guarded
from barfs.cli.help import add_options, explain
from barfs.cli.mount_options import parse_options
from barfs.cli.registers import add_md, add_mw, add_poll, add_rmw
from barfs.cli.trace import add_trace
from barfs.daemon.background import run_in_background
from barfs.daemon.logs import log_to_stderr, tell
from barfs.daemon.sd_notify import ServiceManager
from barfs.dump.capture import source_of
from barfs.dump.file import Dump
from barfs.dump.replay import spec_of
from barfs.emulated.demo import demo_device
from barfs.emulated.description import load
from barfs.emulated.device import SoftwareDevice
from barfs.emulated.spec import DeviceSpec
from barfs.errors import UsageError
from barfs.fuse.fusermount import GRACE, check_mountpoint, unmount
from barfs.fuse.mounts import MountError, MountInfo, device_number
from barfs.host.holders import holders
from barfs.layout import layouts_to_json
from barfs.pci import region_index
from barfs.process.places import new_directory, runtime_directory
from barfs.process.signals import Held, ended_by_signals
from barfs.text import printable, printable_lines, shell_word, take_all_text
from barfs.text.system_errors import line, raise_open_files_limit, reason
from barfs.vfio_user.server import PRIVATE, SHARED
from barfs.vfio_user.server import serve as serve_device

log = logging.getLogger(__name__)


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


def _add_foreground(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground")


def _add_mount(parser: argparse.ArgumentParser) -> None:
    _add_foreground(parser)
    parser.add_argument(
        "devices",
        metavar="DEVICE",
        nargs="*",
        help="0000:01:00.0[,vf_token=UUID], 01:00.0, vfio-user:SOCKET[,bdf=BDF] or demo",
    )
    parser.add_argument(
        "--all", action="store_true", help="every device of a VFIO driver, also those to come"
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path, help="an empty directory")
    add_options(parser)
    explain(
        parser,
        "barfs mount 0000:01:00.0 /mnt/bar",
        "barfs mount -f -o ro,width=8 01:00.0 02:00.0 ~/bar",
        "barfs mount vfio-user:/run/device.sock ~/bar",
        "barfs mount --all -o guard /mnt/bar",
        details="Returns once the mount answers; the mount goes on in the background. Its devices "
        "are opened at its start and held until its end; the kernel resets them at both.",
    )
    parser.set_defaults(run=_mount)


def _mount(choice: argparse.Namespace, announce: Callable[[], None] = lambda: None) -> int:
    """`announce` is called when a mount in the foreground answers."""
    # Here, since trio and pyfuse3 take longer to import than the other commands to run.
    from barfs.fuse.hotplug import AllDevices
    from barfs.fuse.mount import Listener, Mount, NamedDevices

    raise_open_files_limit()
    manager = ServiceManager()
    options, mount_options = parse_options(choice.options)
    if choice.all == bool(choice.devices):
        raise UsageError("it is barfs mount DEVICE... MOUNTPOINT, or barfs mount --all MOUNTPOINT")
    names = [DeviceName.parse(text) for text in choice.devices]
    mountpoint = check_mountpoint(choice.mountpoint)

    def serve(listener: Listener) -> int:
        devices = AllDevices(options) if choice.all else NamedDevices(names, options)
        Mount(devices, mountpoint, mount_options, listener).serve()
        return 0

    def ready_in_foreground() -> None:
        announce()
        what = ", ".join(name.source for name in names) or "all devices of VFIO drivers"
        manager.ready(f"{what} on {mountpoint}")

    if choice.foreground:
        return serve(Listener(ready_in_foreground, manager.stopping))
    return run_in_background(lambda ready: exit_code(lambda: serve(Listener(ready))))


def _add_umount(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "mountpoint", metavar="MOUNTPOINT", type=Path, help="where barfs has mounted devices"
    )
    explain(parser, "barfs umount ~/bar")
    parser.set_defaults(run=_umount)


def _umount(choice: argparse.Namespace) -> int:
    mountpoint = Path(os.path.realpath(choice.mountpoint))
    device = device_number(mountpoint)
    if device is None:
        raise MountError(f"{mountpoint} is no mount of barfs; mount -t fuse.barfs lists them")
    info = MountInfo.read(mountpoint)
    with contextlib.ExitStack() as stack:
        process = None
        if info is not None:
            with contextlib.suppress(OSError, OverflowError):
                process = os.pidfd_open(info.pid)
                stack.callback(os.close, process)
        unmount(mountpoint, lazy=info is None)
        if others := holders(device):
            raise MountError(
                f"{mountpoint} is unmounted, but the mount lives on and keeps its devices: "
                f"{'; '.join(others)}"
            )
        if process is not None and not _ends(process, GRACE + 1):
            raise MountError(
                f"{mountpoint} is unmounted, but process {info and info.pid} still runs"
            )
    return 0


def _ends(process: int, timeout: float) -> bool:
    """Whether the process of a pidfd ends in time: only then the devices are given back."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def _add_layout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("device", metavar="DEVICE", help="as for barfs mount")
    parser.add_argument("region", metavar="REGION", nargs="?", help="bar0, rom, config, ...")
    parser.add_argument(
        "--json", action="store_true", help="a JSON list, integers plain and as hexadecimal text"
    )
    explain(
        parser,
        "barfs layout demo bar0",
        "barfs layout --json 0000:01:00.0",
        "barfs layout vfio-user:/run/device.sock",
        details="A device in a mount of barfs is not touched for it. Another one is opened, and "
        "the kernel may reset it.",
    )
    parser.set_defaults(run=_layout)


def _layout(choice: argparse.Namespace) -> int:
    name = DeviceName.parse(choice.device)
    if choice.region is not None:
        region_index(choice.region)
    with source_of(name, tell) as source:
        layouts = source.layouts
    if choice.region is not None:
        if choice.region not in layouts:
            raise UsageError(f"{name.source} has no {choice.region}; it has {', '.join(layouts)}")
        layouts = {choice.region: layouts[choice.region]}
    if choice.json:
        sys.stdout.write(layouts_to_json(layouts.values()))
    else:
        text = "\n".join(layout.to_text() for layout in layouts.values())
        sys.stdout.write(printable_lines(text))
    return 0


def _add_demo(parser: argparse.ArgumentParser) -> None:
    _add_foreground(parser)
    parser.add_argument(
        "mountpoint",
        metavar="MOUNTPOINT",
        nargs="?",
        type=Path,
        help="default: a new directory, served in the foreground until ^C",
    )
    add_options(parser)
    explain(parser, "barfs demo", "barfs demo ~/bar", "barfs demo -o width=8,mapping=off ~/bar")
    parser.set_defaults(run=_demo)


def _demo(choice: argparse.Namespace) -> int:
    choice.devices, choice.all = ["demo"], False
    if choice.mountpoint is not None:
        return _mount(choice)
    choice.foreground = True
    with Held() as hold:
        directory = choice.mountpoint = new_directory("barfs-demo-")
        message = f"{directory}/bus/ffff:00:00.0 - press ^C to end"
        try:
            with hold.released():
                return _mount(choice, lambda: announce(message))
        finally:
            # Not with what is in it: should the mount still be there, that is a device.
            with contextlib.suppress(OSError):
                directory.rmdir()


@contextlib.contextmanager
def _new_directory(prefix: str) -> Iterator[Path]:
    """A directory that is removed at the end if it is empty then."""
    directory = new_directory(prefix)
    try:
        yield directory
    finally:
        with contextlib.suppress(OSError):
            directory.rmdir()


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--socket", metavar="PATH", type=Path, help="where to listen")
    parser.add_argument(
        "--mode", type=_mode, help="of the socket, in octal (default 600; with --group 660)"
    )
    parser.add_argument("--group", metavar="GROUP", help="whose the socket is to be, too")
    parser.add_argument(
        "--log", metavar="FILE", help="a line for each access, - for standard output"
    )
    parser.add_argument(
        "description",
        metavar="DESCRIPTION.toml",
        nargs="?",
        type=Path,
        help="the device (default: the demo device)",
    )
    parser.add_argument(
        "--from", dest="dump", metavar="FILE", type=Path, help="a device as barfs dump saved it"
    )
    explain(
        parser,
        "barfs serve --socket /run/device.sock",
        "barfs serve --socket /run/device.sock --log - device.toml",
        "barfs serve --from card.dump",
        "barfs serve --socket /run/device.sock --group lab",
        details="Serves one client after the other until SIGTERM or ^C; the contents of the "
        "device stay meanwhile. Without --socket it listens on /run/barfs.sock as root, else on "
        "$XDG_RUNTIME_DIR/barfs.sock, or where it can write neither, in a new directory; it prints "
        "where.",
    )
    parser.set_defaults(run=_serve)


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise argparse.ArgumentTypeError(f"{text!r} must be octal, 0 to 777, like 660")
    return mode


def _serve(choice: argparse.Namespace) -> int:
    raise_open_files_limit()
    group = find_group(choice.group)
    mode = choice.mode
    if mode is None:
        mode = PRIVATE if group is None else SHARED
    spec = _spec(choice)
    with contextlib.ExitStack() as stack:
        socket = choice.socket
        if socket is None:
            folder = runtime_directory() or stack.enter_context(_new_directory("barfs-serve-"))
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
    """The device to serve; None: the demo device."""
    if choice.description is not None and choice.dump is not None:
        raise UsageError("it is barfs serve DESCRIPTION.toml, or barfs serve --from FILE")
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
    """Writes lines to `stream` until that fails, which is told once."""
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
            log.warning("no more accesses are written down: %s", line(error))

    return write


_COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "mount": (_add_mount, "mount devices and serve their regions as files"),
    "umount": (_add_umount, "unmount, and wait until the devices are given back"),
    "layout": (_add_layout, "show which parts of a device's regions are windows and gaps"),
    "demo": (_add_demo, "mount the built-in software device"),
    "serve": (_add_serve, "run a software device that vfio-user clients can use"),
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
