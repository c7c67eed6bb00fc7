# SPDX-License-Identifier: MIT
"""The character device of a function (`/dev/vfio/devices/vfioN`) and iommufd.

Rule 1: BIND only. ATTACH gives a device an address space for DMA, which barfs does not do.
Rule 2: an error names which of the two device nodes is missing or may not be opened.
"""

import array
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from barfs.errors import DeviceError
from barfs.host.advice import bind_command
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
    BIND_IOMMUFD,
    BIND_IOMMUFD_WITH_TOKEN,
    VFIO_DEVICE_BIND_FLAG_TOKEN,
    VFIO_DEVICE_BIND_IOMMUFD,
)


class TokenUnknown(DeviceError):
    """The character devices of this kernel take no token."""


def open_cdev(machine: Machine, bdf: Bdf, token: UUID | None) -> DeviceFile:
    """Open a function through its character device. Raises DeviceError."""
    group = require_iommu_group(machine, bdf)
    cdev = _require_cdev(machine, bdf)
    bind = bind_command(bdf)
    with (
        _closed_on_error(_open_iommufd(machine.iommufd)) as iommufd,
        _closed_on_error(open_device_node(cdev, missing=bind, denied=bind)) as fd,
    ):
        try:
            _bind(fd, iommufd, token)
        except OSError as error:
            raise _refused(machine, bdf, cdev, group, token, error) from error
    return DeviceFile(fd, lambda: os.close(iommufd), (iommufd,))


def _require_cdev(machine: Machine, bdf: Bdf) -> Path:
    cdev = machine.find_cdev(bdf)
    if cdev is not None:
        return cdev
    if not machine.is_vfio(bdf):
        raise not_bound(machine, bdf)
    raise DeviceError(
        f"{bdf} has no device node in {machine.dev}/vfio/devices: the kernel was built without "
        "VFIO_DEVICE_CDEV; use -o vfio=group"
    )


def _open_iommufd(iommufd: Path) -> int:
    return open_device_node(
        iommufd,
        missing="modprobe iommufd, or use -o vfio=group",
        denied=f"as root: chown {os.geteuid()} {iommufd}, or use -o vfio=group",
    )


@contextmanager
def _closed_on_error(fd: int) -> Iterator[int]:
    """Close `fd` if the block raises an exception."""
    try:
        yield fd
    except BaseException:
        os.close(fd)
        raise


def _bind(fd: int, iommufd: int, token: UUID | None) -> None:
    if token is None:
        data = BIND_IOMMUFD.pack(BIND_IOMMUFD.size, 0, iommufd, 0)
        fcntl.ioctl(fd, VFIO_DEVICE_BIND_IOMMUFD, bytearray(data), True)
        return
    bytes_of_token = array.array("B", token.bytes)
    address, _count = bytes_of_token.buffer_info()
    size = BIND_IOMMUFD_WITH_TOKEN.size
    data = BIND_IOMMUFD_WITH_TOKEN.pack(size, VFIO_DEVICE_BIND_FLAG_TOKEN, iommufd, 0, address)
    fcntl.ioctl(fd, VFIO_DEVICE_BIND_IOMMUFD, bytearray(data), True)


def _refused(
    machine: Machine, bdf: Bdf, cdev: Path, group: int, token: UUID | None, error: OSError
) -> DeviceError:
    """The reason of a failed BIND, by errno (`vfio_df_ioctl_bind_iommufd`)."""
    if error.errno == errno.EACCES:
        return token_refused(bdf, token is not None)
    if error.errno == errno.EINVAL and token is not None:
        return TokenUnknown(
            f"{cdev} takes no vf_token on this kernel, or another process has it open; "
            "use -o vfio=group"
        )
    # A second open over the character device is EINVAL, not EBUSY.
    if error.errno == errno.EINVAL:
        return in_use(cdev)
    if error.errno == errno.EBUSY and machine.blockers(group):
        return not_viable(machine, group)
    if error.errno == errno.EBUSY:
        return in_use(machine.group_device_node(group))
    if error.errno == errno.EPERM:
        return DeviceError(
            f"{bdf} cannot be bound to iommufd: the machine has no interrupt remapping; to accept "
            "that, set the module parameter iommufd.allow_unsafe_interrupts=1"
        )
    if error.errno == errno.ENODEV:
        return not_bound(machine, bdf)
    return DeviceError(f"{bdf} cannot be bound to iommufd: {reason(error)}")
