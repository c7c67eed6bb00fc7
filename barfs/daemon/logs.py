# SPDX-License-Identifier: MIT
"""The destinations of log lines, so that none gets lost.

Rule 1: in the foreground, the log goes to standard error; if the journal reads that, each line has
        the priority that `journalctl -p` filters by (sd-daemon(3)).
Rule 2: in the background, it goes to syslog (which journald reads); without one, to a file.
Rule 3: a syslog that disappears, restarts, stops reading or refuses long lines neither ends nor
        delays the program.
"""

import contextlib
import logging
import os
import socket
import stat
import sys
from io import TextIOWrapper
from logging.handlers import SysLogHandler
from pathlib import Path
from typing import Any

from barfs.errors import BarfsError
from barfs.process.places import log_folders, new_directory
from barfs.text import printable, printable_lines

_SYSLOG = Path("/dev/log")
_NAME = "barfs.log"
_PREFIX = "barfs-log-"
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_LONGEST_WAIT = 1.0
_LONGEST = 8000
"""Bytes of one message: rsyslog cuts at 8 KiB; a socket buffer refuses far longer ones."""


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send the log to standard error, one line per message."""
    handler = logging.StreamHandler()
    handler.setFormatter(_StderrFormatter("barfs: %(levelname)s: %(message)s"))
    install(handler, level)


def tell_error(message: object, mistake: BaseException | None = None) -> None:
    """Report why a command failed: in one line on standard error, or in the log if it has moved.

    Only the log gets the traceback of a `mistake` in the program.
    """
    root = logging.getLogger()
    if any(isinstance(handler, (_Syslog, _File, _NewFile)) for handler in root.handlers):
        root.error("%s", message, exc_info=mistake)
        return
    prefix = _priority("ERROR") if _stderr_is_journal() else ""
    print(printable(f"{prefix}barfs: {message}"), file=sys.stderr)


def install(handler: logging.Handler, level: int) -> None:
    """Make `handler` the only log handler. Lines that it cannot write are dropped in silence."""
    logging.raiseExceptions = False
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)


def background_handler() -> logging.Handler:
    """A handler for syslog, or else for a file. Warns now if no file can be written either."""
    with contextlib.suppress(OSError):
        return _Syslog(_SYSLOG)
    handler = _file_handler()
    if isinstance(handler, _NewFile):
        try:
            new_directory(_PREFIX).rmdir()
        except (BarfsError, OSError) as error:
            logging.getLogger(__name__).warning(
                "no log can be written, so messages of this mount will be lost: set XDG_STATE_HOME "
                "to a directory of yours, or stay in the foreground with -f (%s)",
                error,
            )
    return handler


def _priority(level: str, facility: int = 0) -> str:
    name = SysLogHandler.priority_map.get(level, "warning")
    return f"<{facility << 3 | SysLogHandler.priority_names[name]}>"


def _stderr_is_journal() -> bool:
    """The check of systemd.exec(5): children inherit the variable even without the stream."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class _Formatter(logging.Formatter):
    """Keeps a message on one line, even with odd names in it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return printable_lines(super().formatException(ei))


class _StderrFormatter(_Formatter):
    """Begins each line with its priority if the journal reads it."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not _stderr_is_journal():
            return text
        return "\n".join(_priority(record.levelname) + line for line in text.split("\n"))


class _Syslog(logging.Handler):
    """Sends datagrams to syslog's socket, and writes to a file what it refuses.

    (The standard library's handler drops what it cannot send, waits indefinitely for a syslog that
    does not read, and ends each message with a NUL.)
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError if no syslog listens."""
        super().__init__()
        self._path = path
        self._socket = self._connect()
        self._rest: logging.Handler | None = None
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
            if self._rest is None:
                self._rest = _file_handler()
            self._rest.handle(record)

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except TimeoutError:
            raise
        except OSError:  # syslog has restarted
            fresh = self._connect()
            self._socket.close()
            self._socket = fresh
            self._socket.send(data)

    def close(self) -> None:
        self._socket.close()
        if self._rest is not None:
            self._rest.close()
        super().close()


def _write_to_file(record: logging.LogRecord) -> None:
    with contextlib.closing(_file_handler()) as handler:
        handler.handle(record)


class _NewFile(logging.Handler):
    """A file in a new directory, both made for the first line: most mounts log none."""

    def __init__(self) -> None:
        super().__init__()
        self._file: logging.Handler | None = None

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(BarfsError, OSError):  # no place is left
            if self._file is None:
                self._file = _File(new_directory(_PREFIX))
            self._file.handle(record)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


class _File(logging.FileHandler):
    """A log file in a folder, which is created if needed. Raises OSError.

    Other users must not be able to plant the file: only one that this user alone owns is used.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.geteuid() or status.st_mode & stat.S_IWOTH:
            raise PermissionError(f"{folder} belongs to another user")
        super().__init__(folder / _NAME, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(_Formatter("%(asctime)s barfs[%(process)d]: %(levelname)s: %(message)s"))

    def _open(self) -> TextIOWrapper:
        fd = os.open(self.baseFilename, _FLAGS, 0o640)
        status = os.fstat(fd)
        if (
            not stat.S_ISREG(status.st_mode)
            or status.st_uid != os.geteuid()
            or status.st_nlink != 1
        ):
            os.close(fd)
            raise PermissionError(
                f"{self.baseFilename} must be a regular file of this user, without other links"
            )
        return TextIOWrapper(os.fdopen(fd, "ab"), encoding=self.encoding, errors=self.errors)


def _file_handler() -> logging.Handler:
    for folder in log_folders():
        with contextlib.suppress(OSError):
            return _File(folder)
    return _NewFile()
