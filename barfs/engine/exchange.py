# SPDX-License-Identifier: MIT
"""Accesses that are messages on a socket, made in C by templates; see exchange.h.

The protocol's codec makes the templates, and its connection shares an `Exchanger` with them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from barfs.engine.extension import ffi, lib

BUSY = lib.BARFS_BUSY
ENTERED = lib.BARFS_ENTERED
ENTERED_HANDED = lib.BARFS_ENTERED_HANDED


@dataclass(frozen=True, slots=True)
class Places:
    """Where a request and its reply have the id (16 bits) and the offset (64 bits).

    The data comes after `head` bytes.
    """

    head: int
    id_at: int
    offset_at: int


@dataclass(frozen=True, slots=True)
class Handed:
    """A request that was sent in C: what of it is not sent, and what has arrived since.

    `since` is when it was begun (time.monotonic), `error` the errno of the socket, or 0.
    """

    identifier: int
    since: float
    error: int
    request: bytes
    unsent: bytes
    received: bytes


class Exchanger:
    """The use of a connected socket by one thread at a time, in C or in Python.

    The caller keeps ownership of `fd`, and closes it inside.
    """

    def __init__(self, fd: int, places: Places) -> None:
        made = lib.barfs_exchanger_new(fd, places.head, places.id_at, places.offset_at)
        if made == ffi.NULL:
            raise MemoryError
        self._exchanger = ffi.gc(made, lib.barfs_exchanger_free)

    def enter(self, timeout: float = 0) -> int:
        """BUSY, ENTERED, or ENTERED_HANDED in the thread that C handed a request. It is not at rest
        then."""
        return lib.barfs_exchanger_enter(self._exchanger, int(timeout * 1e9))

    def leave(self) -> None:
        """Undo an `enter`; nothing happens in a thread that has not entered."""
        lib.barfs_exchanger_leave(self._exchanger)

    @property
    def at_rest(self) -> bool:
        """Whether C may exchange messages: none is outstanding or incomplete."""
        return bool(self._exchanger.at_rest)

    @at_rest.setter
    def at_rest(self, value: bool) -> None:
        self._exchanger.at_rest = value

    @property
    def last_id(self) -> int:
        """The id of the last request."""
        return int(self._exchanger.last_id)

    @last_id.setter
    def last_id(self, value: int) -> None:
        self._exchanger.last_id = value

    @property
    def answered(self) -> float:
        """When the peer last replied (time.monotonic)."""
        return lib.barfs_exchanger_answered(self._exchanger) / 1e9

    def answer(self) -> None:
        """The peer has replied now."""
        lib.barfs_exchanger_answer(self._exchanger)

    @property
    def has_handed(self) -> bool:
        """Whether C left a request."""
        return bool(self._exchanger.handed.set)

    def handed(self) -> Handed:
        """The request that C left."""
        handed = self._exchanger.handed
        request = bytes(ffi.buffer(handed.request, handed.size))
        return Handed(
            self.last_id,
            handed.since_ns / 1e9,
            handed.error,
            request,
            request[handed.sent :],
            bytes(ffi.buffer(handed.reply, handed.received)),
        )

    def take_over(self) -> None:
        """The request that C left is the caller's."""
        self._exchanger.handed.set = False


class Exchange:
    """The templates of a region's accesses.

    For each direction and width in `templates`, the bytes before the data of a request and of its
    plain reply, with any id and offset.
    """

    def __init__(
        self, exchanger: Exchanger, templates: Mapping[tuple[int, int], Sequence[bytes]]
    ) -> None:
        self._exchanger = exchanger
        self.made: Any = ffi.new("struct barfs_exchange *", {"exchanger": exchanger._exchanger})
        for (direction, width), (request, reply) in templates.items():
            template = self.made.templates[direction][width.bit_length() - 1]
            ffi.memmove(template.request, request, len(request))
            ffi.memmove(template.reply, reply, len(reply))
