# SPDX-License-Identifier: MIT
"""Running a command in the background, as a daemon.

Rule 1: the command returns 0 once its daemon is ready; if the daemon ends before, it has printed
        its own message, and the command returns its exit code.
Rule 2: the daemon keeps none of its caller's descriptors, so that pipes end with the command.
Rule 3: the log moves to where `barfs.daemon.logs` says when the daemon is ready, not before.
Rule 4: a signal that ends the command before its daemon is ready also ends the daemon, and the
        command waits for it. That includes ^C during the fork: Python discards exceptions from its
        hooks after a fork, so signals are held until the fork is over.
Rule 5: until it is ready, a daemon stays in its caller's process group. An automount point admits
        that group while the mount is made, and blocks all other processes until then: a daemon in
        another group would wait for itself.
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
    """The descriptors that the caller left open, without the standard streams."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the descriptor of the directory itself
            os.fstat(fd)
            if fd > 2:
                found.append(fd)
    return found


def run_in_background(run: Callable[[Callable[[], None]], int], level: int = logging.INFO) -> int:
    """Call `run(ready)` in a child process, which starts a session of its own when ready.

    Returns 0 in the caller once the child has called `ready`, or the child's exit code if it ended
    before. Never returns in the child. Raises BarfsError if a signal has ended the child.
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
            with hold.released():  # a second signal does not wait
                os.waitpid(child, 0)
            raise
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        raise BarfsError(
            f"signal {-code} ({signal.strsignal(-code)}) ended the mount's process before the "
            "mount answered; dmesg may tell why"
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
        # Not before: by now, all files that the caller named by relative paths are open.
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
        except BrokenPipeError:  # the caller was killed, so its user does not know about the mount
            os.kill(os.getpid(), signal.SIGTERM)
        os.close(writing)

    try:
        # While both share a process group, the caller handles ^C.
        signal.pthread_sigmask(signal.SIG_SETMASK, {*mask, signal.SIGINT})
        return run(ready)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        logging.getLogger(__name__).exception("barfs failed")
        return 1
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
