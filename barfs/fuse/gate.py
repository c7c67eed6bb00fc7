# SPDX-License-Identifier: MIT
"""The Python side of the gate: registers devices and runs its threads.

Rule 1: the threads are Python's, so that the function of a `Call` finds an interpreter; each enters
        C once, without the GIL, and stays there until the gate is stopped.
Rule 2: they are daemons: one that hangs inside an access does not keep the process alive.
Rule 3: a table registered with the gate lives until the gate is closed.
"""

import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from barfs.engine.extension import ffi, lib
from barfs.engine.ownership import Owner
from barfs.engine.table import Table
from barfs.errors import access_error
from barfs.text.system_errors import reason

# Room for the largest request to libfuse, or its reply; the kernel caps it at net.core.wmem_max.
_SOCKET_BUFFER = 2 << 20

_NO_WORK_YET = 1.0
"""Seconds for threads to leave that have only just started."""

_OPERATIONS = {
    lib.BARFS_LOG_READ: "read",
    lib.BARFS_LOG_WRITE: "write",
    lib.BARFS_LOG_OPEN: "open",
}

log = logging.getLogger(__name__)


def _reason_of(result: int) -> str:
    """The message for a negative errno."""
    return reason(OSError(-result, os.strerror(-result)))


class Gate:
    """Answers requests from `fuse_fd` on region files, and passes the others on to libfuse.

    `libfuse_fd` is the descriptor for libfuse (`/dev/fd/N`), which closes it. The caller keeps
    `fuse_fd` and closes it after `stop`. Raises OSError.
    """

    def __init__(self, fuse_fd: int) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        self._gate = lib.barfs_gate_new(fuse_fd, self._socket.fileno())
        if self._gate == ffi.NULL:
            error = ffi.errno
            self._socket.close()
            theirs.close()
            raise OSError(error, os.strerror(error))
        self.libfuse_fd = theirs.detach()
        self._tables: dict[int, tuple[str, Table]] = {}  # by address, with the device's name
        self._threads: list[threading.Thread] = []
        self._owner = Owner()

    def add_device(self, name: str, regions: dict[int, tuple[Table, bool, bool]]) -> "DeviceGate":
        """Answer requests for a device's regions, called `name` in the log.

        `regions` gives by node id the table, and whether opens may read and write.
        """
        return DeviceGate(self, name, regions)

    def start(self, on_end: Callable[[], None]) -> None:
        """Start the threads. One of them calls `on_end` when `/dev/fuse` has no more requests.

        Raises RuntimeError if a thread cannot be started; the others have left by then.
        """

        def read() -> None:
            error = lib.barfs_gate_read_loop(self._gate)
            if error:
                log.error("the gate stopped reading requests: %s", _reason_of(error))
            on_end()

        try:
            self._run("gate-reader", read)
            self._run("gate-replies", lib.barfs_gate_reply_loop, self._gate)
            self._run("gate-notify", lib.barfs_gate_notify_loop, self._gate)
            self._run("gate-watch", lib.barfs_gate_watch_loop, self._gate)
            self._run("gate-lanes", self._start_lanes)
            self._run("gate-errors", self._log_errors)
        except RuntimeError:
            self.stop(_NO_WORK_YET)
            raise

    def stop(self, timeout: float) -> bool:
        """Make the threads leave; returns whether all have within `timeout` seconds.

        Waiting requests are answered with ENODEV; running ones end after their access with a short
        count. A thread that has not left hangs inside an access. Its request has been answered, and
        if the access returns later, the thread writes nothing to `fuse_fd`. A forked child has no
        such threads, and nothing to stop.
        """
        if not self._owner.is_here:
            return False
        end = time.monotonic() + timeout
        lib.barfs_gate_stop(self._gate, int(timeout * 1e9))
        for thread in self._threads:
            thread.join(max(0, end - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):
            return True
        lib.barfs_gate_abandon(self._gate)
        return False

    def close(self) -> None:
        """Free it, after `stop` returned True and libfuse no longer uses its descriptor."""
        lib.barfs_gate_free(self._gate)
        self._socket.close()
        self._tables.clear()

    def _run(self, name: str, function: Callable[..., object], *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _start_lanes(self) -> None:
        while (lane := lib.barfs_gate_next_lane(self._gate)) != ffi.NULL:
            try:
                self._run("gate-lane", self._run_lane, lane)
            except RuntimeError as error:  # the user's limit of threads
                log.error("cannot start a thread for a device: %s", reason(error))
                lib.barfs_lane_fail(lane)

    def _log_errors(self) -> None:
        entry = ffi.new("struct barfs_logged_error *")
        while lib.barfs_gate_next_error(self._gate, entry):
            if entry.table == ffi.NULL:
                log.warning("%d more requests failed", entry.more)
                continue
            device, table = self._tables[int(ffi.cast("uintptr_t", entry.table))]
            what = f"{_OPERATIONS[entry.operation]} of "
            if entry.operation == lib.BARFS_LOG_OPEN:
                what += f"{table.name}: {os.strerror(entry.error)}"
            else:
                problem = ""
                if entry.error == errno.EINVAL:
                    problem = table.width_problem(entry.offset, entry.count)
                what += str(
                    access_error(
                        entry.error,
                        problem,
                        region=table.name,
                        offset=entry.offset,
                        width=entry.count,
                    )
                )
            more = f", and {entry.more} more" if entry.more else ""
            log.warning("%s: %s%s", device, what, more)

    def _run_lane(self, lane: Any) -> None:
        # The frame of a thread that hangs keeps `self`, and so the tables it uses.
        lib.barfs_lane_run(lane)


class DeviceGate:
    """One device's part of a gate."""

    def __init__(self, gate: Gate, name: str, regions: dict[int, tuple[Table, bool, bool]]) -> None:
        self._gate = gate
        self._lanes: Any = lib.barfs_gate_add_device(gate._gate)
        if self._lanes == ffi.NULL:
            raise OSError(ffi.errno, os.strerror(ffi.errno))
        self._node_ids = list(regions)
        for node_id, (table, readable, writable) in regions.items():
            gate._tables[int(ffi.cast("uintptr_t", table._table))] = name, table
            permission = (lib.BARFS_MAY_READ if readable else 0) | (
                lib.BARFS_MAY_WRITE if writable else 0
            )
            result = lib.barfs_gate_add_region(
                gate._gate, node_id, table._table, permission, self._lanes
            )
            if result:
                raise OSError(-result, os.strerror(-result))

    def remove(self) -> None:
        """Answer requests with ENODEV, opens with ENXIO, once the device's accesses are closed."""
        for node_id in self._node_ids:
            lib.barfs_gate_remove_region(self._gate._gate, node_id)
        lib.barfs_lanes_stop(self._lanes)
