# SPDX-License-Identifier: MIT
"""Sockets by path, however long the path is.

The kernel accepts addresses of at most 107 bytes (unix(7)). For a longer path, the code opens its
directory and uses an address in /proc/self/fd; a relative path stays relative.
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
    """The problem with a path that the kernel refuses, and its remedy."""
    if error.errno == errno.ENAMETOOLONG:
        return (
            "the path is too long: a name has at most 255 bytes, a path 4095; use shorter names, "
            "or change into a directory on the way and give a relative path"
        )
    return reason(error)


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a socket: a name in an open directory.

    `path` is for messages, and is the address if it is short enough.
    """

    path: str
    folder: int
    name: str

    def bind(self, sock: socket.socket, mode: int) -> None:
        """Make the socket; its mode is the owner's part of `mode`. Raises OSError."""
        address = self.path
        if not _fits(address):
            address = self._short(self.name)
        if _fits(address):
            _bind(sock, address, mode)
            return
        # The name leaves no room for its directory: bind to a shorter one, then rename by links.
        name = f".barfs-{secrets.token_hex(8)}"
        _bind(sock, self._short(name), mode)
        try:
            os.link(name, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)
        finally:
            os.unlink(name, dir_fd=self.folder)

    def _short(self, name: str) -> str:
        return f"/proc/self/fd/{self.folder}/{name}"

    def connect(self, sock: socket.socket) -> None:
        """Connect to the socket there. Raises OSError."""
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
    # By umask: with chmod alone, the mode would be too wide for a moment.
    previous = os.umask(0o777 & ~(mode & 0o700))
    try:
        sock.bind(address)
    finally:
        os.umask(previous)


@contextlib.contextmanager
def place_of(path: str) -> Iterator[Place]:
    """The place that `path` names, with its directory open. Raises OSError."""
    folder, name = os.path.split(path)
    fd = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Place(path, fd, name)
    finally:
        os.close(fd)
