# SPDX-License-Identifier: MIT
"""Descriptions that ship with barfs, for devices by class or ids, and for configuration space.

Rule 1: a map whose places depend on the device is made when it is first asked for, by reads of
        registers without side effects. Until they succeed, it has what does not depend on them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from barfs.errors import BarfsError, DeviceError
from barfs.pci import ConfigSpace
from barfs.registers.model import Block
from barfs.registers.places import RegisterMap
from barfs.registers.shipped.ahci import PORTS_IMPLEMENTED, ahci
from barfs.registers.shipped.config_space import HEADER_SIZE, config_space, read_lists
from barfs.registers.shipped.demo import demo_bar0, demo_bar4
from barfs.registers.shipped.edu import edu
from barfs.registers.shipped.nvme import nvme
from barfs.registers.shipped.xhci import xhci

Read = Callable[[str, int, int], int]
"""One access: region, offset, width in bytes; raises BarfsError."""
ReadOne = Callable[[int, int], int]


@dataclass(frozen=True, slots=True)
class Ids:
    """What a device says it is; `class_code` has 24 bits."""

    vendor: int
    device: int
    subsystem_vendor: int
    subsystem_device: int
    class_code: int

    @classmethod
    def of(cls, config: ConfigSpace) -> "Ids":
        """What a configuration space says."""
        return cls(
            config.vendor,
            config.device,
            config.subsystem_vendor,
            config.subsystem_device,
            config.class_code,
        )


@dataclass(frozen=True, slots=True)
class MapSource:
    """Where a region's map comes from. `load` may read the device, and so may wait for it."""

    source: str
    load: Callable[[], RegisterMap]


Make = Callable[[ReadOne | None, int], Block]
"""The map of a region of that size; without a function to read it, what is there in any case."""


def _answering(read: ReadOne, capabilities: int) -> ReadOne:
    """Raises DeviceError where a register that cannot be all ones is: the device is not there."""
    if read(capabilities, 4) == 0xFFFF_FFFF:
        raise DeviceError("the device reads as all ones; enable memory decode, or wake it")
    return read


def _nvme(read: ReadOne | None, size: int) -> Block:
    return nvme(None if read is None else _answering(read, 0x04)(0x04, 4) & 0xF, size)


def _ahci(read: ReadOne | None, size: int) -> Block:
    return ahci(None if read is None else _answering(read, 0x00)(PORTS_IMPLEMENTED, 4), size)


def _xhci(read: ReadOne | None, size: int) -> Block:
    if read is None:
        return xhci(None, size)
    answering = _answering(read, 0x00)
    return xhci(lambda offset: answering(offset, 4), size)


def _config(read: ReadOne | None, size: int) -> Block:
    if read is None:
        return config_space(bytes(min(size, HEADER_SIZE)))
    return config_space(read_lists(lambda offset: read(offset, 4), size))


_BY_CLASS: dict[int, tuple[str, str, Make]] = {
    0x010802: ("nvme", "bar0", _nvme),
    0x010601: ("ahci", "bar5", _ahci),
    0x0C0330: ("xhci", "bar0", _xhci),
}
_BY_IDS: dict[tuple[int, int], tuple[tuple[str, str, Make], ...]] = {
    (0x1234, 0x11E8): (("edu", "bar0", lambda _read, size: edu(size)),),
    (0x1234, 0xBA5F): (
        ("demo", "bar0", lambda _read, size: demo_bar0(size)),
        ("demo", "bar4", lambda _read, size: demo_bar4(size)),
    ),
}


def shipped_maps(ids: Ids, sizes: Mapping[str, int], read: Read) -> dict[str, MapSource]:
    """The maps of those of these regions that barfs knows, by region."""
    known = list(_BY_IDS.get((ids.vendor, ids.device), ()))
    if ids.class_code in _BY_CLASS:
        known.append(_BY_CLASS[ids.class_code])
    known.append(("config", "config", _config))
    return {
        region: _Late(name, make, region, sizes[region], read).source()
        for name, region, make in known
        if region in sizes
    }


class _Late:
    """A map that is made when it is asked for, and kept once all reads have succeeded."""

    def __init__(self, name: str, make: Make, region: str, size: int, read: Read) -> None:
        self._name = f"barfs:{name}"
        self._make = make
        self._size = size
        self._read: ReadOne = lambda offset, width: read(region, offset, width)
        self._made: RegisterMap | None = None

    def source(self) -> MapSource:
        return MapSource(self._name, self._load)

    def _load(self) -> RegisterMap:
        if self._made is not None:
            return self._made
        try:
            self._made = RegisterMap(self._make(self._read, self._size), self._name)
        except BarfsError:
            return RegisterMap(self._make(None, self._size), self._name)
        return self._made
