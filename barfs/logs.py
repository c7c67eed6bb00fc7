# SPDX-License-Identifier: MIT
"""Where log lines go: they never vanish.

Rule 1: in the foreground, to standard error; where that is the journal's, with the priorities that
        `journalctl -p` asks for (sd-daemon(3)).
Rule 2: in the background, to syslog (which journald reads); while there is none, to a file.
Rule 3: a syslog that goes away, comes back, does not listen or takes no long lines ends nothing and
        holds nothing up.
"""

import contextlib
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from logging.handlers import SysLogHandler
from pathlib import Path
from typing import Any

from barfs.errors import BarfsError
from barfs.text import printable, printable_lines

_SYSLOG = Path("/dev/log")
_LONGEST_WAIT = 1.0
_LONGEST = 8000
"""Bytes of one message: rsyslog cuts at 8 KiB, a full socket buffer refuses far longer ones."""


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send the log to standard error, a line a message."""
    handler = logging.StreamHandler()
    handler.setFormatter(_StderrFormatter("barfs: %(levelname)s: %(message)s"))
    install(handler, level)


def tell_error(message: object) -> None:
    """Why a command failed: in one line on standard error, or where the log has gone since."""
    root = logging.getLogger()
    if not any(getattr(handler, "stream", None) is sys.stderr for handler in root.handlers):
        root.error("%s", message)
        return
    prefix = _priority("ERROR") if _stderr_is_journal() else ""
    tell(f"{prefix}barfs: {message}")


def tell(line: object) -> None:
    """Say something in one line on standard error."""
    print(printable(line), file=sys.stderr)


def install(handler: logging.Handler, level: int) -> None:
    """Make `handler` the only one."""
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)


def background_handler() -> logging.Handler:
    """Raises BarfsError where there is neither a syslog nor a place for a file."""
    with contextlib.suppress(OSError):
        return _Syslog(_SYSLOG)
    return _file_handler()


def _priority(level: str, facility: int = 0) -> str:
    name = SysLogHandler.priority_map.get(level, "warning")
    return f"<{facility << 3 | SysLogHandler.priority_names[name]}>"


def _stderr_is_journal() -> bool:
    """As systemd.exec(5) says to find out: the variable is inherited further than the stream."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class _Formatter(logging.Formatter):
    """A message is one line, whatever is in the names that it holds."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return printable_lines(super().formatException(ei))


class _StderrFormatter(_Formatter):
    """Each line is an entry of the journal's, and begins with its priority."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not _stderr_is_journal():
            return text
        return "\n".join(_priority(record.levelname) + line for line in text.split("\n"))


class _Syslog(logging.Handler):
    """Datagrams to a syslog's socket, and a file for what it does not take.

    (The standard library's handler loses what it cannot send, waits for ever for a syslog that does
    not read, and ends each message with a NUL.)
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError where nobody listens."""
        super().__init__()
        self._path = path
        self._socket = self._connect()
        self.setFormatter(_Formatter("barfs[%(process)d]: %(message)s"))

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            connection.settimeout(_LONGEST_WAIT)
            connection.connect(str(self._path))
        except OSError:
            connection.close()
            raise
        return connection

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        message = _priority(record.levelname, SysLogHandler.LOG_DAEMON) + text
        data = message.encode(errors="replace")[:_LONGEST]
        try:
            self._send(data)
        except OSError:
            with contextlib.suppress(BarfsError):  # then there is no place left
                _write_to_file(record)

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except TimeoutError:
            raise
        except OSError:  # it has been started anew since
            fresh = self._connect()
            self._socket.close()
            self._socket = fresh
            self._socket.send(data)

    def close(self) -> None:
        self._socket.close()
        super().close()


def _write_to_file(record: logging.LogRecord) -> None:
    with contextlib.closing(_file_handler()) as handler:
        handler.handle(record)


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


def _file_handler() -> logging.Handler:
    folders = list(_log_folders())
    for folder in folders:
        with contextlib.suppress(OSError):
            handler = _open_log(folder)
            handler.setFormatter(
                _Formatter("%(asctime)s barfs[%(process)d]: %(levelname)s: %(message)s")
            )
            return handler
    raise BarfsError(
        f"no log can be written in {' or '.join(map(str, folders))}; "
        "set XDG_STATE_HOME to a directory of yours, or stay in the foreground with -f"
    )


def _open_log(folder: Path) -> logging.Handler:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise PermissionError(f"{folder} is another user's")
    return logging.FileHandler(folder / "barfs.log", encoding="utf-8")
