# SPDX-License-Identifier: MIT
"""Mapped windows, and the ranges reserved to hold them.

Rule 1: a mapping must not vanish under an access: that would be a SIGSEGV, which nothing guards.
        So a mapping that a `Table` refers to can be closed only once the table's `InFlight` is
        drained; one that is never closed is unmapped when the last table goes.
Rule 2: a forked child inherits no mapping: an access would reach the device behind the back of its
        owner, and the kernel would not get the device back before the child ends. The child leaves
        alone whatever is mapped at those addresses since.
Rule 3: MAP_FIXED is used inside a `Reservation` only, where it cannot hit anything else.
"""

import mmap
import os
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

from barfs.engine.extension import ffi, lib
from barfs.engine.inflight import InFlight
from barfs.engine.ownership import Owner
from barfs.engine.sigbus import arm_guard
from barfs.ranges import align_up

PAGE_SIZE = mmap.PAGESIZE

Finalizer: TypeAlias = "weakref.finalize[..., Any]"


class Reservation:
    """An inaccessible range of addresses: `size` bytes, rounded up to whole pages.

    `Mapping(..., within=reservation, at=offset)` fills parts of it.
    """

    def __init__(self, size: int) -> None:
        if size <= 0:
            raise ValueError(f"a reservation must have at least 1 byte, not {size}")
        self.size = align_up(size, PAGE_SIZE)
        self.address = _map_nothing(0, self.size)
        self._inside: weakref.WeakSet[Mapping] = weakref.WeakSet()
        self._release = _release_once(self, _unmap, self.address, self.size)

    def close(self) -> None:
        """Give the range back. Idempotent. Raises RuntimeError while a mapping in it is open."""
        if self._release.alive and any(mapping.is_open for mapping in self._inside):
            raise RuntimeError("a mapping inside the reservation is still open")
        self._release()


class Mapping:
    """`size` bytes of `fd` from `fd_offset`, mapped shared; both are whole pages.

    With `within`, the mapping is at `within.address + at`, else where the kernel puts it.
    Raises OSError when the kernel refuses, ValueError when it would leave the reservation.
    """

    def __init__(
        self,
        fd: int,
        fd_offset: int,
        size: int,
        readable: bool = True,
        writable: bool = True,
        *,
        within: Reservation | None = None,
        at: int = 0,
    ) -> None:
        if size <= 0 or size % PAGE_SIZE or at % PAGE_SIZE:
            raise ValueError(f"a mapping of {size:#x} bytes at {at:#x}: not whole pages")
        protection = (lib.PROT_READ if readable else 0) | (lib.PROT_WRITE if writable else 0)
        arm_guard()
        self.size = size
        self.readable = readable
        self.writable = writable
        self._accessors: weakref.WeakSet[InFlight] = weakref.WeakSet()
        if within is None:
            self.address = _map(0, size, protection, lib.MAP_SHARED, fd, fd_offset)
            self._release = _release_once(self, _unmap, self.address, size)
        else:
            if not (within._release.alive and 0 <= at <= within.size - size):
                raise ValueError(f"[{at:#x}, {at + size:#x}) is not inside the reservation")
            # Older kernels unmap what a MAP_FIXED is to replace before they ask the driver, and
            # leave a hole where it refuses (6.1: mm/mmap.c, mmap_region). So ask it first.
            _unmap(_map(0, size, protection, lib.MAP_SHARED, fd, fd_offset), size)
            flags = lib.MAP_SHARED | lib.MAP_FIXED
            self.address = _map(within.address + at, size, protection, flags, fd, fd_offset)
            self._release = _release_once(self, _vacate, within, self.address, size)
            within._inside.add(self)

    @property
    def is_open(self) -> bool:
        return self._release.alive

    def add_accessor(self, in_flight: InFlight) -> None:
        """Note that the accesses that `in_flight` counts may reach this mapping."""
        self._accessors.add(in_flight)

    def close(self) -> None:
        """Unmap. Idempotent. Raises RuntimeError while an access may still reach the mapping."""
        if self.is_open and not all(in_flight.drained for in_flight in self._accessors):
            raise RuntimeError("drain what is in flight in a mapping's tables before closing it")
        self._release()


def _map(address: int, size: int, protection: int, flags: int, fd: int, fd_offset: int) -> int:
    where = ffi.cast("void *", address)
    mapped = int(ffi.cast("intptr_t", lib.mmap(where, size, protection, flags, fd, fd_offset)))
    if mapped == -1:
        raise OSError(ffi.errno, f"mmap of {size:#x} bytes: {os.strerror(ffi.errno)}")
    lib.madvise(ffi.cast("void *", mapped), size, lib.MADV_DONTFORK)
    return mapped


def _map_nothing(address: int, size: int) -> int:
    flags = lib.MAP_PRIVATE | lib.MAP_ANONYMOUS | lib.MAP_NORESERVE
    return _map(address, size, lib.PROT_NONE, flags | (lib.MAP_FIXED if address else 0), -1, 0)


def _unmap(address: int, size: int) -> None:
    lib.munmap(ffi.cast("void *", address), size)


def _vacate(reservation: Reservation, address: int, size: int) -> None:
    """Leave no hole in the reservation, which another mapping of the process could fill."""
    if reservation._release.alive:
        _map_nothing(address, size)


def _release_once(owner: object, release: Callable[..., None], *arguments: object) -> Finalizer:
    finalizer = weakref.finalize(owner, _release_here, Owner(), release, *arguments)
    finalizer.atexit = False  # other threads may be inside until the very end
    return finalizer


def _release_here(process: Owner, release: Callable[..., None], *arguments: object) -> None:
    if process.is_here:
        release(*arguments)
