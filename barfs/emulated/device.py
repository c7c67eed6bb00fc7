# SPDX-License-Identifier: MIT
"""A software device: the contents and behaviour of its regions, without any protocol.

Rule 1: one memfd holds all mappable regions, so that windows and messages see the same bytes. It is
        sealed against shrinking and against further seals: no client can take pages away from
        another, or keep a later one from writing. A second memfd, which clients never get, holds
        everything else.
Rule 2: a `Behaviour` replaces the memory of a range of a region. An access there must be aligned
        and 1, 2, 4 or 8 bytes wide; it reaches the behaviour once, unchanged.
Rule 3: every access is recorded, refused ones included.
Rule 4: one thread at a time uses a device; clients access windows at the same time.
"""

import fcntl
import itertools
import mmap
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from barfs.emulated.config_space import ConfigRegisters
from barfs.emulated.spec import DescriptionError, DeviceSpec, RegionSpec
from barfs.errors import AccessError, DeviceError, InvalidAccess
from barfs.pci import CONFIG_INDEX, FIRST_DEVICE_SPECIFIC_INDEX, region_name
from barfs.text.system_errors import reason
from barfs.uapi import (
    DEVICE_FLAG_PCI,
    DEVICE_FLAG_RESET,
    REGION_FLAG_MMAP,
    REGION_FLAG_READ,
    REGION_FLAG_WRITE,
    DeviceInfo,
    RegionInfo,
)

Recorder = Callable[[str], object]
"""Called with one line, without its newline, for each access by message: `r|w REGION OFFSET WIDTH
VALUE`, as in `r bar0 0x1000 4 0x010000ed`. VALUE is `-` for a refused read and for an access of
more than 8 bytes."""

IRQ_INTX, IRQ_MSI, IRQ_MSIX, IRQ_ERR, IRQ_REQ = range(5)
"""Interrupt indexes of VFIO for PCI devices."""

_WIDTHS = (1, 2, 4, 8)
_PAGE = mmap.PAGESIZE
_IRQ_COUNT = 5
_MSIX_ENTRY = 16
_MSIX_VECTOR_CONTROL = 12


class Behaviour(Protocol):
    """Answers the accesses of a range in place of memory. Offsets are in the region."""

    def read(self, offset: int, width: int) -> int:
        """One access: returns an unsigned value of `width` bytes. Raises AccessError to refuse."""

    def write(self, offset: int, width: int, value: int) -> None:
        """One access. Raises AccessError to refuse."""

    def reset(self) -> None:
        """Restore the initial state."""


@dataclass(frozen=True, slots=True)
class _Range:
    region: int
    start: int
    end: int
    behaviour: Behaviour


class _Memory:
    """The memory of one region; an aligned access of 1, 2, 4 or 8 bytes is one load or store."""

    def __init__(self, buffer: mmap.mmap, region: RegionSpec) -> None:
        self._buffer = buffer
        self._contents = region.contents
        view = memoryview(buffer)[: region.size]
        self._bytes = view
        self._views = {
            1: view,
            2: _whole(view, 2).cast("H"),
            4: _whole(view, 4).cast("I"),
            8: _whole(view, 8).cast("Q"),
        }

    def read(self, offset: int, count: int) -> bytes:
        if count in _WIDTHS and offset % count == 0:
            value: int = self._views[count][offset // count]
            return value.to_bytes(count, sys.byteorder)
        return bytes(self._bytes[offset : offset + count])

    def write(self, offset: int, data: bytes) -> None:
        count = len(data)
        if count in _WIDTHS and offset % count == 0:
            self._views[count][offset // count] = int.from_bytes(data, sys.byteorder)
        else:
            self._bytes[offset : offset + count] = data

    def reset(self) -> None:
        # A hole in the memfd reads as zeros, whatever size the region has.
        self._buffer.madvise(mmap.MADV_REMOVE)
        for content in self._contents:
            self._bytes[content.offset : content.end] = content.data

    def close(self) -> None:
        self._views.clear()
        self._bytes.release()
        self._buffer.close()


def _whole(view: memoryview, width: int) -> memoryview:
    """The part of a view that consists of whole items, so that it can be cast."""
    return view[: len(view) // width * width]


class SoftwareDevice:
    """A device made from its spec, with behaviours attached; `read` and `write` are its accesses.

    `record` may be set at any time; None records nothing. The server sets `stopping` when it ends,
    and a behaviour that waits must then return.
    """

    def __init__(
        self, spec: DeviceSpec, record: Recorder | None = None, *, sealed: bool = True
    ) -> None:
        """Raises DeviceError when there is no memory for the regions.

        `sealed=False` is for tests: they truncate the memory of windows.
        """
        self.spec = spec
        self.record = record
        self.stopping = threading.Event()
        self._config = ConfigRegisters(spec)
        self._ranges: list[_Range] = []
        self._memory: dict[int, _Memory] = {}
        regions = [r for r in spec.by_index.values() if r.index != CONFIG_INDEX]
        shared = [region for region in regions if region.mappable]
        self._offsets = dict(zip((r.index for r in shared), _offsets(shared), strict=True))
        self._fd = self._allocate(shared)
        if sealed:
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        os.close(self._allocate([region for region in regions if not region.mappable]))
        self.reset()

    def _allocate(self, regions: list[RegionSpec]) -> int:
        """Map new memory for `regions`, one after another; returns its descriptor."""
        offsets = _offsets(regions)
        fd = -1
        try:
            fd = os.memfd_create("barfs-device", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            for region, offset in zip(regions, offsets, strict=True):
                size = _round_up(region.size)
                os.ftruncate(fd, offset + size)
                self._memory[region.index] = _Memory(mmap.mmap(fd, size, offset=offset), region)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            why = reason(error, mapping=True)
            raise DeviceError(f"no memory for a software device: {why}") from error
        return fd

    def attach(self, region: int, start: int, end: int, behaviour: Behaviour) -> None:
        """Let `behaviour` answer all accesses to `start..end` of `region`.

        Raises DescriptionError when the range leaves the region or overlaps another behaviour.
        """
        found = self.spec.by_index.get(region)
        if found is None or region == CONFIG_INDEX or not 0 <= start < end <= found.size:
            raise DescriptionError(
                f"a behaviour must lie in a region other than config, not at {start:#x}..{end:#x}"
            )
        if any(r.region == region and start < r.end and r.start < end for r in self._ranges):
            raise DescriptionError(f"{start:#x}..{end:#x} of {found.name} already has a behaviour")
        self._ranges.append(_Range(region, start, end, behaviour))

    def info(self) -> DeviceInfo:
        """The device info; it counts regions up to the highest index."""
        count = max(FIRST_DEVICE_SPECIFIC_INDEX, *(index + 1 for index in self.spec.by_index))
        return DeviceInfo(DEVICE_FLAG_RESET | DEVICE_FLAG_PCI, count, _IRQ_COUNT)

    def region_info(self, index: int) -> RegionInfo:
        """The region info; an absent region has size 0."""
        region = self.spec.by_index.get(index)
        if region is None:
            return RegionInfo(index, 0, 0, 0)
        flags = REGION_FLAG_READ * region.readable | REGION_FLAG_WRITE * region.writable
        flags |= REGION_FLAG_MMAP * region.mappable
        msix = self.spec.msix
        return RegionInfo(
            index,
            flags,
            region.size,
            self._offsets.get(index, 0),
            areas=region.areas,
            msix_mappable=self.spec.msix_mappable and msix is not None and msix.table_bar == index,
        )

    def region_fd(self, index: int) -> int | None:
        """The descriptor of the memory that holds a mappable region, at `region_info().offset`."""
        return self._fd if index in self._offsets else None

    def irq_count(self, index: int) -> int:
        """The number of vectors of VFIO's interrupt `index`. Configuration space, which may be a
        real device's, decides on INTx and MSI; ERR and REQ have one each."""
        if index == IRQ_INTX:
            return int(self._config.has_pin)
        if index == IRQ_MSI:
            return self._config.msi_vectors
        if index == IRQ_MSIX:
            return self.spec.msix.vectors if self.spec.msix is not None else 0
        return int(index in (IRQ_ERR, IRQ_REQ))

    def read(self, region: int, offset: int, count: int) -> bytes:
        """An access of `count` bytes. Raises AccessError, InvalidAccess if it is impossible."""
        try:
            data = self._read(region, offset, count)
        except AccessError:
            self._log("r", region, offset, count, None)
            raise
        if self.record is not None:
            self._log("r", region, offset, count, data)
        return data

    def write(self, region: int, offset: int, data: bytes) -> None:
        """An access of `len(data)` bytes. Raises AccessError as `read`."""
        if self.record is not None:
            self._log("w", region, offset, len(data), data)
        self._write(region, offset, data)

    def _read(self, index: int, offset: int, count: int) -> bytes:
        region = self._check(index, offset, count)
        if not region.readable:
            raise _refusal(index, offset, count)
        if index == CONFIG_INDEX:
            return self._config.read(offset, count)
        behaviour = self._behaviour(index, offset, count)
        if behaviour is None:
            return self._memory[index].read(offset, count)
        return behaviour.read(offset, count).to_bytes(count, "little")

    def _write(self, index: int, offset: int, data: bytes) -> None:
        region = self._check(index, offset, len(data))
        if not region.writable:
            raise _refusal(index, offset, len(data))
        if index == CONFIG_INDEX:
            if self._config.write(offset, data):
                self.reset()
            return
        behaviour = self._behaviour(index, offset, len(data))
        if behaviour is None:
            self._memory[index].write(offset, data)
        else:
            behaviour.write(offset, len(data), int.from_bytes(data, "little"))

    def _check(self, index: int, offset: int, count: int) -> RegionSpec:
        region = self.spec.by_index.get(index)
        if region is None or offset + count > region.size:
            raise _refusal(index, offset, count)
        return region

    def _behaviour(self, index: int, offset: int, count: int) -> Behaviour | None:
        """The behaviour that answers an access, None for memory.

        Raises InvalidAccess for an access that no single register can take.
        """
        for found in self._ranges:
            if found.region == index and offset < found.end and found.start < offset + count:
                inside = found.start <= offset and offset + count <= found.end
                if not inside or count not in _WIDTHS or offset % count:
                    raise _refusal(index, offset, count)
                return found.behaviour
        return None

    def _log(self, what: str, region: int, offset: int, count: int, data: bytes | None) -> None:
        if self.record is None:
            return
        value = "-"
        if data is not None and count <= _WIDTHS[-1]:
            value = f"0x{int.from_bytes(data, 'little'):0{2 * count}x}"
        self.record(f"{what} {region_name(region)} {offset:#x} {count} {value}")

    def reset(self) -> None:
        """Restore the initial state of configuration space, memory and behaviours."""
        self._config.reset()
        for memory in self._memory.values():
            memory.reset()
        self._mask_vectors()
        for found in self._ranges:
            found.behaviour.reset()

    def _mask_vectors(self) -> None:
        """Vectors start masked: PCI Local Bus Specification 3.0, section 6.8.2.9."""
        msix = self.spec.msix
        if msix is not None:
            for vector in range(msix.vectors):
                offset = msix.table_offset + vector * _MSIX_ENTRY + _MSIX_VECTOR_CONTROL
                self._memory[msix.table_bar].write(offset, b"\1\0\0\0")

    def close(self) -> None:
        """Free the memory, except for windows that a client still maps."""
        self.stopping.set()
        for memory in self._memory.values():
            memory.close()
        os.close(self._fd)


def _round_up(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _offsets(regions: list[RegionSpec]) -> list[int]:
    """The start of each region when they lie one after another."""
    return list(itertools.accumulate((_round_up(r.size) for r in regions[:-1]), initial=0))[
        : len(regions)
    ]


def _refusal(region: int, offset: int, count: int) -> InvalidAccess:
    return InvalidAccess(region=region_name(region), offset=offset, width=count)
