# SPDX-License-Identifier: MIT
"""What a front end has to say about a description: errors and warnings, with file and line."""

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from barfs.registers.errors import DescriptionError
from barfs.registers.model import Block
from barfs.text import printable

LARGEST = 64 << 20
"""Bytes of a description."""
_MOST = 20
"""Errors that are told; more of them rarely help."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A description as a map, the files that it was made of, and what the compiler warned of."""

    root: Block
    files: tuple[Path, ...]
    warnings: tuple[str, ...] = ()


class Report:
    """Collects errors and warnings of one description."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._errors: list[str] = []

    def error(self, line: int, text: str, path: str | Path | None = None) -> None:
        """`line` 0 is the file as a whole."""
        self._errors.append(self._located(line, text, path))

    def warn(self, line: int, text: str, path: str | Path | None = None) -> None:
        self.warnings.append(self._located(line, f"warning: {text}", path))

    def check(self) -> None:
        """Raises DescriptionError when there was an error."""
        if not self._errors:
            return
        # A compiler may say one thing at every level of its recursion.
        lines = list(dict.fromkeys(self._errors))
        if len(lines) > _MOST:
            lines[_MOST:] = [f"{printable(self.path)}: {len(lines) - _MOST} more errors"]
        raise DescriptionError(*lines)

    def fail(self, line: int, text: str, path: str | Path | None = None) -> DescriptionError:
        """The error that ends the work, behind those before it; to be raised."""
        self.error(line, text, path)
        try:
            self.check()
        except DescriptionError as error:
            return error
        raise AssertionError

    def _located(self, line: int, text: str, path: str | Path | None) -> str:
        where = printable(self.path if path is None else path)
        return f"{where}:{line}: {_one_line(text)}" if line else f"{where}: {_one_line(text)}"


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def check_file(path: Path) -> None:
    """Raises DescriptionError for what cannot be read to an end: a FIFO, a device, a huge file."""
    try:
        status = path.stat()
    except OSError as error:
        raise DescriptionError(f"{printable(path)}: {error.strerror}") from None
    if stat.S_ISDIR(status.st_mode):
        raise DescriptionError(f"{printable(path)}: {os.strerror(errno.EISDIR)}")
    if not stat.S_ISREG(status.st_mode):
        raise DescriptionError(f"{printable(path)}: must be a regular file")
    _check_size(path, status.st_size)


def read_limited(path: Path) -> bytes:
    """The contents of a description. Raises DescriptionError."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise DescriptionError(f"{printable(path)}: {error.strerror}") from None
    _check_size(path, len(data))
    return data


def _check_size(path: Path, size: int) -> None:
    if size > LARGEST:
        raise DescriptionError(f"{printable(path)}: must have at most {LARGEST >> 20} MiB")
