# SPDX-License-Identifier: MIT
"""Going into the background.

Rule 1: the command returns 0 only once its daemon is ready, and otherwise with the daemon's own
        exit code, after the daemon's own message.
Rule 2: the daemon keeps no descriptor of its caller, so that pipes on the command end with it.
Rule 3: from then on, and not before, its log goes where `barfs.daemon.logs` says.
Rule 4: a signal that ends the command before its daemon is ready ends the daemon, and the command
        waits for that. A ^C in the very fork counts: Python discards what is raised in its hooks
        after a fork, so signals wait for the end of it.
Rule 5: until it is ready, a daemon stays in its caller's process group. By that, an automount point
        knows whom to let through while its mount is made; whoever else touches it waits for the
        mount, and a daemon of another group would wait for itself.
"""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable

from barfs.daemon.logs import background_handler, install
from barfs.errors import BarfsError
from barfs.process.signals import SIGNALS, Held, too_late

_READY = b"1"


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
    """Call `run(ready)` in a child process, which becomes a session of its own when ready.

    Returns 0 in the caller once the child has called `ready`, or the child's exit code if it ended
    before. The child never returns. Raises BarfsError where the log has no place, and where a
    signal has ended the child.
    """
    inherited = _inherited()
    handler = background_handler()
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    with Held() as hold:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with hold.released():
                    os.close(reading)
                    for fd in inherited:
                        os.close(fd)
                    code = _run_child(run, writing, handler, level, mask)
            finally:
                os._exit(code)
        os.close(writing)
        try:
            with hold.released(), os.fdopen(reading, "rb") as pipe:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                if pipe.read(1) == _READY:
                    too_late()
                    return 0
                os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        except BaseException:
            os.kill(child, signal.SIGTERM)
            with hold.released():  # a second signal waits for nothing
                os.waitpid(child, 0)
            raise
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        raise BarfsError(
            f"the mount's process was ended by signal {-code} ({signal.strsignal(-code)}) before "
            "the mount answered; dmesg may tell why"
        )
    return code


def _run_child(
    run: Callable[[Callable[[], None]], int],
    writing: int,
    handler: logging.Handler,
    level: int,
    mask: Iterable[int],
) -> int:
    def ready() -> None:
        os.setsid()
        # Not before: what the caller named by relative paths is open now.
        os.chdir("/")
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        install(handler, level)
        sys.stdout.flush()
        sys.stderr.flush()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.close(null)
        try:
            os.write(writing, _READY)
        except BrokenPipeError:  # the caller was killed, and its user does not know of the mount
            os.kill(os.getpid(), signal.SIGTERM)
        os.close(writing)

    try:
        # A ^C is the caller's, for as long as both are in one process group.
        signal.pthread_sigmask(signal.SIG_SETMASK, {*mask, signal.SIGINT})
        return run(ready)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        logging.getLogger(__name__).exception("barfs ended")
        return 1
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
