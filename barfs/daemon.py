# SPDX-License-Identifier: MIT
"""Going into the background, and where the log goes.

Rule 1: the command returns 0 only once its daemon is ready, and otherwise with the daemon's own
        exit code, after the daemon's own message.
Rule 2: the daemon keeps no descriptor of its caller, so that pipes on the command end with it.
Rule 3: log lines never vanish: to standard error in the foreground, to syslog (which journald
        reads) in the background, to a file where there is no syslog.
"""

import logging
import logging.handlers
import os
import sys
from collections.abc import Callable
from pathlib import Path

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


def _log_file() -> Path:
    if os.geteuid() == 0:
        return Path("/var/log/barfs.log")
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(state) / "barfs.log"


def _log_in_background(level: int) -> None:
    handler: logging.Handler
    if _SYSLOG.exists():
        handler = logging.handlers.SysLogHandler(str(_SYSLOG))
        handler.setFormatter(logging.Formatter("barfs[%(process)d]: %(message)s"))
    else:
        path = _log_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, delay=True)
        handler.setFormatter(
            logging.Formatter("%(asctime)s barfs[%(process)d]: %(levelname)s: %(message)s")
        )
    _install(handler, level)


def run_in_background(run: Callable[[Callable[[], None]], int], level: int = logging.INFO) -> int:
    """Call `run(ready)` in a child process of its own session.

    Returns 0 in the caller once the child has called `ready`, or the child's exit code if it ended
    before. The child never returns.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os._exit(_run_child(run, writing, level))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        if pipe.read(1) == _READY:
            return 0
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run_child(run: Callable[[Callable[[], None]], int], writing: int, level: int) -> int:
    os.setsid()
    os.chdir("/")

    def ready() -> None:
        _log_in_background(level)
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
