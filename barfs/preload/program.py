# SPDX-License-Identifier: MIT
"""Which programs the dynamic linker does not load the library into (ld.so(8), elf(5))."""

import os
import stat
import struct
from typing import BinaryIO

_ELF = b"\x7fELF"
_PT_INTERP = 3
_HEADER_SIZE = 64
"""Of 64 bits; that of 32 is shorter."""


def why_not_reached(path: str) -> str | None:
    """Why a program will not load the library, in words that follow its name. Raises OSError."""
    found = os.stat(path)
    if (found.st_mode & stat.S_ISUID and found.st_uid != os.getuid()) or (
        found.st_mode & stat.S_ISGID and found.st_gid != os.getgid()
    ):
        return "runs with the rights of another user or group"
    return "is statically linked" if _is_static(path) else None


def _is_static(path: str) -> bool:
    """Whether it is an ELF file that asks for no dynamic linker."""
    try:
        with open(path, "rb") as file:
            return _lacks_interpreter(file)
    except (OSError, OverflowError, ValueError):
        return False  # it may be run but not read, or makes no sense


def _lacks_interpreter(file: BinaryIO) -> bool:
    head = file.read(_HEADER_SIZE)
    if (
        len(head) < _HEADER_SIZE
        or head[:4] != _ELF
        or head[4] not in (1, 2)
        or head[5] not in (1, 2)
    ):
        return False
    order, wide = "<" if head[5] == 1 else ">", head[4] == 2
    (start,) = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)
    size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
    file.seek(start)
    table = file.read(size * count)
    kinds = [table[place : place + 4] for place in range(0, len(table), size or 1)]
    return struct.pack(order + "I", _PT_INTERP) not in kinds
