# SPDX-License-Identifier: MIT
"""Makes this process another program, as env(1) does.

Rule 1: the program gets what this process was started with, not what Python made of it: signals
        that were not ignored, and an environment without Python's LC_CTYPE (PEP 538).
"""

import errno
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

_ELF = b"\x7fELF"


def environment() -> dict[bytes, bytes]:
    """The variables that this process was started with."""
    variables = dict(os.environb)
    try:
        given = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return variables
    if not any(variable.startswith(b"LC_CTYPE=") for variable in given):
        variables.pop(b"LC_CTYPE", None)
    return variables


def find(name: str) -> str:
    """The file of a command, as execvp(3) finds it. Raises OSError."""
    denied = None
    for path in _places(name):
        if os.path.isfile(path):
            if os.access(path, os.X_OK, effective_ids=True):
                return path
            denied = denied or path
        elif "/" in name and os.path.isdir(path):
            denied = path
    if denied is not None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), denied)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)


def _places(name: str) -> Iterator[str]:
    if "/" in name:
        yield name
    elif name:
        for folder in os.environ.get("PATH", os.defpath).split(":"):
            yield os.path.join(folder, name)


def become(program: str, words: list[str], variables: Mapping[bytes, bytes]) -> NoReturn:
    """Execute a program. Raises OSError, or ValueError for a NUL in a word."""
    # Python ignores them, and an ignored signal stays ignored (execve(2)).
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(program, words, variables)
    except OSError as error:
        if error.errno != errno.ENOEXEC or _is_elf(program):
            raise
    # As execvp(3) does for a script without a first line that names its interpreter.
    os.execve("/bin/sh", ["sh", program, *words[1:]], variables)


def _is_elf(program: str) -> bool:
    """Whether it is a program for another machine."""
    try:
        with open(program, "rb") as file:
            return file.read(len(_ELF)) == _ELF
    except OSError:
        return False
