# SPDX-License-Identifier: MIT
"""Files that barfs writes for its user, complete or not at all.

Rule 1: a name keeps its old contents until the new ones are complete, however barfs ends. Until
        then the new file has no name (O_TMPFILE), so that nothing is left behind.
Rule 2: only a regular file is replaced, and the new one gets its owner, mode, ACL and attributes.
        Symbolic links are followed and kept. Other hard links keep the old contents.
Rule 3: barfs writes into a device, a FIFO or an open descriptor (/dev/stdout, /proc/self/fd/N), and
        refuses a directory or a socket.
"""

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from barfs.engine import Owner, keep_from_children
from barfs.errors import BarfsError, UsageError
from barfs.process.signals import Held
from barfs.text.system_errors import reason

_DESCRIPTORS = re.compile(r"/proc/([0-9]+)(?:/task/[0-9]+)?/fd")
_MOST_LINKS = 40
_NOT_COPIED = ("security.capability",)
"""Capabilities were granted to the old contents; the kernel also drops them on a write."""


class OutputError(BarfsError):
    """A file could not be written completely."""


class Output(Protocol):
    """A stream that is written from start to end. Its methods raise OSError."""

    def write(self, data: bytes, /) -> int: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


@contextlib.contextmanager
def saving(path: Path, mode: int = 0o600) -> Iterator[Output]:
    """Write `path`, or replace it when the block ends without an exception.

    A new file gets `mode`, less the umask. Raises UsageError if `path` cannot be written, and
    OutputError if completing the file fails.
    """
    with contextlib.ExitStack() as stack:
        try:
            place = _resolved(path)
            stream = _into_existing(path, place)
            new = None if stream else stack.enter_context(_NewFile.made(place, mode))
        except OSError as error:
            raise UsageError(f"{path}: {reason(error)}") from error
        output: Output | None = new.file if new else stream
        assert output is not None
        owner = Owner()
        try:
            yield output
            if not owner.is_here:
                return
            try:
                output.flush()
                if new is not None:
                    new.take_its_name()
            except OSError as error:
                raise OutputError(f"{path}: {reason(error)}") from error
        finally:
            with contextlib.suppress(OSError):  # reported already, or nothing is lost
                output.close()


def save(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write or replace a file. Raises UsageError and OutputError like `saving`."""
    with saving(path, mode) as output:
        try:
            output.write(data)
        except OSError as error:
            raise OutputError(f"{path}: {reason(error)}") from error


def _resolved(path: Path) -> Path:
    """Follow symbolic links, but not beyond an open descriptor in /proc, which is not a path."""
    for _ in range(_MOST_LINKS):
        path = Path(os.path.realpath(path.parent)) / path.name
        if _DESCRIPTORS.fullmatch(str(path.parent)):
            return path
        try:
            path = path.parent / os.readlink(path)
        except OSError:  # not a link, or absent
            return path
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


class _Stream:
    """An existing file or device to write into; no old contents are kept (`>>`)."""

    def __init__(self, fd: int) -> None:
        self._file = os.fdopen(fd, "wb")
        keep_from_children(self)
        self.write = self._file.write
        self.flush = self._file.flush
        self.close = self._file.close

    def descriptors(self) -> list[int]:
        return _descriptors(self._file)


def _into_existing(path: Path, place: Path) -> _Stream | None:
    """The stream to write into `place`; None if it is a regular file or absent."""
    descriptor = _DESCRIPTORS.fullmatch(str(place.parent))
    if descriptor and int(descriptor[1]) == os.getpid():
        return _Stream(os.dup(int(place.name)))
    try:
        kind = stat.S_IFMT(os.stat(place).st_mode)
    except FileNotFoundError:
        return None
    if kind == stat.S_IFDIR:
        raise UsageError(f"{path} is a directory; name a file in it")
    if kind == stat.S_IFSOCK:
        raise UsageError(f"{path} is a socket; name a file")
    if kind == stat.S_IFREG and not descriptor:
        return None
    return _Stream(os.open(place, os.O_WRONLY | os.O_TRUNC | os.O_NOCTTY | os.O_CLOEXEC))


class _NewFile:
    """A new file in the directory of `place`, without a name if the file system supports that."""

    def __init__(self, place: Path, folder: int, fd: int, temporary: str | None) -> None:
        self.file: BinaryIO = os.fdopen(fd, "wb")
        self._name = place.name
        self._folder = folder
        self._temporary = temporary
        keep_from_children(self)

    def descriptors(self) -> list[int]:
        return _descriptors(self.file)

    @classmethod
    @contextlib.contextmanager
    def made(cls, place: Path, mode: int) -> "Iterator[_NewFile]":
        """Make the file, and remove it afterwards unless it got its name.

        Raises OSError, UsageError.
        """
        with contextlib.ExitStack() as stack:
            folder = os.open(place.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, folder)
            fd, temporary = _without_name(folder, mode), None
            if fd is None:
                temporary = _free_name()
                stack.callback(_remove, folder, temporary, Owner())
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                fd = os.open(temporary, flags, mode, dir_fd=folder)
            new = cls(place, folder, fd, temporary)
            try:
                with contextlib.suppress(FileNotFoundError):
                    _copy_status(fd, place)
                yield new
            finally:
                with contextlib.suppress(OSError):
                    new.file.close()

    def take_its_name(self) -> None:
        """Replace `place` with this file. Raises OSError."""
        os.fsync(self.file.fileno())
        if self._temporary is not None:
            self._replace(self._temporary)
            return
        try:
            self._link(self._name)
        except FileExistsError:
            temporary = _free_name()
            with Held():
                self._link(temporary)
                try:
                    self._replace(temporary)
                except BaseException:
                    os.unlink(temporary, dir_fd=self._folder)
                    raise

    def _link(self, name: str) -> None:
        # With a directory descriptor Python calls linkat(2), which follows this link.
        source = f"/proc/self/fd/{self.file.fileno()}"
        os.link(source, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def _replace(self, temporary: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(self._name, dir_fd=self._folder, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EEXIST, "is no longer a regular file")
        os.rename(temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)


def _descriptors(file: BinaryIO) -> list[int]:
    return [] if file.closed else [file.fileno()]


def _remove(folder: int, name: str, owner: Owner) -> None:
    if owner.is_here:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)


def _free_name() -> str:
    return f".barfs-{secrets.token_hex(8)}"


def _without_name(folder: int, mode: int) -> int | None:
    """A new file without a name; None if the file system does not support O_TMPFILE."""
    if not os.path.exists("/proc/self/fd"):  # needed to give it a name
        return None
    try:
        return os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, mode, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR):  # open(2), O_TMPFILE
            return None
        raise


def _copy_status(fd: int, place: Path) -> None:
    """Copy owner, mode and attributes of the file to be replaced. Raises OSError, UsageError."""
    status = os.stat(place)
    if not os.access(place, os.W_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    try:
        os.fchown(fd, status.st_uid, status.st_gid)
    except OSError:
        raise UsageError(
            f"{place} belongs to user {status.st_uid}, group {status.st_gid}, which barfs cannot "
            "keep; remove it, or choose another name"
        ) from None
    with contextlib.suppress(OSError):  # a file system without attributes
        for name in os.listxattr(place):
            if name not in _NOT_COPIED:
                os.setxattr(fd, name, os.getxattr(place, name))
    os.fchmod(fd, stat.S_IMODE(status.st_mode))
