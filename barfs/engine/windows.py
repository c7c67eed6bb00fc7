# SPDX-License-Identifier: MIT
"""The live mappings of a region's windows.

Rule 1: one mmap for each window. Where windows touch, the driver may still refuse an mmap that
        reaches from one into the next.
Rule 2: a window that cannot be mapped is left to `pread`, with its reason; its neighbours stay.
"""

import errno
import logging

from barfs import engine
from barfs.backend import NoDescriptor
from barfs.layout import REASON_MMAP_FAILED, Layout, Segment
from barfs.uapi import RegionInfo

log = logging.getLogger(__name__)


class WindowMapper:
    """The live mappings of one region's windows, by their start, and why others have none."""

    def __init__(self, layout: Layout, info: RegionInfo, *, contiguous: bool) -> None:
        self.mappings: dict[int, engine.Mapping] = {}
        self.failed: dict[int, str] = {}
        self.reservation: engine.Reservation | None = None
        self._layout = layout
        self._info = info
        self._contiguous = contiguous

    def map_windows(self, fd: int | NoDescriptor) -> None:
        """Map each window by itself; what a backend without a descriptor has said is its reason."""
        windows = self._layout.windows
        if not isinstance(fd, int):
            self.failed = dict.fromkeys((window.start for window in windows), fd)
            return
        if self._contiguous:
            try:
                self.reservation = engine.Reservation(self._layout.size)
            except OSError as error:
                for window in windows:
                    self._fail(window, error)
                return
        for window in windows:
            try:
                self.mappings[window.start] = self._map(window, fd)
            except OSError as error:
                self._fail(window, error)
        if self.reservation is not None and not self.mappings:
            self.reservation.close()
            self.reservation = None

    def _fail(self, window: Segment, error: OSError) -> None:
        name = errno.errorcode.get(error.errno or 0, "EIO")
        region = f"{self._layout.region} of {self._layout.device}"
        log.warning("%s: window %#x-%#x: mmap: %s", region, window.start, window.end, name)
        self.failed[window.start] = f"{REASON_MMAP_FAILED}:{name}"

    def _map(self, window: Segment, fd: int) -> engine.Mapping:
        # Only the region's own end can lie inside a page, which is then the region's (plan()).
        size = -(-window.size // engine.PAGE_SIZE) * engine.PAGE_SIZE
        return engine.Mapping(
            fd,
            self._info.offset + window.start,
            size,
            window.readable,
            window.writable,
            within=self.reservation,
            at=window.start if self.reservation else 0,
        )
