# SPDX-License-Identifier: MIT
"""A device as Python sees it: a mapping of names to its regions.

Rule 1: a device is opened once and held; opening and closing make the kernel reset the function.
Rule 2: a window that cannot be mapped becomes `pread`, a region that cannot be described is left
        out with a line in the log; the device opens in both cases.
Rule 3: a device belongs to the process that opened it: in one that is forked from it every use is
        refused, and `close` does nothing.
Rule 4: `close` refuses new accesses, waits for those inside, and only then unmaps.
"""

import bisect
import errno
import functools
import logging
import select
import threading
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from barfs import engine
from barfs.backend import Backend, NoDescriptor, Signal, VfioPath
from barfs.engine.windows import MappedWindows
from barfs.errors import AccessError, DeviceError, RegionError, UsageError
from barfs.layout import REASON_MMAP_FAILED, Layout, MsixMode, MsixPlace, PlanOptions, Segment, plan
from barfs.pci import (
    CONFIG_HEADER_SIZE,
    CONFIG_INDEX,
    CONFIG_SIZE,
    VGA_INDEX,
    Bdf,
    ConfigSpace,
    ReadOnDemand,
    region_index,
    region_name,
    sysfs_attributes,
)
from barfs.policy import EVERYTHING, AccessPolicy
from barfs.ranges import merge, overlay
from barfs.region import Region, forked, restrict, unmap
from barfs.text.system_errors import reason
from barfs.uapi import RegionInfo
from barfs.widths import AllowedWidths, Widths, widths_of

if TYPE_CHECKING:
    from barfs.registers.access import DeviceRegisters
    from barfs.registers.find import Choice

MappingMode = Literal["separate", "contiguous", "off"]

LEAST_TRACE = 4096

_LONGEST_TIMEOUT = 10**9
"""Seconds; the deadlines of the engine are nanoseconds in 64 bits."""

TIMEOUT = f"a positive number of seconds, at most {_LONGEST_TIMEOUT}"
"""What `is_timeout` is true for, in words."""

REGION_LIMIT = 256
"""A device that claims more regions than this is not believed."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """How a device is opened.

    `mapping`: each window by itself, all windows of a region in one reserved range of the region's
    shape, or none. `width`: how longer or misaligned requests are cut, in bytes (1, 2, 4, 8).
    `msix`: whether the MSI-X table's pages stay in the windows. `timeout`: seconds that the device
    may take for one access. `guard`: refuse a request that is not one access of the device (except
    reads of configuration space, which have no side effects; pciutils reads it whole). `widths`:
    the widths that accesses may have, except in configuration space. `policy`: the ranges that may
    not be written or not be accessed, or only with some widths. `vfio`: the way into kernel VFIO;
    `noiommu` leaves DMA unconfined. `trace`: a file that gets a line for each access, and is
    renamed to end in `.1` when it has `trace_limit` bytes. `registers`: the description of each
    region's registers (a file for `"bar0"` or `"bar0+0x100"`), "off" for none; without it, the
    installed and shipped ones. Raises UsageError for any other value.

        >>> Options(width=8, timeout=0.5).mapping
        'separate'
        >>> Options(width=3)
        Traceback (most recent call last):
            ...
        barfs.errors.UsageError: width must be 1, 2, 4 or 8 bytes, not 3
    """

    mapping: MappingMode = "separate"
    width: int = 4
    msix: MsixMode = "map"
    read_only: bool = False
    timeout: float = 5.0
    vfio: VfioPath = "auto"
    guard: bool = False
    policy: AccessPolicy = EVERYTHING
    trace: str | PathLike[str] | None = None
    trace_limit: int = 256 << 20
    registers: "Choice | None" = None
    widths: Collection[int] | None = None

    def __post_init__(self) -> None:
        if self.widths is not None:
            object.__setattr__(self, "widths", _checked_widths(self.widths))
        if self.mapping not in ("separate", "contiguous", "off"):
            raise UsageError(f"mapping must be separate, contiguous or off, not {self.mapping!r}")
        if self.msix not in ("map", "carve"):
            raise UsageError(f"msix must be map or carve, not {self.msix!r}")
        if self.vfio not in ("auto", "cdev", "group", "noiommu"):
            raise UsageError(f"vfio must be auto, cdev, group or noiommu, not {self.vfio!r}")
        if not is_timeout(self.timeout):
            raise UsageError(f"timeout must be {TIMEOUT}, not {self.timeout!r}")
        if not LEAST_TRACE <= self.trace_limit < 1 << 63:
            raise UsageError(
                f"trace_limit must be at least {LEAST_TRACE} bytes, not {self.trace_limit}"
            )
        if self.msix == "carve" and self.mapping == "off":
            raise UsageError("msix=carve has no meaning with mapping=off: nothing is mapped")
        _ = self.plan_options

    @property
    def plan_options(self) -> PlanOptions:
        return PlanOptions(self.width, self.mapping != "off", self.msix, self.read_only)


def is_timeout(value: object) -> bool:
    """Whether it is a time that a device may be given for one access."""
    return isinstance(value, int | float) and 0 < value <= _LONGEST_TIMEOUT


def _checked_widths(widths: Collection[int]) -> Widths:
    try:
        return widths_of(widths)
    except (ValueError, TypeError):
        raise UsageError(
            f"widths must be some of 1, 2, 4 and 8 bytes, like (4, 8), not {widths!r}"
        ) from None


class Device:
    """An open device: a mapping from region names (`"bar0"`, `"config"`) to `Region`.

    Takes over `backend` and closes it, also when the constructor fails. Raises DeviceError when
    the device cannot be described.

        >>> import barfs
        >>> with barfs.open("demo", mapping="contiguous") as device:
        ...     print({name: hex(device[name].size) for name in device if name != "config"})
        {'bar0': '0x10000', 'bar2': '0x100000', 'bar4': '0x40', 'bar5': '0x4000', 'rom': '0x1000'}
        >>> device["bar1"]  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        barfs.errors.UsageError: ffff:00:00.0 has no bar1; it has bar0, bar2, bar4, ...
    """

    def __init__(self, backend: Backend, options: Options | None = None) -> None:
        self.bdf: Bdf = backend.bdf
        self.source: str = backend.source
        self.options = options or Options()
        self._in_flight = engine.InFlight()
        self.regions: dict[str, Region] = {}
        self._backend = backend
        self._turns = engine.Turns()
        self._closing = threading.Lock()
        self._owner = engine.Owner()
        self._trace: engine.Trace | None = None
        try:
            if self.options.trace is not None:
                self._trace = engine.Trace(
                    self.options.trace, str(self.bdf), self.options.trace_limit
                )
            self.attributes = self._discover()
            self.links = backend.links()
            self.host_files = backend.host_files()
            self.slot = backend.slot()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Device {self.source}: {' '.join(self.regions)}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __getitem__(self, name: str) -> Region:
        """The region of that name. Raises UsageError naming those that exist."""
        try:
            return self.regions[name]
        except KeyError:
            existing = ", ".join(self.regions)
            raise UsageError(f"{self.bdf} has no {name}; it has {existing}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.regions)

    @functools.cached_property
    def registers(self) -> "DeviceRegisters":
        """Its registers by name (`barfs.registers.access`), found when they are first asked for.

        Raises DescriptionError, UsageError.
        """
        # Imported here: most uses of a device need no name.
        from barfs.registers.access import bind

        return bind(
            self.regions,
            self.attributes,
            self.options.registers,
            timeout=self.options.timeout,
            warn=functools.partial(log.warning, "%s"),
        )

    @property
    def signals(self) -> tuple[Signal, ...]:
        """The events that the device reports by itself; none in a forked child."""
        return self._backend.signals() if self._owner.is_here else ()

    @property
    def gone(self) -> bool:
        """Whether every access is refused, of windows too: the device was lost or closed, the
        kernel wants it back (and waits for `close`), or this process is a forked child."""
        if not self._owner.is_here:
            return True
        if not self._in_flight.closed:
            poll = select.poll()
            for signal in self.signals:
                if signal.kind != "error":
                    poll.register(signal.fd, signal.events)
            if poll.poll(0):
                self._in_flight.close()
        return self._in_flight.closed

    def reset(self) -> None:
        """Reset the function. Raises DeviceError where it cannot, ForkedDevice in a child."""
        if not self._owner.is_here:
            raise forked(self.source)
        self._backend.reset()

    def close(self, grace: float | None = None) -> bool:
        """Refuse new accesses, let those inside finish, unmap, and give the device back.

        `grace` is how many seconds to wait for them, None for the request timeout. Returns False
        when one of them did not finish: the mappings then stay, since unmapping memory under an
        access would kill the process. Does nothing in a forked child.
        """
        if not self._owner.is_here:
            return True
        self._in_flight.close()
        if not self._in_flight.drain(self.options.timeout if grace is None else grace):
            log.error("%s: an access has not come back; its mappings are left in place", self.bdf)
            return False
        with self._closing:
            for region in self.regions.values():
                unmap(region)
            self._backend.close()
            if self._trace is not None:
                self._trace.close()
                self._trace = None
        return True

    def _discover(self) -> dict[str, str]:
        """Make the regions; returns the texts of the sysfs-like attributes."""
        infos = self._region_infos()
        self._widths = self._allowed_widths(infos.values())
        config = self._read_config(infos.pop(CONFIG_INDEX, None))
        bars = config.bars()
        msix = config.msix()
        for index, info in infos.items():
            port = self._backend.has_ports and index in bars and bars[index].kind == "io"
            self._add_region(info, port=port, msix=MsixPlace.in_bar(msix, index))
        self.regions = dict(sorted(self.regions.items(), key=lambda item: region_index(item[0])))
        self._restrict()
        sizes = {index: info.size for index, info in infos.items()}
        return sysfs_attributes(config, sizes) | dict(self._backend.attributes())

    def _restrict(self) -> None:
        sizes = {name: region.size for name, region in self.regions.items()}
        restrictions = self.options.policy.restrictions([str(self.bdf), self.source], sizes)
        for name, parts in restrictions.items():
            restrict(self.regions[name], parts)

    def _allowed_widths(self, infos: Iterable[RegionInfo]) -> dict[int, list[AllowedWidths]]:
        """The widths that the options and the policy allow in the ranges of each region."""
        sizes = {region_name(info.index): info.size for info in infos}
        found: dict[int, list[AllowedWidths]] = {}
        if self.options.widths is not None:
            allowed = tuple(self.options.widths)
            for name, size in sizes.items():
                if region_index(name) != CONFIG_INDEX:
                    found[region_index(name)] = [AllowedWidths(0, size, allowed)]
        names = [str(self.bdf), self.source]
        for name, parts in self.options.policy.widths(names, sizes).items():
            layers = [*found.get(region_index(name), ()), *parts]
            found[region_index(name)] = merge(overlay(layers))
        return found

    def _region_infos(self) -> dict[int, RegionInfo]:
        count = self._backend.device_info().num_regions
        if count > REGION_LIMIT:
            raise DeviceError(f"{self.source} claims {count} regions, more than {REGION_LIMIT}")
        infos = {}
        for index in range(count):
            if index == VGA_INDEX:
                continue
            try:
                info = self._backend.region_info(index)
            except RegionError as error:
                log.warning("%s: %s is left out: %s", self.bdf, region_name(index), error)
                continue
            if info.chain_error is not None:
                log.warning("%s: %s: %s", self.bdf, region_name(index), info.chain_error)
            if info.size:
                infos[index] = info
        return infos

    def _read_config(self, info: RegionInfo | None) -> ConfigSpace:
        if info is None:
            return ConfigSpace(b"")
        region = self._add_region(info, port=False, msix=None)

        def read(offset: int, count: int) -> bytes:
            try:
                return region.read(offset, count)
            except AccessError as error:
                if offset:
                    return b""
                raise DeviceError(
                    f"{self.source}: configuration space cannot be read: {error}"
                ) from error

        return ConfigSpace(ReadOnDemand(read, CONFIG_HEADER_SIZE, min(region.size, CONFIG_SIZE)))

    def _add_region(self, info: RegionInfo, *, port: bool, msix: MsixPlace | None) -> Region:
        layout = self._backend.layout(info.index) or plan(
            info,
            device=str(self.bdf),
            options=self.options.plan_options,
            page_size=engine.PAGE_SIZE,
            gap_width=self._backend.max_width,
            port=port,
            msix=msix,
        )
        fd = self._backend.region_fd(info.index) if layout.windows else None
        mapped, failed = self._map_windows(layout, fd, info.offset)
        layout = layout.with_failed_windows(failed, self._backend.max_width)
        widths = self._widths.get(info.index, ())
        layout = layout.with_widths(widths)
        table = engine.Table(
            self._in_flight,
            layout.size,
            layout.width,
            self._entries(layout, info, mapped),
            port=port,
            guard_reads=self.options.guard and info.index != CONFIG_INDEX,
            guard_writes=self.options.guard,
            name=layout.region,
            timeout=self.options.timeout,
            trace=self._trace,
        )
        backing = (fd, info.offset) if isinstance(fd, int) else None
        region = Region(layout, table, mapped, backing, restricted=bool(widths))
        self.regions[layout.region] = region
        return region

    def _map_windows(
        self, layout: Layout, fd: int | NoDescriptor | None, offset: int
    ) -> tuple[MappedWindows, dict[int, str]]:
        """Map the windows; returns the mappings, and the reasons of windows that have none."""
        windows = layout.windows
        if not isinstance(fd, int):
            return MappedWindows((), -1, offset), dict.fromkeys(
                (window.start for window in windows), fd or ""
            )
        reserve = layout.size if self.options.mapping == "contiguous" else None
        mapped = MappedWindows(windows, fd, offset, reserve=reserve)
        failed = {}
        for start, error in mapped.failed.items():
            name = errno.errorcode.get(error.errno or 0, "EIO")
            failed[start] = f"{REASON_MMAP_FAILED}:{name}"
            why = reason(error, mapping=True)
            log.warning("%s: %s+%#x is not mapped: %s", self.bdf, layout.region, start, why)
        return mapped, failed

    def _entries(
        self, layout: Layout, info: RegionInfo, mapped: MappedWindows
    ) -> list[engine.TableEntry]:
        """The table of a layout. Segments that differ in their reason alone are one entry, so that
        no access is cut at an edge that means nothing to the device."""
        gap = self._gap(info)
        starts = sorted(mapped.mappings)

        def target(segment: Segment) -> engine.Target:
            if segment.access == "mmap":  # all of a window, or the part that some widths have
                start = starts[bisect.bisect_right(starts, segment.start) - 1]
                return engine.Memory(mapped.mappings[start], segment.start - start)
            return engine.Refused() if segment.access == "none" else gap

        return merge(
            engine.TableEntry(
                segment.start,
                segment.end,
                segment.readable,
                segment.writable,
                segment.width,
                target(segment),
                segment.allowed,
            )
            for segment in layout.segments
        )

    def _gap(self, info: RegionInfo) -> engine.Target:
        """The target of an access outside the windows."""
        backend = self._backend
        if backend.access_fd is not None:
            return engine.Descriptor(backend.access_fd, info.offset)
        if backend.accessor is None:
            return engine.Refused()
        return engine.Call(
            functools.partial(backend.accessor.read, info.index),
            functools.partial(backend.accessor.write, info.index),
            self._turns,
            backend.accessor.exchange(info.index),
        )


def in_flight_of(device: Device) -> engine.InFlight:
    """The accesses in flight in the device's tables, for the mount that refuses further ones."""
    return device._in_flight
