# SPDX-License-Identifier: MIT
"""What a device is reached through: the protocol that `kernel` and `vfio_user.client` fulfil.

Rule 1: a backend moves one access at a time; splitting, windows, ends and permissions are not its
        business (`barfs.engine` does them once for all).
Rule 2: synchronous, and callable from several threads at once. Concurrency and deadlines of whole
        requests belong to the file system; a backend bounds the time of one access.
Rule 3: opening takes place before a backend exists: whoever has one, has an open device.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from barfs.pci import Bdf
from barfs.uapi import DeviceInfo, RegionInfo

VfioPath = Literal["auto", "cdev", "group", "noiommu"]
"""The way into kernel VFIO: the function's character device, its group, or no IOMMU at all. `auto`
is the first of the first two that the user may open."""

NoDescriptor = Literal["no-descriptor", "bad-descriptor", "descriptors-differ"]
"""Why nothing can be mapped of a region that has windows by its info, in the layout's words."""

SignalKind = Literal["lost", "requested", "error"]


@dataclass(frozen=True, slots=True)
class Signal:
    """What a device has to say without being asked: `fd` shows one of `events` (of poll(2)).

    `lost`: it is gone. `requested`: the kernel wants it back, and waits until it is closed.
    `error`: it reported an error and goes on; `fd` is an eventfd, read for each.
    """

    kind: SignalKind
    fd: int
    events: int


class Accessor(Protocol):
    """Accesses of a device that are function calls."""

    def read(self, region: int, offset: int, width: int) -> bytes:
        """One access of `width` bytes (1, 2, 4 or 8) at `offset` in the region.

        Returns `width` bytes as the device has them. Raises AccessError.
        """

    def write(self, region: int, offset: int, data: bytes) -> None:
        """One access of `len(data)` bytes (1, 2, 4 or 8). Raises AccessError."""


class Backend(Protocol):
    """An open device. `source` is what the user named to get it; `bdf` is its place in `bus/`.

    `max_width` is the widest access, in bytes, that a gap of a memory BAR takes in one piece;
    `has_ports` says whether an I/O BAR is made of ports, which take one aligned access of 1, 2 or 4
    bytes, or is a region like any other.
    """

    @property
    def bdf(self) -> Bdf: ...

    @property
    def source(self) -> str: ...

    @property
    def max_width(self) -> int: ...

    @property
    def has_ports(self) -> bool: ...

    def device_info(self) -> DeviceInfo:
        """Raises DeviceError."""

    def region_info(self, index: int) -> RegionInfo:
        """Describe region `index`; an absent one has size 0.

        Raises RegionError where only this one cannot be described, else DeviceError.
        """

    def region_fd(self, index: int) -> int | NoDescriptor:
        """The descriptor to map windows from, at `info.offset + area.offset`, or why there is none.

        The backend keeps ownership.
        """

    def accessor(self) -> "int | Accessor":
        """What an access outside the windows goes through.

        A descriptor, on which one `pread` or `pwrite` at `info.offset + offset` is one access; or
        an object whose `read` and `write` are.
        """

    def attributes(self) -> Mapping[str, str]:
        """Texts of sysfs attributes (`irq`, `resource`) that are known better here than from
        configuration space, or only here (`modalias`)."""

    def links(self) -> Mapping[str, str]:
        """Links that sysfs has for the function, by name, as folder and name of what they lead to:
        `driver` is `drivers/vfio-pci`."""

    def signals(self) -> tuple[Signal, ...]:
        """What to wait for. The backend keeps ownership; valid until `close`."""

    def reset(self) -> None:
        """Reset the function. Raises DeviceError where it cannot."""

    def close(self) -> None:
        """Give the device back; may be called again."""
