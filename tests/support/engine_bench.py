# SPDX-License-Identifier: MIT
"""A test bench for the engine: memfds, recorders, and a second version of the splitting rule.

`split` is the oracle: written from the text of barfs(7), as plainly as possible, and
independently of transfer.c.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from barfs import engine
from barfs.errors import AccessError

PAGE = engine.PAGE_SIZE


@dataclass(frozen=True)
class Place:
    """An entry, as far as splitting goes."""

    start: int
    end: int
    max_width: int
    allowed: tuple[int, ...] = (1, 2, 4, 8)


@dataclass(frozen=True)
class Access:
    offset: int
    width: int

    @property
    def end(self) -> int:
        return self.offset + self.width


def split(places: list[Place], file_width: int, offset: int, count: int) -> list[Access]:
    """The accesses that a request must become, in order; ValueError if they cannot make it up."""
    size = places[-1].end
    end = min(offset + count, size)
    length = end - offset
    if length <= 0:
        return []
    own_width = length in (1, 2, 4, 8) and offset % length == 0
    limit = length if own_width else file_width
    accesses = []
    while offset < end:
        place = next(place for place in places if place.start <= offset < place.end)
        stop = min(end, place.end)
        taken = [width for width in place.allowed if width <= place.max_width]
        within = [width for width in taken if width <= limit] or taken[:1]
        fits = [width for width in within if offset % width == 0 and width <= stop - offset]
        if not fits:
            raise ValueError(f"nothing fits at {offset:#x}")
        accesses.append(Access(offset, fits[-1]))
        offset += fits[-1]
    return accesses


@dataclass
class Recorder:
    """A device of RAM behind a `Call` entry, that writes down each access."""

    memory: bytearray
    accesses: list[Access] = field(default_factory=list)
    fail_at: int | None = None
    error: BaseException | None = None

    def read(self, offset: int, width: int) -> bytes:
        self._note(offset, width)
        return bytes(self.memory[offset : offset + width])

    def write(self, offset: int, data: bytes) -> None:
        self._note(offset, len(data))
        self.memory[offset : offset + len(data)] = data

    def target(self) -> engine.Call:
        return engine.Call(self.read, self.write)

    def _note(self, offset: int, width: int) -> None:
        if self.error is not None and self.fail_at in (None, offset):
            raise self.error
        self.accesses.append(Access(offset, width))


@contextmanager
def memfd(size: int, content: bytes = b"") -> Iterator[int]:
    fd = os.memfd_create("barfs-test")
    try:
        os.ftruncate(fd, size)
        os.pwrite(fd, content, 0)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def memory_table(
    fd: int, size: int, *, width: int = 4, timeout: float | None = None
) -> Iterator[engine.Table]:
    """A region that is one window on `fd`; `size` is whole pages."""
    in_flight = engine.InFlight()
    mapping = engine.Mapping(fd, 0, size)
    entry = engine.TableEntry(0, size, True, True, 8, engine.Memory(mapping))
    yield engine.Table(in_flight, size, width, [entry], name="bar0", timeout=timeout)
    assert in_flight.drain(5)
    mapping.close()


def call_table(
    recorder: Recorder,
    *,
    width: int = 4,
    max_width: int = 8,
    port: bool = False,
    in_flight: engine.InFlight | None = None,
) -> engine.Table:
    """A region that is one `Call` entry on `recorder`."""
    size = len(recorder.memory)
    entry = engine.TableEntry(0, size, True, True, max_width, recorder.target())
    in_flight = in_flight or engine.InFlight()
    return engine.Table(in_flight, size, width, [entry], port=port, name="bar0")


def outcome(error: AccessError) -> tuple[type[AccessError], str, int, int]:
    return type(error), error.region, error.offset, error.width
