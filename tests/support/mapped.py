# SPDX-License-Identifier: MIT
"""What programs do with mappings, by the functions of C that they call. Tests import this in the
programs that they start with `barfs run`, and print what they see.

Rule 1: standard library only, and nothing of barfs.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path

PAGE = 0x1000
READ, WRITE, EXEC = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC
SHARED, PRIVATE, FIXED, NOREPLACE = 0x01, 0x02, 0x10, 0x100000

libc = ctypes.CDLL(None, use_errno=True)
_FAILED = ctypes.c_void_p(-1).value
libc.mmap.restype = libc.mmap64.restype = libc.mremap.restype = ctypes.c_void_p
_INT, _ADDRESS, _SIZE = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
_MAP = (_ADDRESS, _SIZE, _INT, _INT, _INT, ctypes.c_int64)
libc.mmap.argtypes = libc.mmap64.argtypes = _MAP
libc.munmap.argtypes = (_ADDRESS, _SIZE)
libc.mprotect.argtypes = libc.msync.argtypes = (_ADDRESS, _SIZE, _INT)
libc.mremap.argtypes = (_ADDRESS, _SIZE, _SIZE, _INT)


def _checked(result: int | None) -> int:
    if result in (_FAILED, -1):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result or 0


def map_file(
    file: str | int,
    length: int,
    offset: int = 0,
    protection: int = READ | WRITE,
    flags: int = SHARED,
    address: int = 0,
) -> int:
    """mmap of a file by name (then opened for this, and closed again) or descriptor."""
    fd = os.open(file, os.O_RDWR) if isinstance(file, str) else file
    try:
        return _checked(libc.mmap(address, length, protection, flags, fd, offset))
    finally:
        if isinstance(file, str):
            os.close(fd)


def reserve(length: int) -> int:
    """Memory of the program's own, with ones in it."""
    base = _checked(libc.mmap(0, length, READ | WRITE, PRIVATE | 0x20, -1, 0))
    ctypes.memset(base, 1, length)
    return base


def unmap(address: int, length: int) -> None:
    _checked(libc.munmap(address, length))


def protect(address: int, length: int, protection: int) -> None:
    _checked(libc.mprotect(address, length, protection))


def sync(address: int, length: int) -> None:
    _checked(libc.msync(address, length, 4))


def remap(address: int, length: int, new: int, flags: int = 1) -> int:
    return _checked(libc.mremap(address, length, new, flags))


def load(address: int) -> int:
    return ctypes.c_uint32.from_address(address).value


def store(address: int, value: int) -> None:
    ctypes.c_uint32.from_address(address).value = value


def error_of(call: Callable[..., object], *arguments: object, **named: object) -> str:
    """The name of the error that a call fails with, or `ok`."""
    try:
        call(*arguments, **named)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def shape(address: int, length: int) -> list[tuple[int, int, str]]:
    """The parts of what is mapped there: start and end from the address, and permissions."""
    parts = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if start < address + length and end > address:
            parts.append((start - address, end - address, line.split()[1]))
    return parts
