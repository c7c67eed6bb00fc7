# SPDX-License-Identifier: MIT
"""The protocol of a backend: `vfio.device`, `vfio_user.client`, `attached.device` implement it.

Rule 1: a backend does one access at a time. `barfs.engine` splits requests, and knows windows, ends
        and permissions, for all backends.
Rule 2: a backend is synchronous, and callable from several threads at once. It bounds the time of
        one access; the file system bounds requests and decides what runs in parallel.
Rule 3: a backend is an open device; making one opens it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from barfs.layout import Layout
from barfs.pci import Bdf
from barfs.uapi import DeviceInfo, RegionInfo

VfioPath = Literal["auto", "cdev", "group", "noiommu"]
"""The way into kernel VFIO: the function's character device, its group, or no IOMMU at all. `auto`
is the first of the first two that the user may open."""

NoDescriptor = Literal["no-descriptor", "bad-descriptor", "descriptors-differ"]
"""Why nothing of a region can be mapped although its info has windows, in the layout's words."""

SignalKind = Literal["lost", "requested", "error"]


@dataclass(frozen=True, slots=True)
class Signal:
    """An event that a device reports by itself: `fd` shows one of `events` (of poll(2)).

    `lost`: it is gone. `requested`: the kernel wants it back, and waits until it is closed.
    `error`: it reported an error and goes on; `fd` is an eventfd, to be read each time.
    """

    kind: SignalKind
    fd: int
    events: int


HOST_FILES = ("vpd",)
"""The names of files that a mount reads through."""


@dataclass(frozen=True, slots=True)
class HostFile:
    """A file of the host's sysfs that only root may read, and that a read may take long for.

    `size` is what sysfs shows for it.
    """

    path: Path
    size: int


class Accessor(Protocol):
    """The accesses of a device whose accesses are function calls."""

    def read(self, region: int, offset: int, width: int) -> bytes:
        """One access of `width` bytes (1, 2, 4 or 8) at `offset` in the region.

        Returns `width` bytes as the device has them. Raises AccessError.
        """

    def write(self, region: int, offset: int, data: bytes) -> None:
        """One access of `len(data)` bytes (1, 2, 4 or 8). Raises AccessError."""


class Backend(Protocol):
    """An open device. `source` is what the user named to get it; `bdf` is its name in `bus/`.

    `max_width` is the widest access, in bytes, that a gap of a memory BAR takes in one piece;
    `has_ports` says whether an I/O BAR is made of ports, which take one aligned access of 1, 2 or 4
    bytes, or is a region like any other.

    An access outside the windows goes through `access_fd`, where there is one: a `pread` or
    `pwrite` at `info.offset + offset` is one access. Else it goes through `accessor`. The backend
    keeps ownership of the descriptor, which is valid until `close`.
    """

    @property
    def bdf(self) -> Bdf: ...

    @property
    def source(self) -> str: ...

    @property
    def max_width(self) -> int: ...

    @property
    def has_ports(self) -> bool: ...

    @property
    def access_fd(self) -> int | None: ...

    @property
    def accessor(self) -> Accessor | None: ...

    def device_info(self) -> DeviceInfo:
        """Describe the device: how many regions it has. Raises DeviceError."""

    def region_info(self, index: int) -> RegionInfo:
        """Describe region `index`; an absent one has size 0.

        Raises RegionError where only this one cannot be described, else DeviceError.
        """

    def layout(self, index: int) -> Layout | None:
        """The layout of an existing region that has been decided; None: plan it from its info."""

    def region_fd(self, index: int) -> int | NoDescriptor:
        """The descriptor to map windows from, at `info.offset + area.offset`, or why there is none.

        The backend keeps ownership.
        """

    def attributes(self) -> Mapping[str, str]:
        """The texts of sysfs attributes that the backend knows better than configuration space
        does (`irq`, `resource`), or that it alone knows (`modalias`)."""

    def links(self) -> Mapping[str, str]:
        """The links that sysfs has for the function, by name, each as the folder and name of its
        target: `driver` is `drivers/vfio-pci`."""

    def host_files(self) -> Mapping[str, HostFile]:
        """The files of the function in sysfs that a mount reads through, by name (`vpd`)."""

    def slot(self) -> str | None:
        """The name of the physical slot that the function is in, where the kernel knows it."""

    def signals(self) -> tuple[Signal, ...]:
        """The events to wait for. The backend keeps ownership; valid until `close`."""

    def reset(self) -> None:
        """Reset the function. Raises DeviceError where it cannot."""

    def close(self) -> None:
        """Give the device back. Idempotent."""
