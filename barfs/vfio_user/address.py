# SPDX-License-Identifier: MIT
"""Sockets by path, however long the path is.

The kernel takes addresses of at most 107 bytes (unix(7)). A longer path is opened, and the address
is what /proc/self/fd has of it; a relative path is used as it is.
"""

import contextlib
import errno
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from barfs.text.system_errors import reason

_LONGEST_ADDRESS = 107


def _fits(path: str) -> bool:
    return len(os.fsencode(path)) <= _LONGEST_ADDRESS


def connect(sock: socket.socket, path: str) -> None:
    """Connect to the socket at `path`. Raises OSError."""
    if _fits(path):
        sock.connect(path)
        return
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def path_problem(error: OSError) -> str:
    """What is wrong with a path that the kernel does not take, and what to do."""
    if error.errno == errno.ENAMETOOLONG:
        return (
            "it is too long, of 255 bytes for a name and 4095 for all of it; choose shorter names, "
            "or change into a directory on the way and give the rest"
        )
    return reason(error)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a socket is to be made: a name in an open directory. `path` is for messages, and the
    address where it fits."""

    path: str
    folder: int
    name: str

    def bind(self, sock: socket.socket, mode: int) -> None:
        """Make the socket, with what `mode` permits its owner and nobody else. Raises OSError."""
        address = self.path
        if not _fits(address):
            address = self._short(self.name)
        if _fits(address):
            _bind(sock, address, mode)
            return
        # A name that leaves no room for the directory: under a shorter one first.
        name = f".barfs-{secrets.token_hex(8)}"
        _bind(sock, self._short(name), mode)
        try:
            os.link(name, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)
        finally:
            os.unlink(name, dir_fd=self.folder)

    def _short(self, name: str) -> str:
        return f"/proc/self/fd/{self.folder}/{name}"

    def connect(self, sock: socket.socket) -> None:
        """Connect to what is there. Raises OSError."""
        fd = os.open(self.name, os.O_PATH | os.O_CLOEXEC, dir_fd=self.folder)
        try:
            sock.connect(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    def give(self, group: int) -> None:
        os.chown(self.name, -1, group, dir_fd=self.folder, follow_symlinks=False)

    def permit(self, mode: int) -> None:
        os.chmod(self.name, mode, dir_fd=self.folder)

    def taken(self) -> bool:
        try:
            self.status()
        except FileNotFoundError:
            return False
        return True

    def status(self) -> os.stat_result:
        return os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)

    def remove(self) -> None:
        os.unlink(self.name, dir_fd=self.folder)


def _bind(sock: socket.socket, address: str, mode: int) -> None:
    # A mode that is only changed afterwards would be wider than asked for a moment.
    previous = os.umask(0o777 & ~(mode & 0o700))
    try:
        sock.bind(address)
    finally:
        os.umask(previous)


@contextlib.contextmanager
def place_of(path: str) -> Iterator[Place]:
    """The place that `path` names; its directory stays open meanwhile. Raises OSError."""
    folder, name = os.path.split(path)
    fd = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Place(path, fd, name)
    finally:
        os.close(fd)
