# SPDX-License-Identifier: MIT
"""Files that barfs writes for its user: whole or not at all, and in the place of nothing else.

Rule 1: a name keeps what it had until all of the new contents are there, whatever ends barfs
        meanwhile. Until then they have no name (O_TMPFILE), so that nothing is left behind.
Rule 2: only a regular file is replaced, and its owner, mode, ACL and attributes stay. Symbolic
        links are followed, and stay. Other hard links keep the old contents.
Rule 3: a device, a FIFO or an open descriptor (/dev/stdout, /proc/self/fd/N) is written into. A
        directory or a socket is refused.
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
"""New contents are not what was trusted with them; the kernel drops them on a write, too."""


class OutputError(BarfsError):
    """A file that could not be written to its end."""


class Output(Protocol):
    """What is written to, from the start to the end. Raises OSError."""

    def write(self, data: bytes, /) -> int: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


@contextlib.contextmanager
def saving(path: Path, mode: int = 0o600) -> Iterator[Output]:
    """Write `path`, or replace it when the block ends without an exception.

    `mode` is that of a new file, without what the umask takes. Raises UsageError for what cannot be
    written, OutputError where it fails at the end.
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
            with contextlib.suppress(OSError):  # told already, or for nothing
                output.close()


def save(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file, or replace it. Raises UsageError, OutputError as `saving`."""
    with saving(path, mode) as output:
        try:
            output.write(data)
        except OSError as error:
            raise OutputError(f"{path}: {reason(error)}") from error


def _resolved(path: Path) -> Path:
    """Where symbolic links lead; not further than to an open descriptor, which is no path."""
    for _ in range(_MOST_LINKS):
        path = Path(os.path.realpath(path.parent)) / path.name
        if _DESCRIPTORS.fullmatch(str(path.parent)):
            return path
        try:
            path = path.parent / os.readlink(path)
        except OSError:  # no link, or nothing yet
            return path
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


class _Stream:
    """What is written into has no place to go back to, even where it is a file (`>>`)."""

    def __init__(self, fd: int) -> None:
        self._file = os.fdopen(fd, "wb")
        keep_from_children(self)
        self.write = self._file.write
        self.flush = self._file.flush
        self.close = self._file.close

    def descriptors(self) -> list[int]:
        return _descriptors(self._file)


def _into_existing(path: Path, place: Path) -> _Stream | None:
    """What is there and to be written into; None for a file, which is to be made or replaced."""
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
    """A file in the making, in the folder of `place`: without a name where that can be."""

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
        """Raises OSError, UsageError."""
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
                    _become_alike(fd, place)
                yield new
            finally:
                with contextlib.suppress(OSError):
                    new.file.close()

    def take_its_name(self) -> None:
        """Raises OSError."""
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
        # With a descriptor of a folder Python calls linkat(2), which follows this link.
        source = f"/proc/self/fd/{self.file.fileno()}"
        os.link(source, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def _replace(self, temporary: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(self._name, dir_fd=self._folder, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EEXIST, "is no file any more")
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
    """A new file that has no name yet; None where the file system knows no such thing."""
    if not os.path.exists("/proc/self/fd"):  # by which it would get its name
        return None
    try:
        return os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, mode, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR):  # open(2), O_TMPFILE
            return None
        raise


def _become_alike(fd: int, place: Path) -> None:
    """Give a new file what the one that it replaces has. Raises OSError, UsageError."""
    status = os.stat(place)
    if not os.access(place, os.W_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    try:
        os.fchown(fd, status.st_uid, status.st_gid)
    except OSError:
        raise UsageError(
            f"{place} belongs to user {status.st_uid}, group {status.st_gid}, which it would lose; "
            "remove it, or choose another name"
        ) from None
    with contextlib.suppress(OSError):  # a file system without attributes
        for name in os.listxattr(place):
            if name not in _NOT_COPIED:
                os.setxattr(fd, name, os.getxattr(place, name))
    os.fchmod(fd, stat.S_IMODE(status.st_mode))
