# SPDX-License-Identifier: MIT
"""Who is inside a device's tables; when it is safe to take memory away; how to end a transfer."""

from barfs.engine.extension import ffi, lib


class Occupancy:
    """One per device, shared by its tables: counts the accesses under way, and can refuse more.

    A process that is forked from this one is refused with `ForkedAccess`.
    """

    def __init__(self) -> None:
        self._occupancy = ffi.new("struct barfs_inflight *", {"forks": lib.barfs_forks})
        self._closed = False

    @property
    def inside(self) -> int:
        """How many transfers are under way now."""
        return lib.barfs_inflight_inside(self._occupancy)

    @property
    def closed(self) -> bool:
        """Every access is refused."""
        return self._closed

    @property
    def drained(self) -> bool:
        """Closed, and nobody is inside: nobody will ever be again."""
        return self._closed and self.inside == 0

    def close(self) -> None:
        """Refuse every access from now on with `DeviceGone`. Idempotent."""
        lib.barfs_inflight_close(self._occupancy)
        self._closed = True

    def drain(self, timeout: float) -> bool:
        """Close, and wait up to `timeout` seconds; returns whether nobody is inside any more.

        Not to be called by a `Call` entry's function, which is itself inside.
        """
        self.close()
        return lib.barfs_inflight_drain(self._occupancy, int(timeout * 1e9))


class Turns:
    """For `Call` entries whose accesses take turns, as those of one connection do.

    One that waits for its turn is not late while the device answers the others.
    """

    def __init__(self) -> None:
        self._turns = ffi.new("struct barfs_turns *")


class Control:
    """Ends the requests that carry it on `stop()`, which is looked at between accesses.

    Bytes already done are a short count; with none, `Interrupted`.
    """

    def __init__(self) -> None:
        self._control = ffi.new("struct barfs_control *")

    def stop(self) -> None:
        lib.barfs_control_stop(self._control)
