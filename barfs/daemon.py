# SPDX-License-Identifier: MIT
"""Going into the background, and where the log goes.

Rule 1: the command returns 0 only once its daemon is ready, and otherwise with the daemon's own
        exit code, after the daemon's own message.
Rule 2: the daemon keeps no descriptor of its caller, so that pipes on the command end with it.
Rule 3: log lines never vanish: to standard error in the foreground, to syslog (which journald
        reads) in the background, to a file where there is no syslog.
"""

import contextlib
import logging
import logging.handlers
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from barfs.errors import BarfsError

_SYSLOG = Path("/dev/log")
_READY = b"1"


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send the log to standard error, a line a message."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("barfs: %(levelname)s: %(message)s"))
    _install(handler, level)


def _install(handler: logging.Handler, level: int) -> None:
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)


def _log_folders() -> Iterator[Path]:
    """Where a log file may stand, the best place first; a user need not have a home."""
    if os.geteuid() == 0:
        yield Path("/var/log")
    elif state := os.environ.get("XDG_STATE_HOME"):
        yield Path(state)
    else:
        with contextlib.suppress(RuntimeError):
            yield Path.home() / ".local/state"
    yield Path(tempfile.gettempdir()) / f"barfs-{os.geteuid()}"


def _open_log(folder: Path) -> logging.Handler:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise PermissionError(f"{folder} is another user's")
    return logging.FileHandler(folder / "barfs.log")


def _background_handler() -> logging.Handler:
    """Raises BarfsError where there is neither a syslog nor a place for a file."""
    handler: logging.Handler
    if _SYSLOG.exists():
        with contextlib.suppress(OSError):
            handler = logging.handlers.SysLogHandler(str(_SYSLOG))
            handler.setFormatter(logging.Formatter("barfs[%(process)d]: %(message)s"))
            return handler
    folders = list(_log_folders())
    for folder in folders:
        with contextlib.suppress(OSError):
            handler = _open_log(folder)
            handler.setFormatter(
                logging.Formatter("%(asctime)s barfs[%(process)d]: %(levelname)s: %(message)s")
            )
            return handler
    raise BarfsError(
        f"no log can be written in {' or '.join(map(str, folders))}; "
        "set XDG_STATE_HOME to a directory of yours, or stay in the foreground with -f"
    )


def _inherited() -> list[int]:
    """The descriptors that the caller left open, besides the standard streams."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the directory's own is gone again
            os.fstat(fd)
            if fd > 2:
                found.append(fd)
    return found


def run_in_background(run: Callable[[Callable[[], None]], int], level: int = logging.INFO) -> int:
    """Call `run(ready)` in a child process of its own session.

    Returns 0 in the caller once the child has called `ready`, or the child's exit code if it ended
    before. The child never returns. Raises BarfsError where the log has no place.
    """
    inherited = _inherited()
    handler = _background_handler()
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        for fd in (reading, *inherited):
            os.close(fd)
        os._exit(_run_child(run, writing, handler, level))
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as pipe:
            if pipe.read(1) == _READY:
                return 0
    except KeyboardInterrupt:  # which its own session keeps from the child
        os.kill(child, signal.SIGTERM)
        raise
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run_child(
    run: Callable[[Callable[[], None]], int], writing: int, handler: logging.Handler, level: int
) -> int:
    os.setsid()
    os.chdir("/")

    def ready() -> None:
        _install(handler, level)
        sys.stdout.flush()
        sys.stderr.flush()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.close(null)
        os.write(writing, _READY)
        os.close(writing)

    try:
        return run(ready)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        logging.getLogger(__name__).exception("barfs ended")
        return 1
