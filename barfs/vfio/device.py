# SPDX-License-Identifier: MIT
"""A `Backend` over the device file of a function, whichever way it was opened."""

import contextlib
import errno
import fcntl
import os
import select
import struct
from collections.abc import Mapping
from uuid import UUID

from barfs.backend import HOST_FILES, HostFile, Signal, SignalKind, VfioPath
from barfs.engine import Owner, keep_from_children
from barfs.errors import DeviceError, RegionError
from barfs.host.device_nodes import cdev_usable
from barfs.host.iommu import require_iommu_group
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
from barfs.vfio.cdev import TokenUnknown, open_cdev
from barfs.vfio.device_file import DeviceFile
from barfs.vfio.group import open_group, require_noiommu
from barfs.vfio.ioctls import (
    VFIO_DEVICE_GET_INFO,
    VFIO_DEVICE_GET_REGION_INFO,
    VFIO_DEVICE_RESET,
    VFIO_PCI_ERR_IRQ_INDEX,
    VFIO_PCI_REQ_IRQ_INDEX,
)
from barfs.vfio.irqs import eventfd_of

_FIRST_ARGSZ = 1024

_ATTRIBUTES = ("irq", "resource", "modalias", "numa_node", "label")
_LINKS = {"driver": "drivers", "iommu_group": "iommu_groups"}

_SIGNALS: dict[int, SignalKind] = {
    VFIO_PCI_REQ_IRQ_INDEX: "requested",
    VFIO_PCI_ERR_IRQ_INDEX: "error",
}


def _open(machine: Machine, bdf: Bdf, path: VfioPath, token: UUID | None) -> DeviceFile:
    if path == "noiommu":
        require_noiommu(machine, bdf)
        return open_group(machine, bdf, token, noiommu=True)
    if path == "group":
        return open_group(machine, bdf, token, noiommu=False)
    if path == "cdev":
        return open_cdev(machine, bdf, token)
    return _open_auto(machine, bdf, token)


def _open_auto(machine: Machine, bdf: Bdf, token: UUID | None) -> DeviceFile:
    """Through the character device if this user may open it, else the group; never noiommu."""
    if cdev_usable(machine, bdf):
        try:
            return open_cdev(machine, bdf, token)
        except TokenUnknown:
            if not machine.group_device_node(require_iommu_group(machine, bdf)).exists():
                raise
    return open_group(machine, bdf, token, noiommu=False)


class KernelDevice:
    """A `Backend` over a VFIO device descriptor.

    The kernel resets the function and clears bus mastering when it is opened, and resets it again
    when it is closed. Raises DeviceError naming the obstacle and the command that removes it.
    """

    max_width = NARROW_WIDTH
    """Older kernels silently split an 8-byte pread into two of 4, so barfs never makes one."""

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
        self._file: DeviceFile | None = _open(self._machine, bdf, path, token)
        self._fd = self._file.fd
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
        self._ioctl(VFIO_DEVICE_GET_INFO, data, "describe itself")
        return DeviceInfo.decode(bytes(data))

    def region_info(self, index: int) -> RegionInfo:
        """Describe region `index`, asking again with more room until all capabilities fit."""
        argsz = _FIRST_ARGSZ
        while True:
            data = bytearray(struct.pack("=III", argsz, 0, index).ljust(argsz, b"\0"))
            try:
                self._ioctl(VFIO_DEVICE_GET_REGION_INFO, data, f"describe region {index}")
            except DeviceError as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EINVAL:
                    return RegionInfo(index, flags=0, size=0, offset=0)
                raise RegionError(str(error)) from error
            answer = bytes(data)
            needed = region_info_argsz(answer)
            if needed <= argsz:
                return decode_region_info(answer[: max(needed, REGION_INFO_SIZE)])
            if needed > REGION_INFO_LIMIT:
                raise RegionError(
                    f"info of region {index} of {self.bdf} must have at most {REGION_INFO_LIMIT} "
                    f"bytes, not {needed}"
                )
            argsz = needed

    def _ioctl(self, request: int, data: bytearray, what: str) -> None:
        try:
            fcntl.ioctl(self._fd, request, data, True)
        except OSError as error:
            raise DeviceError(f"{self.bdf} cannot {what}: {reason(error)}") from error

    def layout(self, index: int) -> None:
        """None has been decided."""

    def region_fd(self, index: int) -> int:
        return self._fd

    @property
    def access_fd(self) -> int:
        return self._fd

    def signals(self) -> tuple[Signal, ...]:
        """The kernel's request to release the device, and errors that the function reports."""
        return tuple(
            Signal(_SIGNALS[index], fd, select.POLLIN) for index, fd in self._events.items()
        )

    def attributes(self) -> Mapping[str, str]:
        """The sysfs attributes that pciutils reads, such as real addresses, which VFIO hides."""
        texts = {}
        for name in _ATTRIBUTES:
            try:
                data = (self._machine.pci_device(self.bdf) / name).read_bytes()
            except OSError:
                continue
            texts[name] = os.fsdecode(data)
        return texts

    def links(self) -> Mapping[str, str]:
        """The driver and the IOMMU group; neither changes while the function is open."""
        found = {}
        for name, folder in _LINKS.items():
            try:
                target = (self._machine.pci_device(self.bdf) / name).readlink().name
            except OSError:
                continue
            found[name] = f"{folder}/{target}"
        return found

    def host_files(self) -> Mapping[str, HostFile]:
        """`vpd`: VFIO hides that it is read by a dialogue in configuration space, which the kernel
        keeps to itself."""
        found = {}
        for name in HOST_FILES:
            path = self._machine.pci_device(self.bdf) / name
            with contextlib.suppress(OSError):
                found[name] = HostFile(path, path.stat().st_size)
        return found

    def slot(self) -> str | None:
        return self._machine.find_slot(self.bdf)

    def reset(self) -> None:
        try:
            fcntl.ioctl(self._fd, VFIO_DEVICE_RESET)
        except OSError as error:
            raise DeviceError(f"{self.bdf} cannot be reset: {reason(error)}") from error

    def close(self) -> None:
        if self._file is None or not self._owner.is_here:
            return
        file, self._file = self._file, None
        # The eventfds last: a thread that polls them learns that the device is gone.
        os.close(self._fd)
        file.release()
        for fd in self._events.values():
            os.close(fd)
        self._events.clear()

    def descriptors(self) -> tuple[int, ...]:
        if self._file is None:
            return ()
        return (self._fd, *self._file.others, *self._events.values())
