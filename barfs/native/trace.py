# SPDX-License-Identifier: MIT
"""A file that gets a line for each access of a device; trace.h has its format."""

import os
import stat
from typing import Any

from barfs.errors import UsageError
from barfs.native.binding import ffi, lib
from barfs.surroundings import reason

HEADER = b"# barfs trace v1: time pid device region direction offset width value access\n"


class Trace:
    """The trace of one device, named `device` in it, at the end of the file `path`.

    Several may share a file. Raises UsageError where it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], device: str) -> None:
        self._device = device
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise UsageError(f"trace={path}: {reason(error)}") from error
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise UsageError(f"trace={path}: it is not a file")
        if status.st_size == 0:
            os.write(self._fd, HEADER)

    def of_region(self, name: str) -> Any:
        """What a table points to; it lives as long as the table does."""
        label = f"{self._device} {name}".encode()[: lib.BARFS_MOST_TRACE_NAME - 1]
        return ffi.new("struct barfs_trace *", {"fd": self._fd, "name": label})

    def close(self) -> None:
        """Once nobody uses any of its tables."""
        os.close(self._fd)
