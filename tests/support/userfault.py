# SPDX-License-Identifier: MIT
"""Memory whose accesses take as long as a test wants: userfaultfd(2) on pages without contents."""

import contextlib
import ctypes
import fcntl
import os
import select
import struct
from collections.abc import Iterator
from dataclasses import dataclass

PAGE = os.sysconf("SC_PAGESIZE")
PATIENCE = 10.0

_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_UFFDIO_API, _UFFDIO_REGISTER, _UFFDIO_COPY = 0xC018AA3F, 0xC020AA00, 0xC028AA03
_API, _MISSING_SHMEM, _THREAD_ID = 0xAA, 1 << 5, 1 << 8
_MISSING = 1
_PAGEFAULT = 0x12
_MESSAGE = struct.Struct("<B7xQQI4x")  # event, flags, address, thread


@dataclass(frozen=True, slots=True)
class Fault:
    """An access that waits: the number of its page, and the thread's id."""

    page: int
    thread: int


class Userfault:
    """Accesses of `[address, address + size)` wait, page by page, until the page is filled."""

    def __init__(self, address: int, size: int) -> None:
        self._address = address
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.syscall(_SYS_USERFAULTFD[os.uname().machine], os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        features = _MISSING_SHMEM | _THREAD_ID
        fcntl.ioctl(self._fd, _UFFDIO_API, struct.pack("<QQQ", _API, features, 0))
        fcntl.ioctl(self._fd, _UFFDIO_REGISTER, struct.pack("<QQQQ", address, size, _MISSING, 0))

    def wait(self, patience: float | None = PATIENCE) -> Fault:
        """The next access that waits."""
        ready, _, _ = select.select([self._fd], [], [], patience)
        assert ready, "no access came"
        event, _flags, address, thread = _MESSAGE.unpack(os.read(self._fd, _MESSAGE.size))
        assert event == _PAGEFAULT
        return Fault((address - self._address) // PAGE, thread)

    def fill(self, page: int) -> None:
        """Give a page its contents: each byte is the page's number plus 1. Accesses go on."""
        contents = ctypes.create_string_buffer(bytes([page + 1]) * PAGE, PAGE)
        source = ctypes.addressof(contents)
        place = self._address + page * PAGE
        fcntl.ioctl(self._fd, _UFFDIO_COPY, struct.pack("<QQQQq", place, source, PAGE, 0, 0))

    def close(self) -> None:
        """All accesses go on."""
        os.close(self._fd)


@contextlib.contextmanager
def userfault(address: int, size: int) -> Iterator[Userfault]:
    faults = Userfault(address, size)
    try:
        yield faults
    finally:
        faults.close()
