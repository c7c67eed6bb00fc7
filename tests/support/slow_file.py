# SPDX-License-Identifier: MIT
"""A file whose accesses take as long as a test wants: a FUSE mount on a file, in this process."""

import contextlib
import ctypes
import os
import queue
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.support.userfault import PAGE, PATIENCE, Fault

_HEADER = struct.Struct("<IIQQIIIHH")
_TRANSFER = struct.Struct("<QQIIQII")
_GETATTR, _OPEN, _READ, _WRITE, _FORGET, _INIT, _INTERRUPT = 3, 14, 15, 16, 2, 26, 36
_ATTRIBUTES = struct.Struct("<QII QQQQQQIIIIIIIIII")
_MOST = 1 << 17
_DIRECT_IO, _PARALLEL_WRITES = 1, 1 << 6


class SlowFile:
    """Accesses wait, page by page, until the page is filled; each is one request."""

    def __init__(self, size: int, path: Path) -> None:
        self._contents = bytearray(size)
        self._filled: set[int] = set()
        self._waiting: dict[int, list[bytes]] = {}
        self._faults: queue.Queue[Fault] = queue.Queue()
        self._lock = threading.Lock()
        self._fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self._fuse},rootmode=100600,user_id={os.getuid()},group_id={os.getgid()}"
        if libc.mount(b"slow", os.fsencode(path), b"fuse", 6, options.encode()):
            raise OSError(ctypes.get_errno(), "mount")
        self._path = path
        self._thread = threading.Thread(target=self._serve, name="slow-file")
        self._thread.start()
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def wait(self) -> Fault:
        """The next access that waits."""
        return self._faults.get(timeout=PATIENCE)

    def fill(self, page: int) -> None:
        """Give a page its contents: each byte is the page's number plus 1. Accesses go on."""
        with self._lock:
            self._contents[page * PAGE : (page + 1) * PAGE] = bytes([page + 1]) * PAGE
            self._filled.add(page)
            for message in self._waiting.pop(page, []):
                self._transfer(message)

    def close(self) -> None:
        """All accesses that wait fail."""
        libc = ctypes.CDLL(None, use_errno=True)
        os.close(self.fd)
        libc.umount2(os.fsencode(self._path), 1 | 2)  # MNT_FORCE: aborts; MNT_DETACH
        self._thread.join(PATIENCE)
        os.close(self._fuse)

    def _serve(self) -> None:
        while True:
            try:
                message = os.read(self._fuse, _MOST + 4096)
            except OSError:  # ENODEV: unmounted
                return
            _, opcode, _, _, _, _, thread, *_ = _HEADER.unpack_from(message)
            if opcode == _INIT:
                self._reply(
                    message, struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 9, 9, _MOST, 1, 0, 0, 0)
                )
            elif opcode == _GETATTR:
                size = len(self._contents)
                body = _ATTRIBUTES.pack(
                    0, 0, 0, 1, size, 0, 0, 0, 0, 0, 0, 0, 0o100600, 1, *[0] * 5
                )
                self._reply(message, body)
            elif opcode == _OPEN:
                self._reply(message, struct.pack("<QII", 0, _DIRECT_IO | _PARALLEL_WRITES, 0))
            elif opcode in (_READ, _WRITE):
                self._hold(message, thread)
            elif opcode not in (_FORGET, _INTERRUPT):
                self._reply(message, b"", -38)  # ENOSYS

    def _hold(self, message: bytes, thread: int) -> None:
        page = _TRANSFER.unpack_from(message, _HEADER.size)[1] // PAGE
        with self._lock:
            if page in self._filled:
                self._transfer(message)
                return
            self._waiting.setdefault(page, []).append(message)
        self._faults.put(Fault(page, thread))

    def _transfer(self, message: bytes) -> None:
        _, offset, count, *_ = _TRANSFER.unpack_from(message, _HEADER.size)
        end = offset + count
        if _HEADER.unpack_from(message)[1] == _READ:
            self._reply(message, bytes(self._contents[offset:end]))
        else:
            self._contents[offset:end] = message[_HEADER.size + _TRANSFER.size :]
            self._reply(message, struct.pack("<II", count, 0))

    def _reply(self, message: bytes, body: bytes, error: int = 0) -> None:
        unique = _HEADER.unpack_from(message)[2]
        with contextlib.suppress(FileNotFoundError):  # interrupted
            os.write(self._fuse, struct.pack("<IiQ", 16 + len(body), error, unique) + body)


@contextlib.contextmanager
def slow_file(size: int, path: Path) -> Iterator[SlowFile]:
    path.touch()
    file = SlowFile(size, path)
    try:
        yield file
    finally:
        file.close()
