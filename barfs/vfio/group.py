# SPDX-License-Identifier: MIT
"""The group interface: container, group, device; with an IOMMU, or (`noiommu`) without.

Rule 1: a group opens only once, so the devices of one group share it, and its container.
Rule 2: noiommu is for who asks for it by name; nothing falls back to it.
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

_NOIOMMU_PARAMETER = "module/vfio/parameters/enable_unsafe_noiommu_mode"

log = logging.getLogger(__name__)


def open_group(machine: Machine, bdf: Bdf, token: UUID | None, *, noiommu: bool) -> DeviceFile:
    """Open a function through its group. Raises DeviceError."""
    group = _Group.acquire(machine, machine.require_iommu_group(bdf), bdf, noiommu)
    try:
        fd = group.device_fd(machine, bdf, token)
        return DeviceFile(fd, group.release, (group.fd, group.container))
    except BaseException:
        group.release()
        raise


def group_device_node(machine: Machine, bdf: Bdf, *, noiommu: bool = False) -> Path:
    """The node of the function's group, which may not exist."""
    return (
        machine.dev / "vfio" / f"{'noiommu-' if noiommu else ''}{machine.require_iommu_group(bdf)}"
    )


class _Group:
    """An open IOMMU group with its container."""

    _open: ClassVar[dict[Path, "_Group"]]
    _lock: ClassVar[threading.Lock]

    def __init__(self, machine: Machine, number: int, bdf: Bdf, noiommu: bool) -> None:
        self.number = number
        self.noiommu = noiommu
        self.device_node = group_device_node(machine, bdf, noiommu=noiommu)
        self.users = 0
        self.container = open_device_node(machine.dev / "vfio/vfio", "modprobe vfio-pci makes it")
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
    def acquire(cls, machine: Machine, number: int, bdf: Bdf, noiommu: bool) -> "_Group":
        node = group_device_node(machine, bdf, noiommu=noiommu)
        with cls._lock:
            group = cls._open.get(node)
            if group is None:
                group = cls._open[node] = cls(machine, number, bdf, noiommu)
            group.users += 1
            return group

    def release(self) -> None:
        with self._lock:
            self.users -= 1
            if self.users == 0:
                del self._open[self.device_node]
                self._close()

    @classmethod
    def open_none(cls) -> None:
        """The start; again in a child that is forked, where the groups, and the lock that a thread
        may hold, are the parent's."""
        cls._open, cls._lock = {}, threading.Lock()

    def _close(self) -> None:
        os.close(self.fd)
        os.close(self.container)

    def _open_device_node(self, machine: Machine, bdf: Bdf) -> int:
        if not self.device_node.exists():
            raise self._no_device_node(machine, bdf)
        try:
            return open_device_node(self.device_node, machine.bind_commands(bdf))
        except DeviceError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno == errno.EBUSY:
                raise in_use(self.device_node) from cause
            # The node's own permissions give EACCES.
            if isinstance(cause, OSError) and cause.errno == errno.EPERM and self.noiommu:
                raise _needs_rawio(bdf) from cause
            raise

    def _no_device_node(self, machine: Machine, bdf: Bdf) -> DeviceError:
        other = group_device_node(machine, bdf, noiommu=not self.noiommu)
        if self.noiommu and other.exists():
            return DeviceError(
                f"{bdf} has an IOMMU, group {self.number}; leave vfio=noiommu out, it is for "
                "machines without one"
            )
        if other.exists():
            return DeviceError(
                f"{bdf} has no IOMMU, only {other}; -o vfio=noiommu opens that, and lets the "
                "device write to any memory"
            )
        return not_bound(machine, bdf)

    def _attach(self, machine: Machine) -> None:
        version = fcntl.ioctl(self.container, VFIO_GET_API_VERSION)
        if version != VFIO_API_VERSION:
            raise DeviceError(f"{machine.dev}/vfio/vfio speaks API version {version}, not 0")
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
                f"group {self.number} cannot be given to the IOMMU: {reason(error)}; "
                f"{self._hint(machine, error)}"
            ) from error

    def _iommu_type(self) -> int:
        if self.noiommu:
            return VFIO_NOIOMMU_IOMMU
        version_2 = fcntl.ioctl(self.container, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU)
        return VFIO_TYPE1v2_IOMMU if version_2 else VFIO_TYPE1_IOMMU

    def _hint(self, machine: Machine, error: OSError) -> str:
        if self.noiommu:
            return f"it takes CAP_SYS_RAWIO and Y in {machine.sysfs}/{_NOIOMMU_PARAMETER}"
        if error.errno == errno.EPERM:
            return (
                "without interrupt remapping the kernel asks for the module parameter "
                "vfio_iommu_type1.allow_unsafe_interrupts=1"
            )
        return "is vfio_iommu_type1 loaded?"

    def device_fd(self, machine: Machine, bdf: Bdf, token: UUID | None) -> int:
        """Open the function. This resets it."""
        name = f"{bdf} vf_token={token}" if token else str(bdf)
        if self.noiommu:
            log.warning(
                "%s is opened without an IOMMU: nothing keeps its DMA from any memory of this "
                "machine, the kernel's included, and the kernel is tainted",
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
            return DeviceError(
                f"{bdf} is open elsewhere; fuser -v {self.device_node} tells by whom"
            )
        if error.errno == errno.EACCES:
            return token_refused(bdf, token is not None)
        if error.errno == errno.EINVAL and token is not None:
            return DeviceError(
                f"{bdf} takes no vf_token: it is no virtual function of a physical one that is "
                "bound to vfio-pci"
            )
        if error.errno == errno.EPERM and self.noiommu:
            return _needs_rawio(bdf)
        return DeviceError(f"{bdf} cannot be opened: {reason(error)}")


_Group.open_none()
os.register_at_fork(after_in_child=_Group.open_none)


def require_noiommu(machine: Machine, bdf: Bdf) -> None:
    """Raises DeviceError where the kernel does not offer VFIO without an IOMMU."""
    if not machine.pci_device(bdf).is_dir():
        machine.require_iommu_group(bdf)  # says that there is no such device
    parameter = machine.sysfs / _NOIOMMU_PARAMETER
    if not parameter.exists():
        raise DeviceError(
            f"{parameter} does not exist: modprobe vfio, or this kernel was built without "
            "VFIO_NOIOMMU"
        )
    if not machine.noiommu_allowed():
        raise DeviceError(
            f"noiommu is off; echo Y > {parameter}, then bind {bdf} again: "
            f"{machine.bind_commands(bdf)}"
        )
    if not (machine.pci_device(bdf) / "iommu_group").exists():
        raise not_bound(machine, bdf)


def _needs_rawio(bdf: Bdf) -> DeviceError:
    return DeviceError(f"{bdf}: without an IOMMU it takes CAP_SYS_RAWIO; run as root")
