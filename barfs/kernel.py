# SPDX-License-Identifier: MIT
"""Kernel VFIO through the group interface: containers, groups, device descriptors.

Rule 1: the only ioctls on VFIO descriptors are in this module.
Rule 2: nothing is rebound, enabled or reset on the way (the kernel itself resets the function when
        its descriptor is opened and when it is closed).
Rule 3: what can stand between a user and a device is told apart and answered with what to do next.
Rule 4: abilities are probed; versions of the kernel are never compared.

The interface is `linux/vfio.h`; constants are declared here, since build hosts' headers are old.
"""

import array
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from barfs.errors import DeviceError, RegionError
from barfs.layout import NARROW_WIDTH
from barfs.machine import Machine
from barfs.pci import Bdf
from barfs.uapi import (
    DEVICE_INFO_SIZE,
    REGION_INFO_LIMIT,
    REGION_INFO_SIZE,
    DeviceInfo,
    RegionInfo,
    decode_region_info,
    region_info_argsz,
)

_GET_API_VERSION = 0x3B64
_CHECK_EXTENSION = 0x3B65
_SET_IOMMU = 0x3B66
_GROUP_GET_STATUS = 0x3B67
_GROUP_SET_CONTAINER = 0x3B68
_GROUP_GET_DEVICE_FD = 0x3B6A
_DEVICE_GET_INFO = 0x3B6B
_DEVICE_GET_REGION_INFO = 0x3B6C
_DEVICE_RESET = 0x3B6F

_API_VERSION = 0
_TYPE1_IOMMU = 1
_TYPE1_V2_IOMMU = 3
_GROUP_FLAG_VIABLE = 1

_FIRST_ARGSZ = 1024


class _Group:
    """An open IOMMU group with its container; its devices share it, since it opens only once."""

    _open: ClassVar[dict[tuple[Path, int], "_Group"]] = {}
    _lock = threading.Lock()

    def __init__(self, machine: Machine, number: int, bdf: Bdf) -> None:
        self.key = (machine.dev, number)
        self.number = number
        self.users = 0
        self.container = _open_node(machine.dev / "vfio/vfio", "modprobe vfio-pci makes it")
        try:
            self.fd = self._open_group(machine, bdf)
        except BaseException:
            os.close(self.container)
            raise
        try:
            self._attach(machine)
        except BaseException:
            self._close()
            raise

    @classmethod
    def acquire(cls, machine: Machine, number: int, bdf: Bdf) -> "_Group":
        with cls._lock:
            group = cls._open.get((machine.dev, number))
            if group is None:
                group = cls._open[machine.dev, number] = cls(machine, number, bdf)
            group.users += 1
            return group

    def release(self) -> None:
        with self._lock:
            self.users -= 1
            if self.users == 0:
                del self._open[self.key]
                self._close()

    def _close(self) -> None:
        os.close(self.fd)
        os.close(self.container)

    def _open_group(self, machine: Machine, bdf: Bdf) -> int:
        node = machine.dev / "vfio" / str(self.number)
        if not node.exists():
            raise _not_bound(machine, bdf)
        return _open_node(node, machine.bind_commands(bdf))

    def _attach(self, machine: Machine) -> None:
        version = fcntl.ioctl(self.container, _GET_API_VERSION)
        if version != _API_VERSION:
            raise DeviceError(f"{machine.dev}/vfio/vfio speaks API version {version}, not 0")
        status = array.array("I", [8, 0])
        fcntl.ioctl(self.fd, _GROUP_GET_STATUS, status, True)
        if not status[1] & _GROUP_FLAG_VIABLE:
            raise self._not_viable(machine)
        try:
            fcntl.ioctl(self.fd, _GROUP_SET_CONTAINER, struct.pack("i", self.container))
            fcntl.ioctl(self.container, _SET_IOMMU, self._iommu_type())
        except OSError as error:
            hint = (
                "without interrupt remapping the kernel asks for the module parameter "
                "vfio_iommu_type1.allow_unsafe_interrupts=1"
                if error.errno == errno.EPERM
                else "is vfio_iommu_type1 loaded?"
            )
            raise DeviceError(
                f"group {self.number} cannot be given to the IOMMU: {error.strerror}; {hint}"
            ) from error

    def _iommu_type(self) -> int:
        version_2 = fcntl.ioctl(self.container, _CHECK_EXTENSION, _TYPE1_V2_IOMMU)
        return _TYPE1_V2_IOMMU if version_2 else _TYPE1_IOMMU

    def _not_viable(self, machine: Machine) -> DeviceError:
        blockers = machine.blockers(self.number)
        names = ", ".join(f"{member} is bound to {driver}" for member, driver in blockers)
        return DeviceError(
            f"group {self.number} is not viable: {names or 'a member is bound to a host driver'}; "
            "unbind it, or bind it to vfio-pci too"
        )

    def device_fd(self, machine: Machine, bdf: Bdf) -> int:
        """Open the function. This resets it."""
        name = bytearray(str(bdf).encode() + b"\0")
        try:
            return int(fcntl.ioctl(self.fd, _GROUP_GET_DEVICE_FD, name))
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise _not_bound(machine, bdf) from error
            if error.errno == errno.EBUSY:
                raise DeviceError(
                    f"{bdf} is open elsewhere; fuser -v {machine.dev}/vfio/{self.number} tells by "
                    "whom"
                ) from error
            raise DeviceError(f"{bdf} cannot be opened: {error.strerror}") from error


def _open_node(node: Path, hint: str) -> int:
    try:
        return os.open(node, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise DeviceError(f"{node} does not exist; {hint}") from error
    except PermissionError as error:
        raise DeviceError(
            f"{node}: permission denied; run as root, or let root do: chown {os.getuid()} {node}"
        ) from error
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise DeviceError(
                f"{node} is in use by another process; fuser -v {node} tells by which"
            ) from error
        raise DeviceError(f"{node} cannot be opened: {error.strerror}; {hint}") from error


def _not_bound(machine: Machine, bdf: Bdf) -> DeviceError:
    driver = machine.driver(bdf)
    state = f"is bound to {driver}, which is no VFIO driver" if driver else "has no driver"
    return DeviceError(f"{bdf} {state}; bind it: {machine.bind_commands(bdf)}")


class KernelDevice:
    """A `Backend` over a VFIO device descriptor.

    Opening it resets the function and clears bus mastering; closing it resets it again.
    Raises DeviceError naming what stands in the way.
    """

    max_width = NARROW_WIDTH
    """Older kernels do an 8-byte pread as two of 4 without a word, so none is ever asked for."""

    def __init__(self, bdf: Bdf, machine: Machine | None = None) -> None:
        self.bdf = bdf
        self.source = str(bdf)
        self._machine = machine or Machine()
        self._group: _Group | None = _Group.acquire(
            self._machine, self._machine.iommu_group(bdf), bdf
        )
        try:
            self._fd = self._group.device_fd(self._machine, bdf)
        except BaseException:
            self._group.release()
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
            raise DeviceError(f"{self.bdf} does not {what}: {error.strerror}") from error

    def region_fd(self, index: int) -> int:
        return self._fd

    def accessor(self) -> int:
        return self._fd

    def loss_fd(self) -> None:
        """None: the kernel does not let a device go before its descriptor is closed."""
        return None

    def attributes(self) -> Mapping[str, str]:
        """`irq` and `resource` as sysfs has them: real addresses, which VFIO does not show."""
        texts = {}
        for name in ("irq", "resource"):
            try:
                texts[name] = (self._machine.pci_device(self.bdf) / name).read_text()
            except OSError:
                continue
        return texts

    def reset(self) -> None:
        try:
            fcntl.ioctl(self._fd, _DEVICE_RESET)
        except OSError as error:
            raise DeviceError(f"{self.bdf} cannot be reset: {error.strerror}") from error

    def close(self) -> None:
        if self._group is not None:
            os.close(self._fd)
            self._group.release()
            self._group = None
