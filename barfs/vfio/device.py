# SPDX-License-Identifier: MIT
"""A `Backend` over an open VFIO device, whichever way it was opened."""

import errno
import fcntl
import os
import select
import struct
from collections.abc import Mapping
from uuid import UUID

from barfs.backend import Signal, SignalKind, VfioPath
from barfs.engine import Owner, keep_from_children
from barfs.errors import DeviceError, RegionError
from barfs.host.sysfs import Machine
from barfs.layout import NARROW_WIDTH
from barfs.pci import Bdf
from barfs.text.system_errors import reason
from barfs.uapi import (
    DEVICE_INFO_SIZE,
    REGION_INFO_LIMIT,
    REGION_INFO_SIZE,
    DeviceInfo,
    RegionInfo,
    decode_region_info,
    region_info_argsz,
)
from barfs.vfio.cdev import TokenUnknown, cdev_possible, open_cdev
from barfs.vfio.group import group_node, open_group, require_noiommu
from barfs.vfio.irqs import ERROR_INDEX, REQUEST_INDEX, eventfd_of
from barfs.vfio.opening import Opening

_DEVICE_GET_INFO = 0x3B6B
_DEVICE_GET_REGION_INFO = 0x3B6C
_DEVICE_RESET = 0x3B6F

_FIRST_ARGSZ = 1024

_ATTRIBUTES = ("irq", "resource", "modalias", "numa_node", "label")
_LINKS = {"driver": "drivers", "iommu_group": "iommu_groups"}

_SIGNALS: dict[int, SignalKind] = {REQUEST_INDEX: "requested", ERROR_INDEX: "error"}


def _open(machine: Machine, bdf: Bdf, path: VfioPath, token: UUID | None) -> Opening:
    if path == "noiommu":
        require_noiommu(machine, bdf)
        return open_group(machine, bdf, token, noiommu=True)
    if path == "group":
        return open_group(machine, bdf, token, noiommu=False)
    if path == "cdev":
        return open_cdev(machine, bdf, token)
    return _open_auto(machine, bdf, token)


def _open_auto(machine: Machine, bdf: Bdf, token: UUID | None) -> Opening:
    """Over the character device where this user can, over the group otherwise; never noiommu."""
    if cdev_possible(machine, bdf):
        try:
            return open_cdev(machine, bdf, token)
        except TokenUnknown:
            if not group_node(machine, bdf).exists():
                raise
    return open_group(machine, bdf, token, noiommu=False)


class KernelDevice:
    """A `Backend` over a VFIO device descriptor.

    Opening it resets the function and clears bus mastering; closing it resets it again.
    Raises DeviceError naming what stands in the way.
    """

    max_width = NARROW_WIDTH
    """Older kernels do an 8-byte pread as two of 4 without a word, so none is ever asked for."""

    has_ports = True

    accessor = None
    """Accesses go through `access_fd`."""

    def __init__(
        self,
        bdf: Bdf,
        machine: Machine | None = None,
        *,
        path: VfioPath = "auto",
        token: UUID | None = None,
    ) -> None:
        self.bdf = bdf
        self.source = str(bdf)
        self._machine = machine or Machine()
        self._opening: Opening | None = _open(self._machine, bdf, path, token)
        self._fd = self._opening.fd
        self._events: dict[int, int] = {}
        self._owner = Owner()
        keep_from_children(self)
        try:
            for index in _SIGNALS:
                if (event := eventfd_of(self._fd, index)) is not None:
                    self._events[index] = event
        except BaseException:
            self.close()
            raise

    def device_info(self) -> DeviceInfo:
        data = bytearray(struct.pack("=I", DEVICE_INFO_SIZE).ljust(DEVICE_INFO_SIZE, b"\0"))
        self._ioctl(_DEVICE_GET_INFO, data, "describe itself")
        return DeviceInfo.decode(bytes(data))

    def region_info(self, index: int) -> RegionInfo:
        """Describe region `index`; asked again with more room until the whole chain fits."""
        argsz = _FIRST_ARGSZ
        while True:
            data = bytearray(struct.pack("=III", argsz, 0, index).ljust(argsz, b"\0"))
            try:
                self._ioctl(_DEVICE_GET_REGION_INFO, data, f"describe region {index}")
            except DeviceError as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EINVAL:
                    return RegionInfo(index, flags=0, size=0, offset=0)
                raise RegionError(str(error)) from error
            answer = bytes(data)
            needed = region_info_argsz(answer)
            if needed <= argsz:
                return decode_region_info(answer[: max(needed, REGION_INFO_SIZE)])
            if needed > REGION_INFO_LIMIT:
                raise RegionError(f"{self.bdf}: region {index} has an info of {needed} bytes")
            argsz = needed

    def _ioctl(self, request: int, data: bytearray, what: str) -> None:
        try:
            fcntl.ioctl(self._fd, request, data, True)
        except OSError as error:
            raise DeviceError(f"{self.bdf} does not {what}: {reason(error)}") from error

    def region_fd(self, index: int) -> int:
        return self._fd

    @property
    def access_fd(self) -> int:
        return self._fd

    def signals(self) -> tuple[Signal, ...]:
        """The kernel's wish to have the device back, and errors that the function reports."""
        return tuple(
            Signal(_SIGNALS[index], fd, select.POLLIN) for index, fd in self._events.items()
        )

    def attributes(self) -> Mapping[str, str]:
        """What sysfs has and pciutils reads: real addresses, which VFIO does not show, and more."""
        texts = {}
        for name in _ATTRIBUTES:
            try:
                data = (self._machine.pci_device(self.bdf) / name).read_bytes()
            except OSError:
                continue
            texts[name] = os.fsdecode(data)
        return texts

    def links(self) -> Mapping[str, str]:
        """The driver and the IOMMU group; both stay for as long as the function is open."""
        found = {}
        for name, folder in _LINKS.items():
            try:
                target = (self._machine.pci_device(self.bdf) / name).readlink().name
            except OSError:
                continue
            found[name] = f"{folder}/{target}"
        return found

    def reset(self) -> None:
        try:
            fcntl.ioctl(self._fd, _DEVICE_RESET)
        except OSError as error:
            raise DeviceError(f"{self.bdf} cannot be reset: {reason(error)}") from error

    def close(self) -> None:
        if self._opening is None or not self._owner.is_here:
            return
        opening, self._opening = self._opening, None
        # The eventfds last: who polls them finds out that the device went.
        os.close(self._fd)
        opening.release()
        for fd in self._events.values():
            os.close(fd)
        self._events.clear()

    def descriptors(self) -> tuple[int, ...]:
        if self._opening is None:
            return ()
        return (self._fd, *self._opening.others, *self._events.values())
