# SPDX-License-Identifier: MIT
"""The commands of a mount: `mount`, `umount`, `demo`."""

import argparse
import contextlib
import os
import select
from collections.abc import Callable
from pathlib import Path

from barfs.attached.mounts import MountError, MountInfo, device_number
from barfs.cli.edge import announce, exit_code
from barfs.cli.help import add_options, explain
from barfs.daemon.background import run_in_background
from barfs.daemon.logs import log_to_stderr
from barfs.daemon.sd_notify import ServiceManager
from barfs.errors import UsageError
from barfs.fuse.fusermount import GRACE, check_mountpoint, is_stopped, process_of, unmount
from barfs.host.holders import holders
from barfs.opening import DeviceName
from barfs.process.places import passing_directory
from barfs.process.signals import Held
from barfs.text.system_errors import raise_open_files_limit

_SOON = 1.0
"""Seconds in which a mount's process ends unless the file system lives on."""


def _add_foreground(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground")


def add_mount(parser: argparse.ArgumentParser) -> None:
    _add_foreground(parser)
    parser.add_argument(
        "devices",
        metavar="DEVICE",
        nargs="*",
        help="0000:01:00.0[,vf_token=UUID], 01:00.0, vfio-user:SOCKET[,bdf=BDF] or demo",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="every device of a VFIO driver, also those that appear later",
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path, help="an empty directory")
    add_options(parser)
    explain(
        parser,
        "barfs mount 0000:01:00.0 /mnt/bar",
        "barfs mount -f -o ro,width=8 01:00.0 02:00.0 ~/bar",
        "barfs mount vfio-user:/run/device.sock ~/bar",
        "barfs mount --all -o guard /mnt/bar",
        details="Returns once the mount answers; the mount then runs in the background. It opens "
        "its devices when it starts and holds them until it ends; the kernel resets them both "
        "times.",
    )
    parser.set_defaults(run=_mount)


def _mount(choice: argparse.Namespace, announce: Callable[[], None] = lambda: None) -> int:
    """A mount in the foreground calls `announce` when it answers."""
    # Imported here, not for umount: trio and pyfuse3 take longer to import than it takes to run.
    from barfs.cli.mount_options import parse_options
    from barfs.fuse import context_mount
    from barfs.fuse.hotplug import AllDevices
    from barfs.fuse.mount import Listener, Mount, NamedDevices

    log_to_stderr()
    raise_open_files_limit()
    manager = ServiceManager()
    options, mount_options = parse_options(choice.options)
    if choice.all == bool(choice.devices):
        raise UsageError("use barfs mount DEVICE... MOUNTPOINT or barfs mount --all MOUNTPOINT")
    names = [DeviceName.parse(text) for text in choice.devices]
    mountpoint = check_mountpoint(choice.mountpoint)
    context_mount.check(mount_options.contexts())

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


def add_umount(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "mountpoint", metavar="MOUNTPOINT", type=Path, help="where barfs is mounted"
    )
    explain(parser, "barfs umount ~/bar")
    parser.set_defaults(run=_umount)


def _umount(choice: argparse.Namespace) -> int:
    mountpoint = Path(os.path.realpath(choice.mountpoint))
    device = device_number(mountpoint)
    if device is None:
        raise MountError(f"{mountpoint} is not a barfs mount; mount -t fuse.barfs lists them")
    info = MountInfo.read(mountpoint)
    with contextlib.ExitStack() as stack:
        process = None
        pid = info.pid if info is not None else process_of(mountpoint)
        if pid is not None:
            with contextlib.suppress(OSError, OverflowError):
                process = os.pidfd_open(pid)
                stack.callback(os.close, process)
        try:
            unmount(mountpoint, lazy=info is None)
        except MountError:
            if device_number(mountpoint) == device:
                raise
            raise MountError(f"{mountpoint} is not a barfs mount any more") from None
        others = holders(device)
        # A mount of another process may have the number of one that has ended.
        if others and not (process is not None and _ends(process, _SOON)):
            raise MountError(
                f"{mountpoint} is unmounted, but the file system lives on and keeps its devices: "
                f"{'; '.join(others)}"
            )
        if pid is not None and process is not None and not _is_released(pid, process):
            hint = f", since it is stopped; resume it: kill -CONT {pid}" if is_stopped(pid) else ""
            raise MountError(
                f"{mountpoint} is unmounted, but process {pid} still holds the devices{hint}"
            )
    return 0


def _is_released(pid: int, process: int) -> bool:
    """Whether the process ends while an access may still run; a stopped one never does."""
    return _ends(process, _SOON) or (not is_stopped(pid) and _ends(process, GRACE + 1 - _SOON))


def _ends(process: int, timeout: float) -> bool:
    """Whether the process of a pidfd ends in time. It releases the devices when it ends."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def add_demo(parser: argparse.ArgumentParser) -> None:
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
    with Held() as hold, passing_directory("barfs-demo-") as directory:
        choice.mountpoint = directory
        message = f"{directory}/bus/ffff:00:00.0 - press ^C to end"
        with hold.released():
            return _mount(choice, lambda: announce(message))
