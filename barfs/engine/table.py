# SPDX-License-Identifier: MIT
"""A region as the engine sees it: `Table`, over entries.

Rule 1: transfer.c decides what an access is, how requests are cut, and what the answer is. This
        module only turns its answers into bytes and typed errors.
Rule 2: the error that a `Call` function raises reaches the caller as it is.
"""

import errno
import faulthandler
import logging
import threading
from collections.abc import Sequence
from typing import Any

from barfs.engine import sigbus
from barfs.engine.extension import ffi, lib
from barfs.engine.inflight import Control, InFlight
from barfs.engine.table_entry import Call, Descriptor, Memory, TableEntry
from barfs.engine.trace import Trace
from barfs.errors import AccessError, BarfsError, UsageError, access_error
from barfs.ranges import Range, check_cover
from barfs.widths import WIDTHS, in_words

log = logging.getLogger(__name__)

Readable = bytes | bytearray | memoryview
Writable = bytearray | memoryview

_READ, _WRITE = lib.BARFS_READ, lib.BARFS_WRITE

_load_narrow = lib.barfs_load_narrow
_faulthandler_enabled = faulthandler.is_enabled

# The most that is allocated for a request that a port or the guard refuses anyway.
_REFUSED_ANYWAY = 16

_MOST_OF_A_PORT = 4

# Past the end of any region, for offsets that have more than 64 bits.
_FAR_AWAY = (1 << 64) - 8

_BYTES = ffi.typeof("char[]")
_POINTER_64 = ffi.typeof("uint64_t *")
_new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)


class _Raised(threading.local):
    """An exception of a `Call` function in this thread, on its way around the C stack."""

    error: BaseException | None = None


_raised = _Raised()


class Table:
    """The accesses of one region of `size` bytes; `entries` cover it in order.

    `width` is how longer or misaligned requests are cut (1, 2, 4, 8); `port`: the rules of an
    I/O-port BAR; `guard_reads`, `guard_writes`: a request that is not one access of its place is
    InvalidAccess; `name` goes into errors; `timeout`: seconds that the device may take for one
    access; `trace`: the trace that records its accesses. Raises ValueError for entries that make
    no table.

    Any number of threads may use it at once. Every method raises the `AccessError` that fits:
    BusFault, DeviceGone (also once `in_flight` is closed), AccessTimeout, InvalidAccess,
    AccessDenied, PolicyDenied, BeyondEnd, Interrupted, ForkedAccess.
    """

    def __init__(
        self,
        in_flight: InFlight,
        size: int,
        width: int,
        entries: Sequence[TableEntry],
        *,
        port: bool = False,
        guard_reads: bool = False,
        guard_writes: bool = False,
        name: str = "region",
        timeout: float | None = None,
        trace: Trace | None = None,
    ) -> None:
        if width not in WIDTHS:
            raise ValueError(f"width must be 1, 2, 4 or 8, not {width}")
        check_cover(entries, size)
        self.name = name
        self.size = size
        self.width = width
        self.entries = tuple(entries)
        self.in_flight = in_flight
        self._single = port or guard_reads
        self._port = port
        self._calls = any(isinstance(entry.target, Call) for entry in entries)
        self._kept: list[Any] = []  # what the C structures point to
        traced = ffi.NULL if trace is None else trace.of_region(name)
        rows = ffi.new("struct barfs_table_entry[]", [self._row(entry) for entry in entries])
        self._table = ffi.new(
            "struct barfs_table *",
            {
                "inflight": in_flight._in_flight,
                "size": size,
                "width": width,
                "flags": (lib.BARFS_PORT if port else 0)
                | (lib.BARFS_GUARD_READS if guard_reads else 0)
                | (lib.BARFS_GUARD_WRITES if guard_writes else 0)
                | (lib.BARFS_WIDTHS if any(map(_lacks_widths, entries)) else 0),
                "timeout_ns": 0 if timeout is None else max(1, int(timeout * 1e9)),
                "entry_count": len(self.entries),
                "entries": rows,
                "trace": traced,
            },
        )
        self._kept += [rows, traced, trace]

    def __repr__(self) -> str:
        return f"<Table of {self.name}, {self.size:#x} bytes in {len(self.entries)} entries>"

    def deny(self, reads: Sequence[Range], writes: Sequence[Range]) -> None:
        """Let no access touch a byte of these ranges, which are in order and disjoint.

        For the owner, before it hands out the table. An access that would touch one is
        `PolicyDenied`; where it is not the first of its request, the request ends before it.
        """
        for direction, ranges in ((_READ, reads), (_WRITE, writes)):
            rows = ffi.new("struct barfs_range[]", [(part.start, part.end) for part in ranges])
            self._kept.append(rows)
            self._table.denied[direction] = {"count": len(ranges), "ranges": rows}

    def read(self, offset: int, count: int, *, control: Control | None = None) -> bytes:
        """Read up to `count` bytes, cut into accesses.

        Fewer at the end of the region, none past it; fewer where a later access failed.
        """
        if count < 0:
            raise ValueError(f"count must be 0 or more, not {count}")
        most = _REFUSED_ANYWAY if self._single else self.size - offset
        if count > most:
            count = max(0, most)
        buffer = _new_uncleared(_BYTES, count)
        done = self._transfer(offset, buffer, count, _READ, control)
        return bytes(ffi.unpack(buffer, done))

    def read_into(self, offset: int, buffer: Writable, *, control: Control | None = None) -> int:
        """Testing interface: read as `read` does, into `buffer`; returns the bytes read."""
        data = ffi.from_buffer(_BYTES, buffer, require_writable=True)
        return self._transfer(offset, data, len(data), _READ, control)

    def write(self, offset: int, data: Readable, *, control: Control | None = None) -> int:
        """Write `data`, cut into accesses; returns the bytes written.

        Fewer at the end of the region or where a later access failed; past the end, BeyondEnd.
        """
        buffer = ffi.from_buffer(_BYTES, data)
        return self._transfer(offset, buffer, len(buffer), _WRITE, control)

    def load(self, offset: int, width: int) -> int:
        """Read one little-endian register: exactly one access of `width` bytes.

        InvalidAccess where it is misaligned, wider than the place takes, or crosses an edge;
        BeyondEnd past the end.
        """
        if _faulthandler_enabled() is not sigbus.seen_faulthandler:
            sigbus.arm_guard()
        try:
            if width != 8:
                value = _load_narrow(self._table, offset, width)
                if value < 0:
                    raise self._single_error(value, offset, width)
                return value
            wide = ffi.new(_POINTER_64)
            if result := lib.barfs_load(self._table, offset, width, wide):
                raise self._single_error(result, offset, width)
            return int(wide[0])
        except OverflowError:
            raise self._unreachable(offset, width) from None

    def load32(self, offset: int) -> int:
        """Read the 4 bytes at `offset`, a multiple of 4, in one access. Raises AccessError."""
        if _faulthandler_enabled() is not sigbus.seen_faulthandler:
            sigbus.arm_guard()
        try:
            value = _load_narrow(self._table, offset, 4)
        except OverflowError:
            raise self._unreachable(offset, 4) from None
        if value < 0:
            raise self._single_error(value, offset, 4)
        return value

    def store(self, offset: int, width: int, value: int) -> None:
        """Write one little-endian register: exactly one access, as `load`.

        Raises ValueError for a value that is negative or does not fit.
        """
        if value >> (8 * width):
            raise ValueError(f"{value:#x} does not fit in {width} bytes")
        if _faulthandler_enabled() is not sigbus.seen_faulthandler:
            sigbus.arm_guard()
        try:
            result = lib.barfs_store(self._table, offset, width, value)
        except OverflowError:
            raise self._unreachable(offset, width) from None
        if result:
            raise self._single_error(result, offset, width)

    def _row(self, entry: TableEntry) -> dict[str, Any]:
        row: dict[str, Any] = {
            "start": entry.start,
            "end": entry.end,
            "kind": lib.BARFS_REFUSED,
            "permission": (lib.BARFS_MAY_READ if entry.readable else 0)
            | (lib.BARFS_MAY_WRITE if entry.writable else 0),
            "widths": sum(entry.widths),
        }
        match entry.target:
            case Memory(mapping, offset):
                mapping.add_accessor(self.in_flight)
                base = ffi.cast("uint8_t *", mapping.address + offset)
                return row | {"kind": lib.BARFS_MEMORY, "base": base}
            case Descriptor(fd, fd_offset):
                place = fd_offset + entry.start
                return row | {"kind": lib.BARFS_FD, "fd": fd, "fd_offset": place}
            case Call() as call:
                context = ffi.new_handle(call)
                turns = ffi.NULL if call.turns is None else call.turns._turns
                exchange = ffi.NULL if call.exchange is None else call.exchange.made
                self._kept += [context, turns]
                function = {"call": lib.barfs_call, "context": context, "exchange": exchange}
                return row | function | {"kind": lib.BARFS_CALL, "turns": turns}
        return row | {"permission": 0}

    def _transfer(
        self, offset: int, buffer: Any, count: int, direction: int, control: Control | None
    ) -> int:
        if _faulthandler_enabled() is not sigbus.seen_faulthandler:
            sigbus.arm_guard()
        early = ffi.NULL if control is None else control._control
        try:
            done = lib.barfs_transfer(self._table, offset, buffer, count, direction, early)
        except OverflowError:
            self._check_not_negative(offset)
            far = _FAR_AWAY | offset % 8
            done = lib.barfs_transfer(self._table, far, buffer, count, direction, early)
        if done < 0:
            raise self._error(done, offset, count)
        if self._calls:
            self._end_short()
        return done

    def _error(self, result: int, offset: int, width: int) -> BaseException:
        if self._calls:
            error, _raised.error = _raised.error, None
            if error is not None:
                return error
        problem = self.width_problem(offset, width) if result == -errno.EINVAL else ""
        return access_error(-result, problem, region=self.name, offset=offset, width=width)

    def _single_error(self, result: int, offset: int, width: int) -> BaseException:
        past_end = result == -errno.EINVAL and offset >= self.size
        return self._error(-errno.EFBIG if past_end else result, offset, width)

    def _unreachable(self, offset: int, width: int) -> BaseException:
        """The error of an access whose offset is no 64-bit number."""
        self._check_not_negative(offset)
        return self._error(-errno.EFBIG, offset, width)

    def _check_not_negative(self, offset: int) -> None:
        if offset < 0:
            raise UsageError(f"{self.name}: offset must be 0 or more, not {offset}")

    def width_problem(self, offset: int, width: int) -> str:
        """What a place takes, for a request that it refuses as InvalidAccess; "" if that is not
        for its width."""
        entry = next((one for one in self.entries if one.start <= offset < one.end), None)
        if entry is None:
            return ""
        if _lacks_widths(entry):
            if not entry.widths:
                return f"this place takes at most {entry.max_width} bytes, which are not allowed"
            return f"this place takes accesses of {in_words(entry.widths)} only"
        most = _MOST_OF_A_PORT if self._port else entry.max_width
        fits = [one for one in entry.widths if offset % one == 0 and offset + one <= entry.end]
        widest = min(fits[-1], most)
        refused = width in WIDTHS and offset % width == 0 and width > widest
        return f"this place takes {widest} bytes at most" if refused else ""

    def _end_short(self) -> None:
        """Drop the error behind a short count, but never a KeyboardInterrupt."""
        error, _raised.error = _raised.error, None
        if error is not None and not isinstance(error, AccessError):
            raise error


def _lacks_widths(entry: TableEntry) -> bool:
    """Whether it refuses a width up to its `max_width`."""
    return sum(entry.widths) != 2 * entry.max_width - 1


def _outside(_kind: object, error: BaseException, _traceback: object) -> int:
    """Keep what a signal handler raised around the function below."""
    _raised.error = error
    return -errno.EINTR


@ffi.def_extern(name="barfs_call", error=-errno.EIO, onerror=_outside)
def _barfs_call(context: Any, offset: int, width: int, direction: int, data: Any) -> int:
    """One access of a `Call` entry: 0, or -errno."""
    call: Call = ffi.from_handle(context)
    try:
        if direction == _WRITE:
            call.write(offset, bytes(ffi.buffer(data, width)))
            return 0
        answer = call.read(offset, width)
        if len(answer) != width:
            raise ValueError(f"read({offset:#x}, {width}) returned {len(answer)} bytes")
        ffi.buffer(data, width)[:] = answer
    except AccessError as error:
        _raised.error = error
        return -error.errno
    except BarfsError as error:  # the device as a whole failed, not this program
        log.error("access of %d bytes at %#x: %s", width, offset, error)
        return -errno.EIO
    except Exception:
        log.exception("access of %d bytes at %#x", width, offset)
        return -errno.EIO
    except BaseException as error:  # the caller's, like KeyboardInterrupt
        _raised.error = error
        return -errno.EINTR
    return 0
