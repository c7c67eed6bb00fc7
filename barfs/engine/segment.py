# SPDX-License-Identifier: MIT
"""What a table is made of: ranges of a region, and what an access of each of them reaches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from barfs.engine.inflight import Turns
from barfs.engine.mapping import Mapping

WIDTHS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Memory:
    """A mapped window: the segment's start is `offset` bytes into `mapping`."""

    mapping: Mapping
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One pread or pwrite per access: the segment's start is at `fd_offset` of `fd`.

    The fd stays the owner's; it outlives the table.
    """

    fd: int
    fd_offset: int


@dataclass(frozen=True, slots=True)
class Call:
    """One Python call per access, from whatever thread accesses.

    `read(offset, width)` returns `width` bytes, `write(offset, data)` takes them; offsets are in
    the region. Either raises an `AccessError` when the device refuses. `turns`: what it shares with
    the calls that it waits for; each gives up by itself when the device is silent for too long.
    """

    read: Callable[[int, int], bytes]
    write: Callable[[int, bytes], object]
    turns: Turns | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """No access is possible: `AccessDenied`."""


Target = Memory | Descriptor | Call | Refused


@dataclass(frozen=True, slots=True)
class Segment:
    """`[start, end)` of a region; `max_width` is the widest single access it takes: 1, 2, 4, 8."""

    start: int
    end: int
    readable: bool
    writable: bool
    max_width: int
    target: Target

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"{self}: not a range")
        if self.max_width not in WIDTHS:
            raise ValueError(f"{self}: max_width {self.max_width} is not 1, 2, 4 or 8")
        match self.target:
            case Memory(mapping, offset):
                self._check_memory(mapping, offset)
            case Descriptor(fd, fd_offset) if fd < 0 or fd_offset < 0:
                raise ValueError(f"{self}: fd {fd} at {fd_offset:#x}")

    def __str__(self) -> str:
        return f"segment [{self.start:#x}, {self.end:#x})"

    def _check_memory(self, mapping: Mapping, offset: int) -> None:
        size = self.end - self.start
        if not 0 <= offset <= mapping.size - size:
            raise ValueError(f"{self}: not inside its mapping of {mapping.size:#x} bytes")
        if (offset - self.start) % max(WIDTHS):
            raise ValueError(f"{self}: aligned differently in its mapping, at {offset:#x}")
        if self.readable > mapping.readable or self.writable > mapping.writable:
            raise ValueError(f"{self}: its mapping does not permit that")


def check_cover(segments: Sequence[Segment], size: int) -> None:
    """Raise ValueError unless `segments` cover `[0, size)` in order, without gap or overlap."""
    end = 0
    for segment in segments:
        if segment.start != end:
            fault = "overlaps" if segment.start < end else "leaves a gap after"
            raise ValueError(f"{segment} {fault} what ends at {end:#x}")
        end = segment.end
    if end != size or not segments:
        raise ValueError(f"the segments end at {end:#x}, the region at {size:#x}")
