# SPDX-License-Identifier: MIT
"""The command `run`: a program that maps regions.

Rule 1: the program becomes this process, with the environment, the descriptors and the signals that
        barfs was started with, as by env(1).
"""

import argparse
import errno
import os
import signal
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from barfs import preload
from barfs.cli.edge import release_streams, tell
from barfs.cli.exit_codes import EXIT_NOT_FOUND, EXIT_NOT_RUN
from barfs.cli.help import explain
from barfs.errors import UsageError
from barfs.text.system_errors import reason


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [-h] COMMAND [ARGUMENT...]"
    parser.add_argument(
        "command",
        metavar="COMMAND",
        nargs=argparse.REMAINDER,
        help="a program and its arguments; behind --, its name may begin with -",
    )
    explain(
        parser,
        "barfs run pcimem ~/bar/bus/0000:01:00.0/bar0 0x1000 w",
        "barfs run memtool md -s ~/bar/bus/0000:01:00.0/bar0 0x1000+0x40",
        "barfs run python3 tool.py",
        details="A shared mmap of a region's file, which the kernel does not allow, becomes one of "
        "the region's windows, also in the programs that COMMAND starts. Needs a mount with "
        "-o map. Does not reach programs that are statically linked or setuid, or in Go. Exits as "
        "COMMAND does, with 126 if it cannot be run, and with 127 if it is not found.",
    )
    parser.set_defaults(run=_run)


def _run(choice: argparse.Namespace) -> int:
    words: list[str] = choice.command
    if words[:1] == ["--"]:
        words = words[1:]
    if not words:
        raise UsageError("run needs a COMMAND; see barfs run --help")
    variables = preload.environment(_environment())
    try:
        program = _find(words[0])
        _warn(program)
        _become(program, words, variables)
    except (FileNotFoundError, NotADirectoryError) as error:
        tell(f"barfs: {words[0]}: {reason(error)}")
        return EXIT_NOT_FOUND
    except (OSError, ValueError) as error:
        tell(f"barfs: {words[0]}: {reason(error) if isinstance(error, OSError) else error}")
        return EXIT_NOT_RUN


def _environment() -> dict[bytes, bytes]:
    """That of barfs, without the LC_CTYPE that Python sets itself in the C locale (PEP 538)."""
    variables = dict(os.environb)
    try:
        given = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return variables
    if not any(variable.startswith(b"LC_CTYPE=") for variable in given):
        variables.pop(b"LC_CTYPE", None)
    return variables


def _find(name: str) -> str:
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


def _warn(program: str) -> None:
    """Say so if the dynamic linker will not load the library."""
    why = ""
    found = os.stat(program)
    if (found.st_mode & stat.S_ISUID and found.st_uid != os.getuid()) or (
        found.st_mode & stat.S_ISGID and found.st_gid != os.getgid()
    ):
        why = "runs with the rights of another user or group"
    elif _is_static(program):
        why = "is statically linked"
    if why:
        tell(f"barfs: {program} {why}, and cannot map regions")


_ELF = b"\x7fELF"
_PT_INTERP = 3


def _head(program: str) -> bytes:
    try:
        with open(program, "rb") as file:
            return file.read(64)
    except OSError:
        return b""  # may be run, but not read


def _is_static(program: str) -> bool:
    """Whether it is an ELF file (elf(5)) that asks for no dynamic linker."""
    head = _head(program)
    try:
        with open(program, "rb") as file:
            if len(head) < 64 or head[:4] != _ELF or head[4] not in (1, 2) or head[5] not in (1, 2):
                return False
            order = "<" if head[5] == 1 else ">"
            wide = head[4] == 2
            (start,) = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)
            size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
            file.seek(start)
            table = file.read(size * count)
    except (OSError, OverflowError, ValueError):
        return False
    kinds = [table[place : place + 4] for place in range(0, len(table), size or 1)]
    return struct.pack(order + "I", _PT_INTERP) not in kinds


def _become(program: str, words: list[str], variables: dict[bytes, bytes]) -> NoReturn:
    """Raises OSError, or ValueError for a NUL in a word."""
    sys.stdout.flush()
    release_streams()
    # Python ignores them, and an ignored signal stays ignored (execve(2)).
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(program, words, variables)
    except OSError as error:
        if error.errno != errno.ENOEXEC or _head(program)[:4] == _ELF:
            raise
    # As execvp(3) does for a script without a first line that names its interpreter.
    os.execve("/bin/sh", ["sh", program, *words[1:]], variables)
