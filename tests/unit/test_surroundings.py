# SPDX-License-Identifier: MIT
"""Errors of the surroundings, made by real limits in a child process, and told in a sentence."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from barfs.text.system_errors import reason
from tests.support import DEADLINE, require

BEGIN = """
import mmap, os, resource, sys, threading
from barfs.text.system_errors import line, reason

def limit(kind, value):
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))

def told(run, **choice):
    try:
        run()
    except BaseException as error:
        print(reason(error, **choice))
    else:
        print("it worked")
"""


def told(script: str, *wrapper: str, cwd: Path | None = None) -> str:
    """The line that a script prints."""
    result = subprocess.run(
        [*wrapper, sys.executable, "-c", BEGIN + script],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        cwd=cwd,
    )
    assert result.stderr == ""
    (line,) = result.stdout.splitlines()
    return line


def test_too_many_open_files_and_how_to_open_more() -> None:
    """The advice is what works: a soft limit is raised by its owner, a hard one by root."""
    use_up = "\ntold(lambda: [os.pipe() for _ in range(100)])"
    soft = told(f"resource.setrlimit(resource.RLIMIT_NOFILE, (40, 60)){use_up}")
    assert soft == "too many open files, 40 are allowed; raise the limit with ulimit -n 60"
    hard = told(f"resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)){use_up}")
    assert hard.startswith("too many open files, 40 are allowed; raise the limit, as root: prlimit")


def test_a_file_that_grows_too_large(tmp_path: Path) -> None:
    script = """
limit(resource.RLIMIT_FSIZE, 100)
told(lambda: open("file", "w", buffering=1).write("line\\n" * 100))
"""
    assert told(script, cwd=tmp_path) == (
        "a file would become too large, 100 bytes are allowed; raise the limit with ulimit "
        "-f unlimited"
    )


def test_no_memory() -> None:
    script = """
limit(resource.RLIMIT_AS, 1 << 30)
told(lambda: bytes(1 << 31))
"""
    assert told(script) == (
        "out of memory; 1048576 KiB of addresses are allowed: ulimit -v unlimited"
    )


def test_no_addresses_for_a_thread() -> None:
    script = """
now = int(open("/proc/self/statm").read().split()[0]) * mmap.PAGESIZE
limit(resource.RLIMIT_AS, now + (2 << 20))
threading.stack_size(64 << 20)
told(threading.Thread(target=print).start)
"""
    assert told(script).startswith("no more processes and threads can be started; ")
    assert told(script).endswith(" KiB of addresses are allowed: ulimit -v unlimited")


def test_no_room_for_locked_memory() -> None:
    """Who locks all memory (mlockall) needs room for each window."""
    script = """
import ctypes
limit(resource.RLIMIT_MEMLOCK, 64 << 10)
ctypes.CDLL(None).mlockall(2)  # MCL_FUTURE
told(lambda: mmap.mmap(-1, 1 << 20), mapping=True)
"""
    require("fuse", os.getuid() == 0, "only root can take CAP_IPC_LOCK away here")
    assert told(script, "setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock") == (
        "too much locked memory, 64 KiB are allowed; raise the limit with ulimit -l unlimited"
    )


def test_a_deleted_directory(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    script = f"""
os.chdir({str(folder)!r})
os.rmdir({str(folder)!r})
told(lambda: os.path.abspath("file"))
"""
    assert told(script) == "the current directory has been deleted; cd to another one"


@pytest.mark.parametrize(
    ("number", "part"),
    [
        (errno.ENFILE, "the machine has too many open files; raise its limit, as root: sysctl"),
        (errno.ENOSPC, "no space left on the device"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.ETOOMANYREFS, "too many descriptors in flight, "),
        (errno.EAGAIN, "no more processes and threads can be started"),
        (errno.EACCES, "Permission denied"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_other_errors(number: int, part: str) -> None:
    assert reason(OSError(number, os.strerror(number))).startswith(part)


def test_errors_of_python() -> None:
    assert reason(MemoryError()).startswith("out of memory")
    assert reason(RecursionError("maximum recursion depth exceeded")) == "nested too deeply"
    assert reason(OSError("plain")) == "plain"
    assert reason(ValueError()) == "ValueError"
