# SPDX-License-Identifier: MIT
"""Mounting and unmounting through `fusermount3`.

Rule 1: the helper makes every mount, root's included: only it may mount for a user, and it stays
        to unmount if this process is killed (`auto_unmount`). It only stays where root mounts with
        an SELinux context, which it does not know (`context_mount`).
Rule 2: the options that protect other users are always on: `default_permissions`, `nosuid`,
        `nodev`, `noexec`.

The helper speaks libfuse's protocol (`lib/mount.c`): it sends the descriptor of `/dev/fuse` over
the socket that `_FUSE_COMMFD` names.
"""

import array
import contextlib
import errno
import logging
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from barfs.attached.mounts import ANSWER_TIME, MountError, barfs_mounts, device_number
from barfs.engine import Owner, keep_from_children
from barfs.fuse import context_mount
from barfs.host import apparmor
from barfs.host.programs import find_program
from barfs.host.sysfs import Machine, read_bytes, read_text
from barfs.text import shell_word
from barfs.text.system_errors import (
    in_user_namespace,
    reason,
    why_no_descriptor_came,
    with_limits_before,
)

ALWAYS = ("default_permissions", "nosuid", "nodev", "noexec", "auto_unmount", "subtype=barfs")

GRACE = 5.0
"""Seconds that a running access gets to finish when the mount ends."""


_LONGEST_MESSAGE = 1 << 16


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MountOptions:
    """`uid` and `gid` None mean the caller's; `umask` None means 0077, for region files alone.

    `map`: hand out the windows to processes that map them. `reconnect`: a vfio-user device whose
    server has ended comes back with the next server. The contexts are SELinux's, for the kernel.
    """

    allow_other: bool = False
    read_only: bool = False
    uid: int | None = None
    gid: int | None = None
    umask: int | None = None
    reconnect: bool = False
    map: bool = False
    context: str | None = None
    fscontext: str | None = None
    defcontext: str | None = None
    rootcontext: str | None = None

    def fuse_options(self) -> list[str]:
        flags = {"allow_other": self.allow_other, "ro": self.read_only}
        return [name for name, chosen in flags.items() if chosen]

    def contexts(self) -> dict[str, str]:
        given = {name: getattr(self, name) for name in context_mount.CONTEXTS}
        return {name: value for name, value in given.items() if value is not None}


def fusermount() -> str:
    """The path of the helper. Raises MountError if it is not installed."""
    program = find_program("fusermount3")
    if program is None:
        raise MountError("fusermount3 is not installed; apt install fuse3")
    return program


def check_mountpoint(mountpoint: Path) -> Path:
    """The absolute path of a directory, checked to be a usable mount point.

    Unmounts a barfs mount whose process died. Raises MountError, also if the helper is missing, so
    that no device is opened in vain.
    """
    fusermount()
    mountpoint = Path(os.path.abspath(mountpoint))
    if mountpoint.resolve() in barfs_mounts():
        if not _is_dead(mountpoint):
            raise MountError(
                f"{mountpoint} is already a barfs mount; run: barfs umount {shell_word(mountpoint)}"
            )
        unmount(mountpoint, lazy=True)
        return check_mountpoint(mountpoint)
    try:
        status = mountpoint.stat()
    except FileNotFoundError:
        raise MountError(
            f"{mountpoint} does not exist; create it: mkdir -p {shell_word(mountpoint)}"
        ) from None
    except OSError as error:
        raise MountError(f"{mountpoint}: {reason(error)}") from error
    if not mountpoint.is_dir():
        raise MountError(f"{mountpoint} is not a directory")
    if os.getuid() not in (0, status.st_uid):
        raise MountError(f"{mountpoint} belongs to another user; choose a directory of your own")
    try:
        if any(mountpoint.iterdir()):
            raise MountError(f"{mountpoint} is not empty; choose an empty directory")
    except OSError as error:
        raise MountError(f"{mountpoint}: {reason(error)}") from error
    return mountpoint.resolve()


def _is_dead(mountpoint: Path) -> bool:
    """Whether a mount's process is gone. A process that merely does not answer is alive."""
    errors: list[int | None] = []

    def ask() -> None:
        try:
            # The kernel may answer a stat(2) from its cache long after the process has died.
            os.statvfs(mountpoint)
        except OSError as error:
            errors.append(error.errno)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_TIME)
    return errors == [errno.ENOTCONN]


class FuseMount:
    """A mount and its `/dev/fuse` descriptor, `fd`.

    While this object is open, the helper waits to unmount if this process dies. A forked child
    holds none of its descriptors, and `close` does nothing there.
    """

    def __init__(
        self,
        mountpoint: Path,
        *,
        source: str,
        options: Iterable[str] = (),
        contexts: Mapping[str, str] | None = None,
    ) -> None:
        self.mountpoint = mountpoint
        context_mount.check(contexts or {})
        words = (*ALWAYS, *options)
        fd = context_mount.mount(mountpoint, source, words, contexts) if contexts else None
        escaped = re.sub(r"([\\,])", r"\\\1", source)
        # A helper without --auto-unmount (Debian 12) exits at once. A process that is killed then
        # leaves its mount, which the next one on the same directory removes.
        how = ["-o", ",".join((*words, f"fsname={escaped}"))] if fd is None else ["--auto-unmount"]
        self._socket, theirs = socket.socketpair()
        # A pipe needs no disk space and, non-blocking, cannot stall the helper. It stays open as
        # long as the helper runs, or SIGPIPE would end that.
        self._messages, writing = os.pipe()
        os.set_blocking(writing, False)
        try:
            with theirs, os.fdopen(writing, "wb") as messages:
                self._helper = subprocess.Popen(
                    with_limits_before([fusermount(), *how, "--", str(mountpoint)]),
                    env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=messages,
                    stderr=messages,
                )
        except OSError as error:
            self._socket.close()
            os.close(self._messages)
            if fd is not None:
                os.close(fd)
            raise MountError(f"cannot mount on {mountpoint}: {reason(error)}") from error
        self.fd = self._receive_fd() if fd is None else fd
        self._owner = Owner()
        keep_from_children(self)
        self._number = device_number(mountpoint)

    def close(self) -> None:
        """End the mount unless it has already ended, and dismiss the helper.

        Requests without an answer fail.
        """
        if not self._owner.is_here:
            return
        # `umount -f` of a mount in use ends its connection, but leaves it in the tree. No other
        # file system gets its device number before the descriptor is closed.
        mounted = self._number is not None and device_number(self.mountpoint) == self._number
        if mounted:
            mounted = not self._unmounted()
        fd, self.fd = self.fd, -1
        os.close(fd)
        if mounted:
            # No process could be started to unmount. The helper does when its socket is closed.
            self._socket.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._helper.wait(GRACE)
            mounted = device_number(self.mountpoint) == self._number
        # Killed, since otherwise it unmounts, and the mount point may be in use again.
        self._helper.kill()
        self._helper.wait()
        self._socket.close()
        os.close(self._messages)
        if mounted and not self._unmounted():
            place = self.mountpoint
            log.warning("%s is still mounted; run: barfs umount %s", place, shell_word(place))

    def _unmounted(self) -> bool:
        """Unmount; returns False if the system lacks the resources."""
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
        """The descriptor that the helper sends. Raises MountError if it sends none."""
        fds = array.array("i")
        _data, ancillary, flags, _address = self._socket.recvmsg(
            1, socket.CMSG_SPACE(fds.itemsize), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: fds.itemsize])
                return fds[0]
        # Before the wait: a helper that has mounted unmounts once the socket is closed, and one
        # that has been waited for has no profile.
        self._socket.close()
        profile = apparmor.confining(self._helper.pid, Machine().proc)
        self._helper.wait()
        text = os.read(self._messages, _LONGEST_MESSAGE).decode(errors="replace")
        os.close(self._messages)
        problem = text.strip().replace("\n", "; ") or "no reason given"
        if flags & socket.MSG_CTRUNC:
            problem = why_no_descriptor_came()
        elif "Operation not permitted" in problem and in_user_namespace():
            problem += "; a user namespace needs a mount namespace of its own: unshare -Urm"
        elif "mount failed: Permission denied" in problem and profile is not None:
            problem += f"; {apparmor.why_refused(Machine(), profile, self.mountpoint)}"
        raise MountError(f"cannot mount on {self.mountpoint}: {problem}")


def process_of(mountpoint: Path, proc: Path = Path("/proc")) -> int | None:
    """The process of a mount that does not answer: the parent of its helper, if that is seen."""
    for folder in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name), reverse=True):
        program, *words = read_bytes(folder / "cmdline").split(b"\0")[:-1] or [b""]
        ours = words[-2:] == [b"--", os.fsencode(mountpoint)] and b"-u" not in words
        if ours and os.path.basename(program) == b"fusermount3":
            parent = _stat(folder)[1]
            # If not, it has adopted the helper of a process that has ended.
            return int(parent) if _has_fuse_open(proc / parent) else None
    return None


def _has_fuse_open(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(os.readlink(link) == "/dev/fuse" for link in (folder / "fd").iterdir())
    return False


def is_stopped(pid: int, proc: Path = Path("/proc")) -> bool:
    """Whether a signal or a debugger has stopped the process."""
    return _stat(proc / str(pid))[0] in ("T", "t")


def _stat(folder: Path) -> list[str]:
    """The state of a process and its parent, "-1" after its end (proc_pid_stat(5))."""
    # The name of its program may contain anything.
    words = read_text(folder / "stat").rpartition(")")[2].split()
    return words[:2] if len(words) > 1 else ["-1", "-1"]


def unmount_command(mountpoint: Path, *, lazy: bool = False) -> list[str]:
    """The command that unmounts; `lazy` also detaches a mount in use."""
    command = [fusermount(), "-u", *(["-z"] if lazy else []), "--", str(mountpoint)]
    return with_limits_before(command)


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmount. Raises MountError with the helper's reason."""
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
        hint = f"; fuser -vm {shell_word(mountpoint)} lists its users" if "busy" in problem else ""
        raise MountError(f"cannot unmount {mountpoint}: {problem}{hint}")
