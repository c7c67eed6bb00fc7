# SPDX-License-Identifier: MIT
"""Directories that a process can write: for its log, its socket, its mount.

Rule 1: a place is tried, not guessed from who asks: root in a user namespace may write neither
        /var/log nor /run, a user may have no home.
Rule 2: in a directory that others can write, names are new and random, and what is there already is
        not opened.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from barfs.errors import BarfsError


def runtime_directory() -> Path | None:
    """Where this user's sockets belong, if there is such a place: /run, or XDG_RUNTIME_DIR."""
    folders = [Path("/run")] if os.geteuid() == 0 else []
    found = (folder for folder in (*folders, *_named("XDG_RUNTIME_DIR")) if _is_writable(folder))
    return next(found, None)


def log_folders() -> Iterator[Path]:
    """Where this user's log may be, the best place first; they may be missing, or another's."""
    if os.geteuid() == 0:
        yield Path("/var/log")
    yield from _named("XDG_STATE_HOME")
    try:
        home = Path.home()
    except RuntimeError:  # HOME is unset, and the user is in no list
        home = Path()
    if home.is_absolute():
        yield home / ".local/state"
    yield from _named("XDG_RUNTIME_DIR")


def new_directory(prefix: str) -> Path:
    """Make a directory of a new name that only this user can enter. Raises BarfsError."""
    tried = list(dict.fromkeys(_temporary_folders()))
    for folder in tried:
        try:
            return Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
        except OSError:
            continue
    raise BarfsError(
        f"no directory can be made in {', '.join(map(str, tried))}; set TMPDIR to one where you "
        "can write"
    )


def _temporary_folders() -> Iterator[Path]:
    for name in ("TMPDIR", "TEMP", "TMP"):
        yield from _named(name)
    yield from map(Path, ("/tmp", "/var/tmp"))
    yield from _named("XDG_RUNTIME_DIR")
    yield from map(Path, ("/dev/shm", "/run"))


def _named(variable: str) -> list[Path]:
    """The directory that a variable names; not by a relative path (XDG Base Directory)."""
    path = Path(os.environ.get(variable, ""))
    return [path] if path.is_absolute() else []


def _is_writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK, effective_ids=True)
