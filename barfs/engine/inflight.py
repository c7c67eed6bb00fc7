# SPDX-License-Identifier: MIT
"""The accesses in flight: memory is unmapped once there are none; how a request is ended."""

from barfs.engine.extension import ffi, lib


class InFlight:
    """The accesses in flight in a device's tables, which share it: counts them, can refuse more.

    It refuses every access of a forked child with `ForkedAccess`.
    """

    def __init__(self) -> None:
        self._in_flight = ffi.new("struct barfs_inflight *", {"forks": lib.barfs_forks})
        self._closed = False

    @property
    def inside(self) -> int:
        """The count of transfers that are in a table now."""
        return lib.barfs_inflight_inside(self._in_flight)

    @property
    def closed(self) -> bool:
        """Whether every access is refused."""
        return self._closed

    @property
    def drained(self) -> bool:
        """Whether it is closed and no transfer is left: none will come."""
        return self._closed and self.inside == 0

    def close(self) -> None:
        """Refuse every access from now on with `DeviceGone`. Idempotent."""
        lib.barfs_inflight_close(self._in_flight)
        self._closed = True

    def drain(self, timeout: float) -> bool:
        """Close, and wait up to `timeout` seconds; returns whether no transfer is left.

        A `Call` entry's function must not call this: its own transfer is one of them.
        """
        self.close()
        return lib.barfs_inflight_drain(self._in_flight, int(timeout * 1e9))


class Turns:
    """Shared by `Call` entries whose accesses take turns, as those of one connection do.

    An access that waits for its turn is not late while the device answers the others.
    """

    def __init__(self) -> None:
        self._turns = ffi.new("struct barfs_turns *")


class Control:
    """Ends the requests that carry it: after `stop()` they make no further access.

    A request that has transferred bytes then ends with a short count, another with `Interrupted`.
    Testing interface: the gate has a control for each of its requests, in C.
    """

    def __init__(self) -> None:
        self._control = ffi.new("struct barfs_control *")

    def stop(self) -> None:
        """End the requests. Idempotent."""
        lib.barfs_control_stop(self._control)
