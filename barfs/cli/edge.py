# SPDX-License-Identifier: MIT
"""Between a command and what started it: its standard streams, and whatever ends it.

Rule 1: descriptors 0, 1 and 2 are in use from the start. Where one was closed, no file, socket or
        device gets its number, and reading or writing it fails as before.
Rule 2: whatever ends a command is one line on standard error and an exit code, never a traceback.
Rule 3: what tells an error is loaded before: there may be no memory or descriptor left for it then.
        The log, which most commands never write to, is loaded when it is needed.
Rule 4: output that is lost is an error. What cannot be said on standard error changes nothing.
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
from barfs.text import printable
from barfs.text.system_errors import is_expected, line

if TYPE_CHECKING:
    from logging import Logger

_OUTPUT = "standard output"


class _Stream(io.RawIOBase):
    """A standard stream, by its descriptor, which stays open and may be anything."""

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
            except BlockingIOError:  # whoever shares it made it so
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()


class _Output(_Stream):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = _OUTPUT
            raise


class _Errors(_Stream):
    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            return super().write(data)
        return len(data)


def take_streams() -> None:
    """Make the standard streams what the rules above say, for the rest of the process."""
    for fd, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        if not _is_open(fd):
            os.set_inheritable(_placeholder(mode), True)
    sys.stdout = _text(_Output(1), sys.stdout, line_buffering=os.isatty(1))
    sys.stderr = _text(_Errors(2), sys.stderr, line_buffering=True)
    threading.excepthook = _tell_of_thread
    sys.unraisablehook = _tell_of_unraisable


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _placeholder(mode: int) -> int:
    """The lowest free descriptor, now in use."""
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
    """What `run` returns, or the exit code of whatever ended it, which is told; output is out."""
    code = exit_code(run)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        lost = _told(error)
        return code or lost
    return code


def exit_code(run: Callable[[], int]) -> int:
    """What `run` returns, or the exit code of whatever ended it, which is told in one line."""
    try:
        return run()
    except BaseException as error:
        return _told(_first_of(error))


def announce(message: str) -> None:
    """Say on standard output that a service is up; it serves also where that cannot be said."""
    try:
        print(message, flush=True)
    except OSError as error:
        abandon_output()
        _log().warning("%s", line(error))


def tell(message: object) -> None:
    """Say something in one line on standard error."""
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
    """Throw away what is still to be written, and all that follows."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
        sys.stdout.flush()


def _first_of(error: BaseException) -> BaseException:
    """The error itself, out of the groups that trio puts around it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _told(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, OSError) and error.filename == _OUTPUT:
        abandon_output()
        if isinstance(error, BrokenPipeError):  # the reader has seen enough
            return EXIT_FAILED
    with contextlib.suppress(Exception):
        if isinstance(error, BarfsError):
            _tell_error(str(error))
        elif is_expected(error):
            _tell_error(line(error))
        else:
            _tell_error(_mistake(error), error)
    return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED


def _mistake(error: BaseException) -> str:
    """An error that no surroundings explain, and where in the program it came up."""
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
    return f"{type(error).__name__}{place}: {text}; this is a mistake in barfs, please report it"


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
