# SPDX-License-Identifier: MIT
"""A gate without a kernel: one end of a socket stands in the place of /dev/fuse.

It reads whole requests and writes whole replies, which is all that the gate does with either.
"""

import contextlib
import itertools
import os
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from socket import AF_UNIX, SO_SNDBUF, SOCK_SEQPACKET, SOL_SOCKET, socket, socketpair

from barfs import engine
from barfs.errors import AccessTimeout
from barfs.fuse.gate import DeviceGate, Gate
from tests.support.engine_bench import PAGE

IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
TRANSFER = struct.Struct("<QQIIQII")  # fuse_read_in, fuse_write_in
OPEN = struct.Struct("<II")
INIT_IN = struct.Struct("<IIIII44x")
INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")

LOOKUP, FORGET, GETATTR, OPENED, READ, WRITE = 1, 2, 3, 14, 15, 16
RELEASE, FLUSH, INIT, INTERRUPT = 18, 25, 26, 36
READ_LOCKOWNER = 2

PATIENCE = 10.0
"""Seconds for what must come at once."""

REGION, READ_ONLY, SLOW, GUARDED = 5, 6, 7, 8
"""Node ids: a window and a gap of files; the same, read-only; calls that wait; these, guarded."""

GAP = PAGE
SIZE = 2 * PAGE


class Held:
    """A device whose accesses wait until they are let go; `calls` are those that came.

    One at `hangs_at` waits until that is let go. With `gives_up_after`, all of them raise
    AccessTimeout so many seconds later.
    """

    def __init__(self) -> None:
        self.gives_up_after: float | None = None
        self.hangs_at: int | None = None
        self._hanging = threading.Event()
        self.calls: list[tuple[str, int]] = []
        self.waiting = threading.Semaphore(0)
        self._go = threading.Semaphore(0)

    def let_go(self, accesses: int = 1 << 13) -> None:
        self._go.release(accesses)

    def let_hanging_go(self) -> None:
        self._hanging.set()

    def wait_for_access(self) -> None:
        assert self.waiting.acquire(timeout=PATIENCE)

    def read(self, offset: int, width: int) -> bytes:
        self._access("r", offset)
        return offset.to_bytes(width, "little")

    def write(self, offset: int, data: bytes) -> None:
        self._access("w", offset)

    def _access(self, direction: str, offset: int) -> None:
        self.calls.append((direction, offset))
        if self.gives_up_after is not None:
            time.sleep(self.gives_up_after)
            raise AccessTimeout
        if offset == self.hangs_at:
            assert self._hanging.wait(60)
            return
        self.waiting.release()
        assert self._go.acquire(timeout=60)


@dataclass
class Kernel:
    """What sends requests and gets replies; `libfuse` is the socket that others go on to.

    `client` is the thread that sends."""

    end: socket
    libfuse: socket
    gate: Gate
    device: DeviceGate
    in_flight: engine.InFlight
    memory: int
    held: Held
    ended: threading.Event
    client: int = 1
    _uniques: Iterator[int] = field(default_factory=lambda: itertools.count(2, 2))

    def send(self, opcode: int, node: int, body: bytes = b"", *, length: int | None = None) -> int:
        unique = next(self._uniques)
        size = IN_HEADER.size + len(body)
        header = IN_HEADER.pack(
            size if length is None else length, opcode, unique, node, 0, 0, self.client, 0, 0
        )
        self.end.send(header + body)
        return unique

    def reply(self) -> tuple[int, int, bytes]:
        """The next reply: unique, errno as a positive number, body."""
        data = self.end.recv(2 << 20)
        length, error, unique = OUT_HEADER.unpack_from(data)
        assert length == len(data)
        return unique, -error, data[OUT_HEADER.size :]

    def ask(
        self, opcode: int, node: int, body: bytes = b"", *, length: int | None = None
    ) -> tuple[int, bytes]:
        """Send a request; the next reply has to be its."""
        unique = self.send(opcode, node, body, length=length)
        answered, error, data = self.reply()
        assert answered == unique
        return error, data

    def send_read(
        self, node: int, offset: int, count: int, read_flags: int = READ_LOCKOWNER
    ) -> int:
        return self.send(READ, node, TRANSFER.pack(0, offset, count, read_flags, 0, 0, 0))

    def read(
        self, node: int, offset: int, count: int, read_flags: int = READ_LOCKOWNER
    ) -> tuple[int, bytes]:
        return self.ask(READ, node, TRANSFER.pack(0, offset, count, read_flags, 0, 0, 0))

    def send_write(self, node: int, offset: int, data: bytes) -> int:
        return self.send(WRITE, node, TRANSFER.pack(0, offset, len(data), 0, 0, 0, 0) + data)

    def write(self, node: int, offset: int, data: bytes) -> tuple[int, bytes]:
        body = TRANSFER.pack(0, offset, len(data), 0, 0, 0, 0) + data
        return self.ask(WRITE, node, body)

    def interrupt(self, unique: int) -> None:
        self.send(INTERRUPT, 0, unique.to_bytes(8, "little"))

    def sync(self) -> None:
        """All that was sent before has been read; what it made has been answered or queued."""
        assert self.ask(OPENED, REGION, OPEN.pack(os.O_RDONLY, 0))[0] == 0

    def assert_silent(self) -> None:
        """No reply waits here."""
        self.end.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            raise AssertionError(f"an answer that nobody waits for: {self.end.recv(4096)!r}")
        self.end.settimeout(PATIENCE)


@contextlib.contextmanager
def gated(timeout: float = 60.0, turns: engine.Turns | None = None) -> Iterator[Kernel]:
    """A running gate over one device; stopped and freed afterwards. `turns` are those of SLOW."""
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    memory = os.memfd_create("region")
    os.truncate(memory, SIZE)
    mapping = engine.Mapping(memory, 0, PAGE, True, True)
    in_flight, held = engine.InFlight(), Held()

    def table(*entries: engine.TableEntry, guard: bool = False) -> engine.Table:
        return engine.Table(in_flight, SIZE, 4, entries, timeout=timeout, guard_reads=guard)

    region = table(
        engine.TableEntry(0, GAP, True, True, 8, engine.Memory(mapping, 0)),
        engine.TableEntry(GAP, SIZE, True, True, 4, engine.Descriptor(memory, 0)),
    )
    calls = engine.TableEntry(0, SIZE, True, True, 4, engine.Call(held.read, held.write, turns))
    slow, guarded = table(calls), table(calls, guard=True)
    gate = Gate(theirs.fileno())
    libfuse = socket(fileno=gate.libfuse_fd)
    for end in (ours, libfuse):
        end.settimeout(PATIENCE)
    ours.setsockopt(SOL_SOCKET, SO_SNDBUF, 4 << 20)
    theirs.setsockopt(SOL_SOCKET, SO_SNDBUF, 4 << 20)
    device = gate.add_device(
        "0000:01:00.0",
        {
            REGION: (region, True, True),
            READ_ONLY: (region, True, False),
            SLOW: (slow, True, True),
            GUARDED: (guarded, True, True),
        },
    )
    ended = threading.Event()
    gate.start(ended.set)
    try:
        yield Kernel(ours, libfuse, gate, device, in_flight, memory, held, ended)
    finally:
        held.let_go()
        held.let_hanging_go()
        stopped = gate.stop(PATIENCE)
        if stopped:
            gate.close()
        ours.close()
        theirs.close()
        libfuse.close()
        assert stopped
        assert in_flight.drain(PATIENCE)
        mapping.close()
        os.close(memory)
