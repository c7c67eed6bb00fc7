# SPDX-License-Identifier: MIT
"""The edge of the process: its standard streams, and how it ends.

Rule 1: descriptors 0, 1 and 2 are in use from the start. If the caller closed one, no file, socket
        or device gets its number, and reading or writing it still fails.
Rule 2: a command ends with an exit code and at most one line on standard error, never a traceback;
        one line for each error that a description of registers has.
Rule 3: the code that prints an error is imported beforehand, since memory or descriptors may have
        run out by then. The log, which most commands do not use, is imported on demand.
Rule 4: lost output is an error; a failed write to standard error is ignored.
"""

import contextlib
import io
import os
import select
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from barfs.cli.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from barfs.errors import BarfsError, UsageError
from barfs.process.signals import Held
from barfs.text import printable
from barfs.text.system_errors import is_expected, line

if TYPE_CHECKING:
    from logging import Logger

STANDARD_OUTPUT = "standard output"


class _Stream(io.RawIOBase):
    """A standard stream, whose descriptor may be anything, and stays open."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        while True:
            try:
                return os.write(self._fd, data)
            except BlockingIOError:  # another process that shares it set O_NONBLOCK
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()


class _Output(_Stream):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = STANDARD_OUTPUT
            raise


class _Errors(_Stream):
    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            return super().write(data)
        return len(data)


_closed: set[int] = set()
"""The descriptors that the caller closed."""


def take_streams() -> None:
    """Replace the standard streams by ones that follow the rules above."""
    for fd, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        if not _is_open(fd):
            os.set_inheritable(_placeholder(mode), True)
            _closed.add(fd)
    sys.stdout = _text(_Output(1), sys.stdout, line_buffering=os.isatty(1))
    sys.stderr = _text(_Errors(2), sys.stderr, line_buffering=True)
    threading.excepthook = _tell_of_thread
    sys.unraisablehook = _tell_of_unraisable


def release_streams() -> None:
    """Let another program have the standard streams as the caller left them: closed, if so."""
    for fd in _closed:
        os.set_inheritable(fd, False)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _placeholder(mode: int) -> int:
    """Open the lowest free descriptor."""
    try:
        return os.open(os.devnull, mode)
    except OSError:  # there may be no /dev
        return os.open("/", os.O_PATH)


def _text(raw: _Stream, before: TextIO | None, *, line_buffering: bool) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before is not None else _encoding(),
        errors="backslashreplace",
        line_buffering=line_buffering or getattr(before, "write_through", False),
    )


def _encoding() -> str:
    import locale

    return locale.getencoding()


def guarded(run: Callable[[], int]) -> int:
    """Like `exit_code`, and flush standard output: what is lost there is an error."""
    code = exit_code(run)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        lost = _told(error)
        return code or lost
    return code


def exit_code(run: Callable[[], int]) -> int:
    """The result of `run`, or the exit code for its exception, which is printed in one line."""
    try:
        return run()
    except BaseException as error:
        return _told(_first_of(error))


def announce(message: str) -> None:
    """Print that a service is up. The service goes on if that fails."""
    try:
        print(message, flush=True)
    except OSError as error:
        abandon_output()
        _log().warning("%s", line(error))


def put(line: object) -> None:
    """Print a line of a stream of lines at once. A signal comes before it or after it: one in the
    midst of a write would have the line printed again at the end."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    poll.poll()  # where ^C ends a command whose reader has stopped
    with Held():
        print(printable(line), flush=True)


def tell(message: object) -> None:
    """Print a message in one line on standard error."""
    print(printable(message), file=sys.stderr)


def _log() -> "Logger":
    import logging

    from barfs.daemon.logs import log_to_stderr

    if not logging.root.handlers:
        log_to_stderr()
    return logging.getLogger(__name__)


def _tell_error(message: str, mistake: BaseException | None = None) -> None:
    try:
        from barfs.daemon.logs import tell_error
    except (ImportError, OSError, MemoryError):
        tell(f"barfs: {message}")
    else:
        tell_error(message, mistake)


def abandon_output() -> None:
    """Discard pending and future standard output."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
        sys.stdout.flush()


def _first_of(error: BaseException) -> BaseException:
    """The error inside the groups that trio wraps around it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _told(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, OSError) and error.filename == STANDARD_OUTPUT:
        abandon_output()
        if isinstance(error, BrokenPipeError):  # the reader has closed its end
            return EXIT_FAILED
    with contextlib.suppress(Exception):
        if isinstance(error, BarfsError):
            for each in error.lines:
                _tell_error(each)
        elif is_expected(error):
            _tell_error(line(error))
        else:
            _tell_error(_mistake(error), error)
    return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED


def _mistake(error: BaseException) -> str:
    """The message for an error that is a bug, with its place in the program."""
    from pathlib import Path

    package = Path(__file__).parents[1]
    place = ""
    traceback = error.__traceback__
    while traceback is not None:
        file = Path(traceback.tb_frame.f_code.co_filename)
        if file.is_relative_to(package):
            place = f" in {file.relative_to(package)}, line {traceback.tb_lineno}"
        traceback = traceback.tb_next
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{place}: {text}; this is a bug in barfs, please report it"


def _tell_of_thread(arguments: threading.ExceptHookArgs) -> None:
    error = arguments.exc_value
    if error is not None and not isinstance(error, SystemExit):
        name = arguments.thread.name if arguments.thread is not None else "a thread"
        with contextlib.suppress(Exception):
            text = line(error) if is_expected(error) else _mistake(error)
            _log().error("%s ended: %s", name, text)


def _tell_of_unraisable(arguments: Any) -> None:
    error = arguments.exc_value
    with contextlib.suppress(Exception):
        if error is not None:
            _log().warning("%s", line(error) if is_expected(error) else _mistake(error))
