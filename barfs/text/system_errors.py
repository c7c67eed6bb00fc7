# SPDX-License-Identifier: MIT
"""Errors of the operating system in words, and the limits of the process that cause them.

Rule 1: only `reason` turns an error of the operating system into words. If a limit caused it, the
        text names the limit, its value, and the command that raises it.
Rule 2: the limit of open files is raised for barfs alone. Programs that barfs starts get the limit
        that barfs started with, because select(2) cannot use a descriptor above 1023.
"""

import contextlib
import errno
import os
import resource
from collections.abc import Callable, Sequence
from pathlib import Path

_SHELL = "/bin/sh"
_WITH_LIMIT = 'ulimit -S -n "$0" 2>/dev/null; exec "$@"'
_NO_THREAD = "can't start new thread"
"""The text of `threading` for EAGAIN of pthread_create (CPython, Modules/_threadmodule.c)."""

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")

_soft_before: int | None = None


def raise_open_files_limit() -> None:
    """Raise the soft limit of open files of this process to its hard limit."""
    global _soft_before
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        if soft != hard and _soft_before is None:
            _soft_before = soft


def with_limits_before(command: Sequence[str]) -> list[str]:
    """A command that runs `command` under the limits that this process started with."""
    if _soft_before is None or not os.access(_SHELL, os.X_OK):
        return list(command)
    return [_SHELL, "-c", _WITH_LIMIT, str(_soft_before), *command]


def reason(error: BaseException, *, mapping: bool = False) -> str:
    """The text of `error` without the name of a file, and the remedy if a limit caused it.

    EAGAIN is taken for that of a new process or thread, or, with `mapping`, of mmap(2).
    """
    if isinstance(error, MemoryError):
        return _memory()
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, RuntimeError) and _NO_THREAD in str(error):
        return _processes()
    if not isinstance(error, OSError):
        return str(error) or type(error).__name__
    explain = _EXPLAINED.get(error.errno or 0)
    if error.errno == errno.EAGAIN:
        explain = _locked if mapping else _processes
    if explain is None and error.errno == errno.ENOENT:
        explain = _missing(error.filename)
    text = error.strerror or str(error)
    return text if explain is None else explain() or text


def line(error: BaseException) -> str:
    """`reason` after the name of the file that the error is about."""
    name = error.filename if isinstance(error, OSError) else None
    text = os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else ""
    return f"{text}: {reason(error)}" if text else reason(error)


def why_no_descriptor_came() -> str:
    """The reason for which the kernel dropped a descriptor from a message (MSG_CTRUNC).

    The kernel does not report it (net/core/scm.c, scm_detach_fds), so this opens a file to see.
    """
    try:
        os.close(os.open("/", os.O_PATH | os.O_CLOEXEC))
    except OSError as error:
        return reason(error)
    # Another thread may have closed some since.
    limit = reason(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    return f"the system dropped the descriptor: because of a security policy, or {limit}"


def in_user_namespace() -> bool:
    """Whether this process is in a user namespace other than the machine's (user_namespaces(7))."""
    return _read(_PROC / "self/uid_map").split() != ["0", "0", str(2**32 - 1)]


def is_expected(error: BaseException) -> bool:
    """Whether the system can have caused `error`, rather than a bug in barfs."""
    return isinstance(error, (OSError, MemoryError, RecursionError, ImportError)) or (
        isinstance(error, RuntimeError) and _NO_THREAD in str(error)
    )


def _finite(kind: int) -> int | None:
    soft, _hard = resource.getrlimit(kind)
    return None if soft == resource.RLIM_INFINITY else soft


def _open_files() -> str:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"too many open files, {soft} are allowed; {_how_to_open_more(soft, hard)}"


def _how_to_open_more(soft: int, hard: int) -> str:
    if soft < hard:
        return f"raise the limit with ulimit -n {hard}"
    more = max(4096, 4 * hard)
    return (
        f"raise the limit, as root: prlimit --pid $$ --nofile={more} for this shell, or "
        f"LimitNOFILE={more} in a service's unit"
    )


def _descriptors_in_flight() -> str:
    # net/core/scm.c: a sender may have as many in flight as it may have open.
    return _open_files().replace("open files", "descriptors in flight", 1)


def _machine_files() -> str:
    text = _read(_PROC / "sys/fs/file-max")
    more = f": sysctl fs.file-max={2 * int(text)}" if text.isdecimal() else ""
    return f"the machine has too many open files; raise its limit, as root{more}"


def _memory() -> str:
    causes = []
    for kind, what, option in (
        (resource.RLIMIT_AS, "of addresses", "-v"),
        (resource.RLIMIT_DATA, "of data", "-d"),
    ):
        if (limit := _finite(kind)) is not None:
            causes.append(f"{limit >> 10} KiB {what} are allowed: ulimit {option} unlimited")
    most = _read(_PROC / "sys/vm/max_map_count")
    maps = len(_read(_PROC / "self/maps").split("\n"))
    if most.isdecimal() and maps >= int(most) - 1:
        causes.append(f"{most} mappings are allowed: as root, sysctl vm.max_map_count={2 * maps}")
    return "; ".join(["out of memory", *causes])


def _locked() -> str:
    # mmap(2): with mlockall, each mapping counts towards the limit of locked memory.
    limit = _finite(resource.RLIMIT_MEMLOCK)
    allowed = "" if limit is None else f", {limit >> 10} KiB are allowed"
    return f"too much locked memory{allowed}; raise the limit with ulimit -l unlimited"


def _processes() -> str:
    causes = []
    if (limit := _finite(resource.RLIMIT_NPROC)) is not None and os.getuid() != 0:
        causes.append(f"{limit} are allowed to this user: ulimit -u")
    if (limit := _finite(resource.RLIMIT_AS)) is not None:
        causes.append(f"{limit >> 10} KiB of addresses are allowed: ulimit -v unlimited")
    if (limit := _fullest_cgroup()) is not None:
        causes.append(f"{limit} are allowed to the control group: pids.max, TasksMax= in a unit")
    causes = causes or ["end some, or raise the machine's limit: sysctl kernel.threads-max"]
    return "; ".join(["no more processes and threads can be started", *causes])


def _fullest_cgroup() -> int | None:
    """The limit of tasks of this process's control group, or an ancestor's, if it is reached."""
    for row in _read(_PROC / "self/cgroup").split("\n"):
        _number, _, rest = row.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "pids" not in controllers.split(","):
            continue
        group = _CGROUP / ("pids" if controllers else "") / path.lstrip("/")
        for folder in (group, *group.parents):
            most, now = _read(folder / "pids.max"), _read(folder / "pids.current")
            if most.isdecimal() and now.isdecimal() and int(now) >= int(most):
                return int(most)
            if folder == _CGROUP:
                break
    return None


def _file_size() -> str:
    limit = _finite(resource.RLIMIT_FSIZE)
    if limit is None:
        return ""
    return (
        f"a file would become too large, {limit} bytes are allowed; raise the limit with ulimit "
        "-f unlimited"
    )


def _missing(name: object) -> Callable[[], str] | None:
    """The cause of a missing file, if it is a deleted current directory or an unmounted /proc."""
    text = os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else ""
    if not text.startswith("/") and not _has_directory():
        return lambda: "the current directory has been deleted; cd to another one"
    if text.startswith("/proc/") and not (_PROC / "self").exists():
        return lambda: "/proc is not mounted; as root: mount -t proc proc /proc"
    return None


def _has_directory() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode(errors="replace").rstrip("\n")
    except OSError:
        return ""


_EXPLAINED: dict[int, Callable[[], str]] = {
    errno.EMFILE: _open_files,
    errno.ENFILE: _machine_files,
    errno.ETOOMANYREFS: _descriptors_in_flight,
    errno.ENOMEM: _memory,
    errno.ENOSPC: lambda: "no space left on the device; free some",
    errno.EDQUOT: lambda: "the disk quota is used up; free some space",
    errno.EFBIG: _file_size,
}
