# SPDX-License-Identifier: MIT
"""The built-in demo device: `demo.toml`, and the behaviour of its registers.

bar0, 64 KiB. Registers have 32 bits; a narrower access reads or writes part of its register, an
8-byte access both of its registers, the lower first. Page 0 is a gap: each access is one message.

    0x00  ID        r   0x66726162, in bytes "barf"
    0x04  SCRATCH   rw  keeps what is written
    0x08  COUNTER   r   nanoseconds since reset, lower half; reading it latches the upper half
    0x0c  COUNTER_H r   the latched upper half (so an 8-byte read at 0x08 is one time)
    0x10  INVERT    rw  reads as the complement of what was written
    0x14  ONES      r   0xffffffff, always
    0x18  FIFO      rw  a write appends a value, a read TAKES the oldest; 0 when empty
    0x1c  LEVEL     r   the number of values in the FIFO (16 fit, more are lost); a write empties it
    0x20  WIDTH     r   the width, in bytes, of the access that reads it
    0x24  READS     r   the number of earlier reads of this register; a write clears it
    0x28  FAULT     rw  refuses reads (EIO) while it is not 0
    0x2c  DELAY     rw  a read answers, with the value, after that many milliseconds
    ...             r   0; writes have no effect

    0x1000..0x2000  window: memory that begins with "barf"
    0x2000..0x3000  gap: the MSI-X table (4 vectors), the pending bits at 0x2800
    0x3000..0x4000  window: memory
    the rest        gap: memory

bar2, 1 MiB, 64-bit and prefetchable: memory, one window.

bar4, 64 I/O ports:

    0x00  ID        r   0x74726f70, in bytes "port"
    0x04  SCRATCH   rw  keeps what is written
    0x08  INVERT    rw  reads as the complement of what was written
    0x0c  ONES      r   0xffffffff, always
    ...             r   0; writes have no effect

bar5, 16 KiB: memory. 0x800..0x2800 is reported as mappable, but only 0x1000..0x2000 is a whole
page. (It has a BAR to itself: QEMU 11 maps nothing of a region with such an area.)

rom, 4 KiB: an image without code. config, 4096 bytes: PCI Express and MSI-X.
"""

import importlib.resources
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from barfs.emulated.description import parse
from barfs.emulated.device import Recorder, SoftwareDevice
from barfs.errors import BusFault

_DESCRIPTION = "demo.toml"
_REGISTERS_END = 0x1000
_PORTS_END = 0x40
_ID = int.from_bytes(b"barf", "little")
_PORT_ID = int.from_bytes(b"port", "little")
_ONES = 0xFFFF_FFFF
_FIFO_DEPTH = 16
_LONGEST_DELAY = 60_000

Read = Callable[[int], int]
Write = Callable[[int], object]


class _Registers:
    """32-bit registers by offset: `reads` are called with the width, `writes` with the value.

    The registers in `kept` store what is written; a narrow write changes a part of them. In any
    other register the bytes that a narrow write leaves out are 0.
    """

    def __init__(self, kept: set[int], reads: dict[int, Read], writes: dict[int, Write]) -> None:
        self.values = dict.fromkeys(kept, 0)
        self._reads = reads
        self._writes = writes

    def read(self, offset: int, width: int) -> int:
        first = offset & ~3
        value = 0
        for register in range(first, offset + width, 4):
            read = self._reads.get(register)
            part = self.values.get(register, 0) if read is None else read(width)
            value |= part << 8 * (register - first)
        return value >> 8 * (offset - first) & (1 << 8 * width) - 1

    def write(self, offset: int, width: int, value: int) -> None:
        first = offset & ~3
        value <<= 8 * (offset - first)
        mask = (1 << 8 * width) - 1 << 8 * (offset - first)
        for register in range(first, offset + width, 4):
            self._write(register, value & _ONES, mask & _ONES)
            value >>= 32
            mask >>= 32

    def _write(self, register: int, value: int, mask: int) -> None:
        if register in self.values:
            self.values[register] = self.values[register] & ~mask | value
        elif register in self._writes:
            self._writes[register](value)

    def reset(self) -> None:
        self.values = dict.fromkeys(self.values, 0)


class _Bar0(_Registers):
    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._fifo: deque[int] = deque(maxlen=_FIFO_DEPTH)
        super().__init__(
            {0x04, 0x10, 0x28, 0x2C},
            {
                0x00: lambda _width: _ID,
                0x08: self._count,
                0x0C: lambda _width: self._latched,
                0x10: lambda _width: ~self.values[0x10] & _ONES,
                0x14: lambda _width: _ONES,
                0x18: lambda _width: self._fifo.popleft() if self._fifo else 0,
                0x1C: lambda _width: len(self._fifo),
                0x20: lambda width: width,
                0x24: self._count_reads,
                0x28: self._fault,
                0x2C: self._wait,
            },
            {
                0x18: self._append,
                0x1C: lambda _value: self._fifo.clear(),
                0x24: self._clear_reads,
            },
        )
        self.reset()

    def reset(self) -> None:
        super().reset()
        self._fifo.clear()
        self._started = time.monotonic_ns()
        self._latched = 0
        self._reads_seen = 0

    def _count(self, _width: int) -> int:
        now = time.monotonic_ns() - self._started
        self._latched = now >> 32 & _ONES
        return now & _ONES

    def _append(self, value: int) -> None:
        if len(self._fifo) < _FIFO_DEPTH:
            self._fifo.append(value)

    def _count_reads(self, _width: int) -> int:
        seen = self._reads_seen
        self._reads_seen += 1
        return seen & _ONES

    def _clear_reads(self, _value: int) -> None:
        self._reads_seen = 0

    def _fault(self, width: int) -> int:
        if self.values[0x28]:
            raise BusFault("FAULT is not 0", region="bar0", offset=0x28, width=width)
        return 0

    def _wait(self, _width: int) -> int:
        milliseconds = self.values[0x2C]
        self._stopping.wait(min(milliseconds, _LONGEST_DELAY) / 1000)
        return milliseconds


class _Bar4(_Registers):
    def __init__(self) -> None:
        super().__init__(
            {0x04, 0x08},
            {
                0x00: lambda _width: _PORT_ID,
                0x08: lambda _width: ~self.values[0x08] & _ONES,
                0x0C: lambda _width: _ONES,
            },
            {},
        )


def demo_device(record: Recorder | None = None, *, sealed: bool = True) -> SoftwareDevice:
    """The demo device; `record` and `sealed` are as in `SoftwareDevice`."""
    text = (importlib.resources.files(__package__) / _DESCRIPTION).read_text("utf-8")
    device = SoftwareDevice(parse(text, name=_DESCRIPTION, folder=Path()), record, sealed=sealed)
    device.attach(0, 0, _REGISTERS_END, _Bar0(device.stopping))
    device.attach(4, 0, _PORTS_END, _Bar4())
    return device
