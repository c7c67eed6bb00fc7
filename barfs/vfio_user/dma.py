# SPDX-License-Identifier: MIT
"""The memory that a client offers to a software device: ranges of addresses, and nothing else.

The device does no DMA, so it only checks the ranges as the specification asks.
"""

from bisect import bisect_left, bisect_right

from barfs.vfio_user.wire import BadRange, RangeExists, TooManyRanges

MOST_RANGES = 65535
"""The default of `max_dma_maps` in a VERSION, and the kernel's own limit."""

_END_OF_ADDRESSES = 1 << 64


class DmaRanges:
    """Ordered ranges without overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, size: int) -> None:
        """Raises RangeExists where the range overlaps another, BadRange, TooManyRanges."""
        end = start + size
        if size == 0 or end > _END_OF_ADDRESSES:
            raise BadRange(f"DMA_MAP: {size:#x} bytes at {start:#x}")
        place = bisect_right(self._ends, start)
        if place < len(self._starts) and self._starts[place] < end:
            raise RangeExists(f"DMA_MAP: {start:#x}..{end:#x} is already mapped")
        if len(self._starts) == MOST_RANGES:
            raise TooManyRanges(f"DMA_MAP: more than {MOST_RANGES} ranges")
        self._starts.insert(place, start)
        self._ends.insert(place, end)

    def remove(self, start: int, size: int) -> None:
        """Remove the ranges within `start..start + size`, if there are any.

        Raises BadRange where one is only partly inside, as drivers/vfio/vfio_iommu_type1.c does.
        """
        if size == 0:
            return
        end = start + size
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        if first >= last:
            return
        if self._starts[first] < start or self._ends[last - 1] > end:
            raise BadRange(f"DMA_UNMAP: {start:#x}..{end:#x} is only a part of what was mapped")
        del self._starts[first:last], self._ends[first:last]

    def clear(self) -> None:
        self._starts.clear()
        self._ends.clear()
