# SPDX-License-Identifier: MIT
"""Mounting and unmounting through `fusermount3`.

Rule 1: mounts are made by the helper for everybody, root included: it alone may mount for a user,
        and it stays behind to unmount if this process dies without a word (`auto_unmount`).
Rule 2: what protects others is always on: `default_permissions,nosuid,nodev,noexec`.

The helper's protocol is that of libfuse (`lib/mount.c`): `_FUSE_COMMFD` names a socket, on which
the descriptor of `/dev/fuse` comes back.
"""

import array
import errno
import logging
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from barfs.engine import Owner, keep_from_children
from barfs.fuse.mounts import ANSWER_TIME, MountError, barfs_mounts, device_number
from barfs.host.programs import find_program
from barfs.text import shell_word
from barfs.text.system_errors import (
    in_user_namespace,
    reason,
    why_no_descriptor_came,
    with_limits_before,
)

ALWAYS = ("default_permissions", "nosuid", "nodev", "noexec", "auto_unmount", "subtype=barfs")

GRACE = 5.0
"""Seconds that an access gets to come back when the mount ends."""


_LONGEST_MESSAGE = 1 << 16


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How files appear in the mount; `uid`, `gid`, `umask` None mean the caller's and 0600."""

    allow_other: bool = False
    read_only: bool = False
    uid: int | None = None
    gid: int | None = None
    umask: int | None = None

    def fuse_options(self) -> list[str]:
        flags = {"allow_other": self.allow_other, "ro": self.read_only}
        return [name for name, chosen in flags.items() if chosen]


def fusermount() -> str:
    """The path of the helper. Raises MountError where it is not installed."""
    program = find_program("fusermount3")
    if program is None:
        raise MountError("fusermount3 is not installed; apt install fuse3")
    return program


def check_mountpoint(mountpoint: Path) -> Path:
    """The absolute path of a directory that can be mounted on.

    A mount of barfs whose process died is cleared away first. Raises MountError, also where there
    is no helper to mount with: before a device is opened for nothing.
    """
    fusermount()
    mountpoint = Path(os.path.abspath(mountpoint))
    if mountpoint.resolve() in barfs_mounts():
        if not _is_dead(mountpoint):
            raise MountError(
                f"{mountpoint} is a mount of barfs already; barfs umount {shell_word(mountpoint)}"
            )
        unmount(mountpoint, lazy=True)
        return check_mountpoint(mountpoint)
    try:
        status = mountpoint.stat()
    except FileNotFoundError:
        raise MountError(
            f"{mountpoint} does not exist; make it: mkdir -p {shell_word(mountpoint)}"
        ) from None
    except OSError as error:
        raise MountError(f"{mountpoint}: {reason(error)}") from error
    if not mountpoint.is_dir():
        raise MountError(f"{mountpoint} is not a directory")
    if os.getuid() not in (0, status.st_uid):
        raise MountError(f"{mountpoint} does not belong to you; choose a directory of your own")
    try:
        if any(mountpoint.iterdir()):
            raise MountError(f"{mountpoint} is not empty; choose an empty directory")
    except OSError as error:
        raise MountError(f"{mountpoint}: {reason(error)}") from error
    return mountpoint.resolve()


def _is_dead(mountpoint: Path) -> bool:
    """Whether the process behind a mount is gone. One that only does not answer is alive."""
    errors: list[int | None] = []

    def ask() -> None:
        try:
            # Unlike a stat(2), which the kernel may answer by itself, long after the process's end.
            os.statvfs(mountpoint)
        except OSError as error:
            errors.append(error.errno)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_TIME)
    return errors == [errno.ENOTCONN]


class FuseMount:
    """A mount and its `/dev/fuse` descriptor, `fd`.

    While this object is open, the helper waits to unmount in case this process dies. A child of
    this process holds nothing of it, and its `close` does nothing.
    """

    def __init__(self, mountpoint: Path, *, source: str, options: Iterable[str] = ()) -> None:
        self.mountpoint = mountpoint
        escaped = re.sub(r"([\\,])", r"\\\1", source)
        arguments = ",".join((*ALWAYS, f"fsname={escaped}", *options))
        self._socket, theirs = socket.socketpair()
        # Needs no place, and cannot hold the helper up; open as long as the helper, which it would
        # end by SIGPIPE.
        self._messages, writing = os.pipe()
        os.set_blocking(writing, False)
        try:
            with theirs, os.fdopen(writing, "wb") as messages:
                self._helper = subprocess.Popen(
                    with_limits_before([fusermount(), "-o", arguments, "--", str(mountpoint)]),
                    env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=messages,
                    stderr=messages,
                )
        except OSError as error:
            self._socket.close()
            os.close(self._messages)
            raise MountError(f"cannot mount on {mountpoint}: {reason(error)}") from error
        self.fd = self._receive_fd()
        self._owner = Owner()
        keep_from_children(self)
        self._number = device_number(mountpoint)

    def close(self) -> None:
        """End the mount, if it has not ended by itself, and let the helper go.

        Whoever still waits for an answer gets an error.
        """
        if not self._owner.is_here:
            return
        # `umount -f` of a mount in use ends its connection, but leaves it in the tree. The number
        # of a file system is its own until the descriptor is closed.
        mounted = self._number is not None and device_number(self.mountpoint) == self._number
        if mounted:
            mounted = not self._unmounted()
        fd, self.fd = self.fd, -1
        os.close(fd)
        # Without unmounting: if the mount point is in use again, it would hit the wrong mount.
        self._helper.kill()
        self._helper.wait()
        self._socket.close()
        os.close(self._messages)
        # Where there was no process for it, that of the helper is free now.
        if mounted and not self._unmounted():
            place = self.mountpoint
            log.warning("%s is left behind; barfs umount %s", place, shell_word(place))

    def _unmounted(self) -> bool:
        """Unmount; returns False where the system has nothing left to do it with."""
        try:
            unmount(self.mountpoint, lazy=True)
        except MountError:
            return True
        except OSError:
            return False
        return True

    def descriptors(self) -> tuple[int, int]:
        return (self.fd, self._socket.fileno())

    def _receive_fd(self) -> int:
        """The descriptor that the helper sends. Raises MountError where none comes."""
        fds = array.array("i")
        _data, ancillary, flags, _address = self._socket.recvmsg(
            1, socket.CMSG_SPACE(fds.itemsize), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: fds.itemsize])
                return fds[0]
        # Before it is waited for: one that has mounted unmounts when the socket is closed.
        self._socket.close()
        self._helper.wait()
        text = os.read(self._messages, _LONGEST_MESSAGE).decode(errors="replace")
        os.close(self._messages)
        problem = text.strip().replace("\n", "; ") or "no reason given"
        if flags & socket.MSG_CTRUNC:
            problem = why_no_descriptor_came()
        elif "Operation not permitted" in problem and in_user_namespace():
            problem += "; in a user namespace, mount in a mount namespace of its own: unshare -Urm"
        raise MountError(f"cannot mount on {self.mountpoint}: {problem}")


def unmount_command(mountpoint: Path, *, lazy: bool = False) -> list[str]:
    """The command that unmounts; `lazy` detaches a mount that is in use."""
    command = [fusermount(), "-u", *(["-z"] if lazy else []), "--", str(mountpoint)]
    return with_limits_before(command)


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Take a mount down. Raises MountError with the helper's reason."""
    result = subprocess.run(
        unmount_command(mountpoint, lazy=lazy),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
    )
    if result.returncode:
        problem = result.stderr.strip().replace("\n", "; ")
        hint = (
            f"; fuser -vm {shell_word(mountpoint)} tells who uses it" if "busy" in problem else ""
        )
        raise MountError(f"cannot unmount {mountpoint}: {problem}{hint}")
