# SPDX-License-Identifier: MIT
"""Files of registers: text, as in sysfs.

Rule 1: a read at offset 0 is one access of the register, whose text is kept for that open file; a
        read further on is of that text. A write(2) is one value, wherever in the file it goes.
Rule 2: what may wait for a device runs in a worker thread, of which each device has a few, and the
        request is answered when its time is over: the event loop never waits. Accesses in a window
        it makes itself while they are quick, and at the first slow one leaves them to the workers
        again: two changes of thread cost more than all else.
Rule 3: what a request may do is up to the region's table. Refused requests are logged, each reason
        once.
"""

import errno
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import trio
from pyfuse3 import FUSEError

from barfs.errors import AccessError, AccessTimeout, BarfsError
from barfs.fuse.tree import RegisterDirectory, RegisterFile
from barfs.region import Region, is_window
from barfs.registers import fields
from barfs.registers.access import BoundField, BoundRegister
from barfs.registers.errors import NotAlone, NotAValue, ValueTooLarge
from barfs.registers.places import Place

T = TypeVar("T")

_WORKERS = 4
_LONGEST_WRITE = 4096
_QUICK = 100e-6
"""Seconds that accesses in a window may take in the event loop: about two changes of thread."""
_GRACE = 1.0
"""Seconds that an answer may be late: the table's own timeout comes first, where it has one."""
_MOST_TOLD = 1000

_ERRNOS: tuple[tuple[type[BarfsError], int], ...] = (
    (NotAValue, errno.EINVAL),
    (ValueTooLarge, errno.ERANGE),
    (NotAlone, errno.EPERM),
)

log = logging.getLogger(__name__)


@dataclass(slots=True)
class OpenRegister:
    """An open file: what it is of, and the text of the last read at its start."""

    node: RegisterFile
    text: bytes | None = None


class RegisterFiles:
    """Reads and writes register files for `filesystem`; its methods raise FUSEError alone."""

    def __init__(self) -> None:
        self._limits: dict[int, trio.CapacityLimiter] = {}
        self._quick: set[int] = set()
        """The devices whose last accesses in windows were."""
        self._told: set[str] = set()

    async def load(self, directory: RegisterDirectory) -> Place:
        """Where the directory's registers are; may have to read the device."""
        if directory.place is not None:
            return directory.place
        seconds = 2 * directory.registers.timeout + _GRACE
        try:
            return await self._work(directory.device, seconds, directory.load)
        except BarfsError as error:
            raise FUSEError(_errno_of(error)) from error

    async def names(self, directory: RegisterDirectory, place: Place) -> list[str]:
        """The names in it, of which there may be very many."""
        return await self._work(directory.device, None, lambda: list(place.names()))

    async def read(self, file: OpenRegister, offset: int, size: int) -> bytes:
        if offset == 0 or file.text is None:
            bound = file.node.bound
            file.text = await self._access(file, lambda: _text_of(bound))
        return file.text[offset : offset + size]

    async def write(self, file: OpenRegister, data: bytes) -> None:
        bound = file.node.bound
        try:
            if len(data) > _LONGEST_WRITE:
                raise UnicodeError
            text = data.decode("ascii")
        except UnicodeError:
            raise FUSEError(errno.EINVAL) from None
        await self._access(file, lambda: _write(bound, text))

    async def _access(self, file: OpenRegister, function: Callable[[], T]) -> T:
        bound = file.node.bound
        register = bound if isinstance(bound, BoundRegister) else bound.parent
        try:
            if _is_mapped(register):
                function = functools.partial(self._timed, file.node.device, function)
                if self._is_quick(file.node.device):
                    return function()
            accesses = 2 * len(fields.accesses(register.register))
            # Once more for the lock.
            seconds = (accesses + 1) * register.timeout + _GRACE
            return await self._work(file.node.device, seconds, function)
        except BarfsError as error:
            self._tell(f"{bound.name}: {error}")
            raise FUSEError(_errno_of(error)) from error

    def _is_quick(self, device: int) -> bool:
        """Whether its windows are, and no worker, which may hold a register's lock, is busy."""
        limit = self._limits.get(device)
        return device in self._quick and (limit is None or limit.borrowed_tokens == 0)

    def _timed(self, device: int, function: Callable[[], T]) -> T:
        """Call `function`, whose accesses are in a window, and take note of the device's pace."""
        start = time.perf_counter()
        try:
            return function()
        finally:
            if time.perf_counter() - start > _QUICK:
                self._quick.discard(device)
            else:
                self._quick.add(device)

    def _tell(self, text: str) -> None:
        if text not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(text)
            log.warning("%s", text)

    async def _work(self, device: int, seconds: float | None, function: Callable[[], T]) -> T:
        limit = self._limits.setdefault(device, trio.CapacityLimiter(_WORKERS))
        with trio.move_on_after(float("inf") if seconds is None else seconds):
            return await trio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=limit)
        raise FUSEError(AccessTimeout.errno)


def _is_mapped(register: BoundRegister) -> bool:
    start = register.place.offset
    end = start + register.register.width
    return isinstance(register.region, Region) and is_window(register.region, start, end)


def _errno_of(error: BarfsError) -> int:
    if isinstance(error, AccessError):
        return error.errno
    return next((number for kind, number in _ERRNOS if isinstance(error, kind)), errno.EIO)


def _text_of(bound: BoundRegister | BoundField) -> bytes:
    return f"{bound.read()}\n".encode()


def _write(bound: BoundRegister | BoundField, text: str) -> None:
    if isinstance(bound, BoundField):
        bound.write(fields.parse(bound.field, text))
    else:
        bound.write(fields.parse(bound.register, text))
