# SPDX-License-Identifier: MIT
"""The live mappings of a region's windows.

Rule 1: one mmap for each window. Where windows touch, the driver may still refuse an mmap that
        reaches from one into the next.
Rule 2: a window that cannot be mapped keeps its error; its neighbours stay.
"""

from collections.abc import Sequence
from typing import Protocol

from barfs.engine.mapping import PAGE_SIZE, Mapping, Reservation
from barfs.ranges import align_up


class Window(Protocol):
    """A range of a region that may be mapped, in bytes from the region's start."""

    @property
    def start(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def readable(self) -> bool: ...
    @property
    def writable(self) -> bool: ...


class MappedWindows:
    """The mappings of `windows`, by their start, from `fd`, in which the region begins at `offset`.

    With `reserve`, the size of the region in bytes, all are in one `reservation` of its shape.
    `failed` has the errors of the windows that could not be mapped.
    """

    def __init__(
        self, windows: Sequence[Window], fd: int, offset: int, *, reserve: int | None = None
    ) -> None:
        self.mappings: dict[int, Mapping] = {}
        self.failed: dict[int, OSError] = {}
        self.reservation: Reservation | None = None
        self._fd = fd
        self._offset = offset
        if reserve is not None:
            try:
                self.reservation = Reservation(reserve)
            except OSError as error:
                self.failed = {window.start: error for window in windows}
                return
        for window in windows:
            try:
                self.mappings[window.start] = self._map(window)
            except OSError as error:
                self.failed[window.start] = error
        if self.reservation is not None and not self.mappings:
            self.reservation.close()
            self.reservation = None

    def _map(self, window: Window) -> Mapping:
        # Only the region's own end can lie inside a page, which is then the region's.
        size = align_up(window.size, PAGE_SIZE)
        return Mapping(
            self._fd,
            self._offset + window.start,
            size,
            window.readable,
            window.writable,
            within=self.reservation,
            at=window.start if self.reservation else 0,
        )
