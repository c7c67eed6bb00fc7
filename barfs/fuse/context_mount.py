# SPDX-License-Identifier: MIT
"""Mounts with SELinux contexts, by mount(2): `fusermount3` knows none of these options.

Rule 1: for root alone. What the helper checks for a user is not checked here.
Rule 2: the options are those that the helper would make of the same words (`do_mount` in libfuse's
        `util/fusermount.c`).
"""

import errno
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from barfs.attached.mounts import MountError
from barfs.host.apparmor import selinux_enabled
from barfs.host.sysfs import Machine
from barfs.text.system_errors import reason

CONTEXTS = ("context", "fscontext", "defcontext", "rootcontext")

_FLAGS = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8}
"""`linux/mount.h`: MS_RDONLY and its neighbours."""

_DATA = ("default_permissions", "allow_other")


def check(contexts: Mapping[str, str]) -> None:
    """Raises MountError if this process may not mount with contexts."""
    if contexts and os.geteuid() != 0:
        raise MountError(
            f"only root can mount with {', '.join(contexts)}, which fusermount3 does not know; "
            "leave it out, or mount as root"
        )


def mount(
    mountpoint: Path, source: str, options: Iterable[str], contexts: Mapping[str, str]
) -> int:
    """Mount; returns the descriptor of `/dev/fuse`. Raises MountError."""
    words = set(options)
    flags = sum(flag for name, flag in _FLAGS.items() if name in words)
    fd = -1
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        kind = stat.S_IFMT(mountpoint.stat().st_mode)
        data = [
            f"fd={fd},rootmode={kind:o},user_id={os.getuid()},group_id={os.getgid()}",
            *(name for name in _DATA if name in words),
            # The kernel removes the quotes (selinux_sb_eat_lsm_opts).
            *(f'{name}="{value}"' for name, value in contexts.items()),
        ]
        _mount(source, mountpoint, flags, data=",".join(data))
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        why = f"; {_about(contexts)}" if error.errno == errno.EINVAL else ""
        raise MountError(f"cannot mount on {mountpoint}: {reason(error)}{why}") from error
    return fd


def _mount(source: str, target: Path, flags: int, *, data: str) -> None:
    import ctypes  # here: most mounts have no context

    libc = ctypes.CDLL(None, use_errno=True)
    texts = [os.fsencode(text) for text in (source, target, "fuse.barfs")]
    if libc.mount(*texts, ctypes.c_ulong(flags), os.fsencode(data)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _about(contexts: Mapping[str, str]) -> str:
    named = ", ".join(f"{name}=" for name in contexts)
    if selinux_enabled(Machine()):
        return f"the kernel's log says what SELinux finds wrong with {named}"
    return f"this kernel does not use SELinux: leave out {named}"
