# SPDX-License-Identifier: MIT
"""Compiled descriptions in ~/.cache/barfs (or XDG_CACHE_HOME), so that each is compiled once.

Rule 1: an entry holds the hash of every file that it was made of, and is used only while all of
        them have it. It belongs to one path: a description that changes replaces its own entry.
Rule 2: an entry is trusted only where it is a file of this user that no other can write, whole
        (it ends with a hash of itself), and of this version. Anything else means: compile again.
Rule 3: a cache that cannot be written costs time, and nothing else.
"""

import contextlib
import hashlib
import marshal
import os
import stat
import sys
from pathlib import Path

from barfs.errors import BarfsError
from barfs.process.output import save
from barfs.registers import packed
from barfs.registers.apart import Packed, compile_apart
from barfs.registers.errors import DescriptionError
from barfs.registers.report import Compiled, check_file
from barfs.text import printable

_MAGIC = b"barfs registers 2\n"
_LARGEST = 1 << 30
_HASH_SIZE = hashlib.sha256().digest_size


def load(path: Path) -> Compiled:
    """The map of a description: the cached one, or a new one. Raises DescriptionError."""
    try:
        path = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        text = error.strerror if isinstance(error, OSError) else "leads round in a circle"
        raise DescriptionError(f"{printable(path)}: {text}") from None
    entry = _entry(path)
    if entry is not None and (found := _read(entry, path)):
        return found
    before = _hash(path)
    made = compile_apart(path)
    if entry is not None and before is not None and before == _hash(path):
        _write(entry, path, made)
    return Compiled(packed.unpack(made.data), made.files, made.warnings)


def folder() -> Path | None:
    """Where entries are; None for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "barfs"
    home = os.path.expanduser("~")
    return Path(home) / ".cache" / "barfs" if os.path.isabs(home) else None


def _entry(path: Path) -> Path | None:
    base = folder()
    if base is None:
        return None
    version = f"{sys.implementation.cache_tag} {sys.byteorder}"
    name = hashlib.sha256(f"{version}\0".encode() + os.fsencode(path)).hexdigest()
    return base / f"{name[:32]}.registers"


def _read(entry: Path, path: Path) -> Compiled | None:
    """The entry, when it can be trusted and its files are as they were."""
    try:
        # A FIFO in its place would keep an ordinary open waiting.
        fd = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = _contents(fd)
    except OSError:
        return None
    finally:
        os.close(fd)
    body, own_hash = data[:-_HASH_SIZE], data[-_HASH_SIZE:]
    if not body.startswith(_MAGIC) or hashlib.sha256(body).digest() != own_hash:
        return None
    del data
    head, files, warnings, contents = marshal.loads(memoryview(body)[len(_MAGIC) :])
    if head != os.fsencode(path) or any(_hash(Path(name)) != known for name, known in files):
        return None
    del body
    root = packed.unpack(contents)
    return Compiled(root, tuple(Path(name) for name, _known in files), warnings)


def _contents(fd: int) -> bytes:
    """What an entry holds, or nothing where it cannot be trusted. Raises OSError."""
    status = os.fstat(fd)
    if not _is_own(status) or status.st_size > _LARGEST:
        return b""
    with open(fd, "rb", closefd=False) as file:
        return file.read()


def _write(entry: Path, path: Path, made: Packed) -> None:
    files = [(str(file), _hash(file)) for file in made.files]
    if any(known is None for _name, known in files):
        return
    record = (os.fsencode(path), tuple(files), made.warnings, made.data)
    body = _MAGIC + marshal.dumps(record)
    with contextlib.suppress(OSError, BarfsError):
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # `save` writes into a FIFO and through a link, and keeps the owner and the mode of a file.
        with contextlib.suppress(FileNotFoundError):
            if not _is_own(os.lstat(entry)):
                os.unlink(entry)
        save(entry, body + hashlib.sha256(body).digest())


def _is_own(status: os.stat_result) -> bool:
    """Whether it is a file of this user that no other can write."""
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_uid == os.geteuid()
        and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )


def _hash(path: Path) -> bytes | None:
    """None for what is no description: one that is no file is never read to its end."""
    try:
        check_file(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except (OSError, DescriptionError):
        return None
