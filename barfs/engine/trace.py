# SPDX-License-Identifier: MIT
"""A file that gets a line for each access of a device; trace.h has its format."""

import logging
import os
import stat
import threading
from typing import Any

from barfs.engine.extension import ffi, lib
from barfs.engine.ownership import keep_from_children
from barfs.errors import UsageError
from barfs.text.system_errors import reason

HEADER = b"# barfs trace v1: time pid device region direction offset width value access\n"

log = logging.getLogger(__name__)

_beginning = threading.Lock()
"""Devices that are opened side by side begin one file."""


def _unlock() -> None:
    """In a forked child, where no thread will release the lock."""
    global _beginning
    _beginning = threading.Lock()


os.register_at_fork(after_in_child=_unlock)


class Trace:
    """The trace of one device, named `device` in it, at the end of the file `path`.

    Several may share a file. A file that has reached `limit` bytes is renamed to `path`.1, in the
    place of an older one, and begun anew. A trace that can no longer be written ends, with a line
    in the log. Raises UsageError where it cannot be written at all.
    """

    def __init__(self, path: str | os.PathLike[str], device: str, limit: int) -> None:
        self._device = device
        self._path = os.path.realpath(path)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._fd = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise UsageError(f"trace={path}: {reason(error)}") from error
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise UsageError(f"trace must name a regular file, not {path}")
            with _beginning:
                if os.fstat(self._fd).st_size == 0:
                    os.write(self._fd, HEADER)
            self._told = os.eventfd(0, os.EFD_CLOEXEC)
        except OSError as error:
            os.close(self._fd)
            raise UsageError(f"trace={path}: {reason(error)}") from error
        except UsageError:
            os.close(self._fd)
            raise
        name = os.fsencode(self._path)
        texts = {
            "path": ffi.new("char[]", name),
            "older": ffi.new("char[]", name + b".1"),
            "header": ffi.new("char[]", HEADER),
        }
        self._kept = texts  # the structure only points to them
        facts = {"fd": self._fd, "told": self._told, "limit": limit}
        self._file = ffi.new("struct barfs_trace_file *", facts | texts)
        self._teller = threading.Thread(target=self._tell, name="barfs-trace", daemon=True)
        self._teller.start()
        keep_from_children(self)

    def of_region(self, name: str) -> Any:
        """The C structure for a table, which must keep it alive."""
        label = f"{self._device} {name}".encode()[: lib.BARFS_MOST_TRACE_NAME - 1]
        return ffi.new("struct barfs_trace *", {"file": self._file, "name": label})

    def _tell(self) -> None:
        """Log the end of the trace, in a thread of its own: no access waits for the log."""
        os.eventfd_read(self._told)
        error = lib.barfs_trace_error(self._file)
        if error:
            why = reason(OSError(error, os.strerror(error)))
            if lib.barfs_trace_unmoved(self._file):
                why = f"it has reached its limit and cannot be moved to {self._path}.1: {why}"
            log.error("%s: the trace in %s ends: %s", self._device, self._path, why)

    def close(self) -> None:
        """Close the file; only once no access is in flight in its tables."""
        os.eventfd_write(self._told, 1)
        self._teller.join()
        fds = self.descriptors()
        self._fd = self._told = -1
        for fd in fds:
            os.close(fd)
        if missed := lib.barfs_trace_missed(self._file):
            log.warning(
                "%s: %d accesses are not in the trace in %s", self._device, missed, self._path
            )

    def descriptors(self) -> tuple[int, int]:
        """The descriptors that a child must not keep open."""
        return self._fd, self._told
