# SPDX-License-Identifier: MIT
"""The entries of a table: ranges of a region, each with what an access of it reaches."""

from collections.abc import Callable
from dataclasses import dataclass

from barfs.engine.inflight import Turns
from barfs.engine.mapping import Mapping
from barfs.ranges import Range
from barfs.widths import WIDTHS, Widths


@dataclass(frozen=True, slots=True)
class Memory:
    """A mapped window: the entry's start is `offset` bytes into `mapping`."""

    mapping: Mapping
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One pread or pwrite per access of `fd`, in which the region begins at `fd_offset`.

    The caller keeps ownership of the descriptor, and must close it after the table's last access.
    """

    fd: int
    fd_offset: int


@dataclass(frozen=True, slots=True)
class Call:
    """One Python call per access, in the thread that accesses.

    `read(offset, width)` returns `width` bytes, `write(offset, data)` takes them; offsets are in
    the region. Both raise an `AccessError` when the device refuses, and bound their own time.
    `turns` is shared by the calls that wait for each other.
    """

    read: Callable[[int, int], bytes]
    write: Callable[[int, bytes], object]
    turns: Turns | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """No access is possible: `AccessDenied`."""


Target = Memory | Descriptor | Call | Refused


@dataclass(frozen=True, slots=True)
class TableEntry(Range):
    """A range of a region; `max_width` is the widest single access it takes: 1, 2, 4, 8.

    `allowed` are the widths that the user allows; with none of them up to `max_width`, none fits.
    """

    readable: bool
    writable: bool
    max_width: int
    target: Target
    allowed: Widths = WIDTHS

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of the accesses that it takes, the narrowest first."""
        return tuple(width for width in self.allowed if width <= self.max_width)

    def __post_init__(self) -> None:
        Range.__post_init__(self)
        if self.max_width not in WIDTHS:
            raise ValueError(f"{self}: max_width must be 1, 2, 4 or 8, not {self.max_width}")
        if not self.allowed or any(width not in WIDTHS for width in self.allowed):
            raise ValueError(f"{self}: allowed must be some of 1, 2, 4 and 8, not {self.allowed}")
        match self.target:
            case Memory(mapping, offset):
                self._check_memory(mapping, offset)
            case Descriptor(fd, fd_offset) if fd < 0 or fd_offset < 0:
                raise ValueError(f"{self}: fd {fd} at {fd_offset:#x}")

    def _check_memory(self, mapping: Mapping, offset: int) -> None:
        if not 0 <= offset <= mapping.size - self.size:
            raise ValueError(f"{self}: not inside its mapping of {mapping.size:#x} bytes")
        if (offset - self.start) % max(WIDTHS):
            raise ValueError(f"{self}: aligned differently in its mapping, at {offset:#x}")
        if self.readable > mapping.readable or self.writable > mapping.writable:
            raise ValueError(f"{self}: its mapping does not permit that")
