# SPDX-License-Identifier: MIT
"""A region of an open device, as Python sees it.

Rule 1: every access of a region goes through its one `engine.Table`, the mount's included.
Rule 2: users have the methods of `Region`. The functions at the end are for the rest of barfs: the
        device that owns the region, the mount that serves it, the dump that reads it.
"""

from collections.abc import Sequence

from barfs import engine
from barfs.engine.windows import MappedWindows
from barfs.errors import ForkedDevice, UsageError
from barfs.layout import Layout, Segment
from barfs.policy import Restriction


class Region:
    """A region of an open device; offsets and counts are bytes in the region.

    `read8`..`read64` and `write8`..`write64` are exactly one access of that width, to a
    little-endian register, or an `AccessError`: InvalidAccess where it is misaligned or wider than
    the place allows, BeyondEnd, AccessDenied, PolicyDenied, BusFault, DeviceGone, AccessTimeout,
    ForkedAccess. A negative offset is a UsageError.

    `readable`, `writable`: whether any part can be, by the device and the options; a policy does
    not change what can be opened.

        >>> import barfs
        >>> device = barfs.open("demo")
        >>> bar0 = device["bar0"]
        >>> bar0
        <bar0 of ffff:00:00.0, 0x10000 bytes>
        >>> bar0.read(0x1000, 4), bar0.write(0x1000, b"BARF"), hex(bar0.read32(0x1000))
        (b'barf', 4, '0x46524142')
        >>> bar0.read32(0x2)
        Traceback (most recent call last):
            ...
        barfs.errors.InvalidAccess: bar0+0x2 (4 bytes): width or alignment not possible here
        >>> device.close()
        True
    """

    def __init__(
        self,
        layout: Layout,
        table: engine.Table,
        mapped: MappedWindows,
        backing: tuple[int, int] | None,
        *,
        restricted: bool = False,
    ) -> None:
        self.layout = layout.merged()
        self.name = layout.region
        self.size = layout.size
        self.readable = layout.readable
        self.writable = layout.writable
        self._table = table
        self._backing = backing
        self._windows = layout.windows
        self._restricted = restricted
        self._owner = engine.Owner()
        self._mappings = list(mapped.mappings.values())
        self._reservation = mapped.reservation
        # One call less, of two: 185 ns instead of 205.
        self.__dict__["read32"] = table.load32

    def __repr__(self) -> str:
        return f"<{self.name} of {self.layout.device}, {self.size:#x} bytes>"

    @property
    def address(self) -> int:
        """Where the region begins in this process; each window is at its own offset from there.

        The rest of the range is reserved and not accessible. Needs `mapping="contiguous"`, at
        least one window, and neither a policy nor widths for this region (a mapping cannot
        enforce them), else UsageError. Valid until the device is closed, and in this process: one
        that is forked from it has nothing there (ForkedDevice).
        """
        if not self._owner.is_here:
            raise forked(self.layout.device)
        if self._restricted:
            raise UsageError(f"{self.name} has no address: a policy or widths restrict it")
        if not self.layout.windows:
            raise UsageError(f"{self.name} has no address: it has no window; its layout says why")
        if self._reservation is None:
            raise UsageError(f"{self.name} has no address: open with mapping='contiguous'")
        return self._reservation.address

    def read(self, offset: int, count: int) -> bytes:
        """Read up to `count` bytes, cut into accesses as a read of the file would be.

        Shorter at the end of the region and where a later access failed; empty past the end.
        Raises AccessError when the first access failed.
        """
        return self._table.read(offset, count)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> int:
        """Write `data`, cut into accesses as a write to the file would be; returns bytes written.

        Raises AccessError when the first access failed, BeyondEnd past the end.
        """
        return self._table.write(offset, data)

    def read8(self, offset: int) -> int:
        """Read the byte at `offset`. Raises AccessError."""
        return self._table.load(offset, 1)

    def read16(self, offset: int) -> int:
        """Read the 2 bytes at `offset`, a multiple of 2, in one access. Raises AccessError."""
        return self._table.load(offset, 2)

    def read32(self, offset: int) -> int:
        """Read the 4 bytes at `offset`, a multiple of 4, in one access. Raises AccessError."""
        return self._table.load32(offset)

    def read64(self, offset: int) -> int:
        """Read the 8 bytes at `offset`, a multiple of 8, in one access. Raises AccessError."""
        return self._table.load(offset, 8)

    def write8(self, offset: int, value: int) -> None:
        """Write the byte at `offset`.

        Raises AccessError, and ValueError for a value outside 0..0xff.
        """
        self._table.store(offset, 1, value)

    def write16(self, offset: int, value: int) -> None:
        """Write the 2 bytes at `offset`, a multiple of 2, in one access.

        Raises AccessError, and ValueError for a value outside 0..0xffff.
        """
        self._table.store(offset, 2, value)

    def write32(self, offset: int, value: int) -> None:
        """Write the 4 bytes at `offset`, a multiple of 4, in one access.

        Raises AccessError, and ValueError for a value outside 0..0xffff_ffff.
        """
        self._table.store(offset, 4, value)

    def write64(self, offset: int, value: int) -> None:
        """Write the 8 bytes at `offset`, a multiple of 8, in one access.

        Raises AccessError, and ValueError for a value outside 0..0xffff_ffff_ffff_ffff.
        """
        self._table.store(offset, 8, value)


def forked(device: str) -> ForkedDevice:
    """The error of a use of `device` in a process that was forked from its owner."""
    return ForkedDevice(f"{device} belongs to the process that opened it, which forked this one")


def table_of(region: Region) -> engine.Table:
    """The table that the region's accesses go through, for the gate of a mount."""
    return region._table


def backing_of(region: Region) -> tuple[int, int] | None:
    """The descriptor that windows are mapped from, and where in it the region begins, in bytes.

    None for a region without windows. The device keeps ownership.
    """
    return region._backing


def windows_of(region: Region) -> tuple[Segment, ...]:
    """The mapped windows, one for each mapping, also where they touch; none under a policy, which
    a mapping cannot enforce."""
    return () if region._restricted else region._windows


def is_window(region: Region, start: int, end: int) -> bool:
    """Whether accesses of `[start, end)` are loads and stores, which need no answer."""
    return any(part.start <= start and end <= part.end for part in region.layout.windows)


def restrict(region: Region, restrictions: Sequence[Restriction]) -> None:
    """Put a policy in force; for the device that opens the region, before a user has it."""
    region._restricted = True
    region.layout = region.layout.restricted(restrictions)
    no_reads = [part for part in restrictions if part.permission == "none"]
    region._table.deny(no_reads, restrictions)


def unmap(region: Region) -> None:
    """Unmap the windows; for the device that closes the region, once no access is in flight."""
    for mapping in region._mappings:
        mapping.close()
    if region._reservation is not None:
        region._reservation.close()
    region._mappings, region._reservation = [], None
