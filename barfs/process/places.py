# SPDX-License-Identifier: MIT
"""Directories in which a process can write its log, its socket, its mount point.

Rule 1: barfs tries a directory instead of guessing from the user: root in a user namespace may
        write neither /var/log nor /run, and a user may have no home.
Rule 2: in a directory that other users can write, barfs makes new, random names and opens no
        existing one.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from barfs.errors import BarfsError


def runtime_directory() -> Path | None:
    """The first writable directory for sockets of this user: /run or XDG_RUNTIME_DIR."""
    folders = [Path("/run")] if os.geteuid() == 0 else []
    found = (folder for folder in (*folders, *_named("XDG_RUNTIME_DIR")) if _is_writable(folder))
    return next(found, None)


def log_folders() -> Iterator[Path]:
    """Directories for this user's log, the best first; any may be absent or another user's."""
    if os.geteuid() == 0:
        yield Path("/var/log")
    yield from _named("XDG_STATE_HOME")
    try:
        home = Path.home()
    except RuntimeError:  # HOME is unset, and the user has no passwd entry
        home = Path()
    if home.is_absolute():
        yield home / ".local/state"
    yield from _named("XDG_RUNTIME_DIR")


def new_directory(prefix: str, *, first: Path | None = None) -> Path:
    """Make a directory with a new name that only this user can enter, in `first` if possible.

    Raises BarfsError.
    """
    preferred = [] if first is None else [first]
    tried = list(dict.fromkeys((*preferred, *_temporary_folders())))
    for folder in tried:
        try:
            return Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
        except OSError:
            continue
    raise BarfsError(
        f"cannot make a directory in {', '.join(map(str, tried))}; set TMPDIR to one that you can "
        "write"
    )


@contextlib.contextmanager
def passing_directory(prefix: str) -> Iterator[Path]:
    """`new_directory`, removed at the end if it is empty. Raises BarfsError."""
    directory = new_directory(prefix)
    try:
        yield directory
    finally:
        # Not recursively: it may be the mount point of a file system that is still there.
        with contextlib.suppress(OSError):
            directory.rmdir()


def _temporary_folders() -> Iterator[Path]:
    for name in ("TMPDIR", "TEMP", "TMP"):
        yield from _named(name)
    yield from map(Path, ("/tmp", "/var/tmp"))
    yield from _named("XDG_RUNTIME_DIR")
    yield from map(Path, ("/dev/shm", "/run"))


def _named(variable: str) -> list[Path]:
    """The directory in a variable; a relative path is ignored (XDG Base Directory)."""
    path = Path(os.environ.get(variable, ""))
    return [path] if path.is_absolute() else []


def _is_writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK, effective_ids=True)
