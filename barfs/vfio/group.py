# SPDX-License-Identifier: MIT
"""The group interface: container, group, device; with an IOMMU, or (`noiommu`) without.

Rule 1: a group can be opened only once, so the devices of a group share it and its container.
Rule 2: noiommu is used only when the user asks for it by name; nothing falls back to it.
"""

import errno
import fcntl
import logging
import os
import struct
import threading
from pathlib import Path
from typing import ClassVar
from uuid import UUID

from barfs.errors import DeviceError
from barfs.host.advice import bind_command, rebind_command
from barfs.host.iommu import require_iommu_group
from barfs.host.sysfs import Machine
from barfs.pci import Bdf
from barfs.text.system_errors import reason
from barfs.vfio.device_file import (
    DeviceFile,
    in_use,
    not_bound,
    not_viable,
    open_device_node,
    token_refused,
)
from barfs.vfio.ioctls import (
    GROUP_STATUS,
    VFIO_API_VERSION,
    VFIO_CHECK_EXTENSION,
    VFIO_GET_API_VERSION,
    VFIO_GROUP_FLAGS_VIABLE,
    VFIO_GROUP_GET_DEVICE_FD,
    VFIO_GROUP_GET_STATUS,
    VFIO_GROUP_SET_CONTAINER,
    VFIO_NOIOMMU_IOMMU,
    VFIO_SET_IOMMU,
    VFIO_TYPE1_IOMMU,
    VFIO_TYPE1v2_IOMMU,
)

log = logging.getLogger(__name__)


def open_group(machine: Machine, bdf: Bdf, token: UUID | None, *, noiommu: bool) -> DeviceFile:
    """Open a function through its group. Raises DeviceError."""
    group = _Group.acquire(machine, bdf, noiommu)
    try:
        fd = group.device_fd(machine, bdf, token)
        return DeviceFile(fd, group.release, (group.fd, group.container))
    except BaseException:
        group.release()
        raise


class _Group:
    """An open IOMMU group with its container."""

    _open: ClassVar[dict[Path, "_Group"]]
    _lock: ClassVar[threading.Lock]

    def __init__(self, machine: Machine, number: int, bdf: Bdf, noiommu: bool) -> None:
        self.number = number
        self.noiommu = noiommu
        self.device_node = machine.group_device_node(number, noiommu=noiommu)
        self.users = 0
        self.container = open_device_node(
            machine.container,
            missing="as root: modprobe vfio-pci",
            denied=f"as root: chmod 666 {machine.container}",
        )
        try:
            self.fd = self._open_device_node(machine, bdf)
        except BaseException:
            os.close(self.container)
            raise
        try:
            self._attach(machine)
        except BaseException:
            self._close()
            raise

    @classmethod
    def acquire(cls, machine: Machine, bdf: Bdf, noiommu: bool) -> "_Group":
        """The group of a function, open, with one more user. Raises DeviceError."""
        number = require_iommu_group(machine, bdf)
        device_node = machine.group_device_node(number, noiommu=noiommu)
        with cls._lock:
            group = cls._open.get(device_node)
            if group is None:
                group = cls._open[device_node] = cls(machine, number, bdf, noiommu)
            group.users += 1
            return group

    def release(self) -> None:
        with self._lock:
            self.users -= 1
            if self.users == 0:
                del self._open[self.device_node]
                self._close()

    @classmethod
    def forget_all(cls) -> None:
        """Start with no group: at import, and in a forked child, where the groups, and the lock
        that a thread may hold, are the parent's."""
        cls._open, cls._lock = {}, threading.Lock()

    def _close(self) -> None:
        os.close(self.fd)
        os.close(self.container)

    def _open_device_node(self, machine: Machine, bdf: Bdf) -> int:
        if not self.device_node.exists():
            raise self._no_device_node(machine, bdf)
        try:
            bind = bind_command(bdf)
            return open_device_node(self.device_node, missing=bind, denied=bind)
        except DeviceError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno == errno.EBUSY:
                raise in_use(self.device_node) from cause
            # The permissions of the device node give EACCES instead.
            if isinstance(cause, OSError) and cause.errno == errno.EPERM and self.noiommu:
                raise _needs_rawio(bdf) from cause
            raise

    def _no_device_node(self, machine: Machine, bdf: Bdf) -> DeviceError:
        other = machine.group_device_node(self.number, noiommu=not self.noiommu)
        if self.noiommu and other.exists():
            return DeviceError(
                f"{bdf} is behind an IOMMU, in group {self.number}; leave out vfio=noiommu, which "
                "is for machines without one"
            )
        if other.exists():
            return DeviceError(
                f"{bdf} is behind no IOMMU; -o vfio=noiommu opens {other}, and then the device can "
                "write to any memory"
            )
        if machine.is_vfio(bdf):
            return DeviceError(
                f"{bdf} {machine.driver_state(bdf)}, but {self.device_node} does not exist; use "
                "-o vfio=cdev, or let udev (for a container, its manager) make it"
            )
        return not_bound(machine, bdf)

    def _attach(self, machine: Machine) -> None:
        version = fcntl.ioctl(self.container, VFIO_GET_API_VERSION)
        if version != VFIO_API_VERSION:
            raise DeviceError(
                f"{machine.container} must speak API version {VFIO_API_VERSION}, not {version}"
            )
        status = bytearray(GROUP_STATUS.pack(GROUP_STATUS.size, 0))
        fcntl.ioctl(self.fd, VFIO_GROUP_GET_STATUS, status, True)
        _argsz, flags = GROUP_STATUS.unpack(status)
        if not flags & VFIO_GROUP_FLAGS_VIABLE:
            raise not_viable(machine, self.number)
        try:
            fcntl.ioctl(self.fd, VFIO_GROUP_SET_CONTAINER, struct.pack("i", self.container))
            fcntl.ioctl(self.container, VFIO_SET_IOMMU, self._iommu_type())
        except OSError as error:
            raise DeviceError(
                f"group {self.number} cannot be attached to the IOMMU: {reason(error)}; "
                f"{self._hint(machine, error)}"
            ) from error

    def _iommu_type(self) -> int:
        if self.noiommu:
            return VFIO_NOIOMMU_IOMMU
        version_2 = fcntl.ioctl(self.container, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU)
        return VFIO_TYPE1v2_IOMMU if version_2 else VFIO_TYPE1_IOMMU

    def _hint(self, machine: Machine, error: OSError) -> str:
        if self.noiommu:
            return f"noiommu needs CAP_SYS_RAWIO, and Y in {machine.noiommu_parameter}"
        if error.errno == errno.EPERM:
            return (
                "the machine has no interrupt remapping; to accept that, set the module parameter "
                "vfio_iommu_type1.allow_unsafe_interrupts=1"
            )
        return "as root: modprobe vfio_iommu_type1"

    def device_fd(self, machine: Machine, bdf: Bdf, token: UUID | None) -> int:
        """Open the function, at which the kernel resets it. Raises DeviceError."""
        name = f"{bdf} vf_token={token}" if token else str(bdf)
        if self.noiommu:
            log.warning(
                "opening %s without an IOMMU: its DMA can reach all memory of this machine, the "
                "kernel's included, and the kernel is tainted",
                bdf,
            )
        try:
            return int(
                fcntl.ioctl(self.fd, VFIO_GROUP_GET_DEVICE_FD, bytearray(name.encode() + b"\0"))
            )
        except OSError as error:
            raise self._refused(machine, bdf, token, error) from error

    def _refused(
        self, machine: Machine, bdf: Bdf, token: UUID | None, error: OSError
    ) -> DeviceError:
        if error.errno == errno.ENODEV:
            return not_bound(machine, bdf)
        if error.errno == errno.EBUSY:
            return in_use(self.device_node)
        if error.errno == errno.EACCES:
            return token_refused(bdf, token is not None)
        if error.errno == errno.EINVAL and token is not None:
            return DeviceError(
                f"{bdf} takes no vf_token: it is not a virtual function whose physical function "
                "is bound to vfio-pci"
            )
        if error.errno == errno.EPERM and self.noiommu:
            return _needs_rawio(bdf)
        return DeviceError(f"{bdf} cannot be opened: {reason(error)}")


_Group.forget_all()
os.register_at_fork(after_in_child=_Group.forget_all)


def require_noiommu(machine: Machine, bdf: Bdf) -> None:
    """Raises DeviceError if the kernel does not offer the function without an IOMMU."""
    machine.require_pci_device(bdf)
    parameter = machine.noiommu_parameter
    if not parameter.exists():
        raise DeviceError(
            f"{parameter} does not exist; as root: modprobe vfio, unless this kernel was built "
            "without VFIO_NOIOMMU"
        )
    # A function gets its group when a VFIO driver takes it (drivers/vfio/group.c).
    bind = rebind_command(bdf) if machine.is_vfio(bdf) else bind_command(bdf)
    if not machine.noiommu_allowed():
        raise DeviceError(f"noiommu is off; as root: echo Y > {parameter}; then {bind}")
    if machine.find_iommu_group(bdf) is None:
        if machine.is_vfio(bdf):
            raise DeviceError(f"{bdf} was bound before noiommu was switched on; {bind}")
        raise not_bound(machine, bdf)


def _needs_rawio(bdf: Bdf) -> DeviceError:
    return DeviceError(f"opening {bdf} without an IOMMU needs CAP_SYS_RAWIO; run as root")
