# SPDX-License-Identifier: MIT
"""The character device of a function (`/dev/vfio/devices/vfioN`) and iommufd.

Rule 1: BIND only. An address space (ATTACH) is for DMA, which barfs does not do.
Rule 2: which of the two nodes is missing, or whose permissions do not suffice, is said.
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
    """This kernel's character devices take no token."""


def cdev_possible(machine: Machine, bdf: Bdf) -> bool:
    """Whether both nodes exist and this user may open them."""
    node = machine.find_cdev(bdf)
    rights = os.R_OK | os.W_OK
    return (
        node is not None
        and os.access(node, rights, effective_ids=True)
        and os.access(machine.dev / "iommu", rights, effective_ids=True)
    )


def open_cdev(machine: Machine, bdf: Bdf, token: UUID | None) -> DeviceFile:
    """Open a function through its own node. Raises DeviceError."""
    group = machine.require_iommu_group(bdf)
    node = _require_device_node(machine, bdf)
    with (
        _closed_on_error(
            machine.dev / "iommu", "modprobe iommufd, or use -o vfio=group"
        ) as iommufd,
        _closed_on_error(node, machine.bind_commands(bdf)) as fd,
    ):
        try:
            _bind(fd, iommufd, token)
        except OSError as error:
            raise _refused(machine, bdf, node, group, token, error) from error
    return DeviceFile(fd, lambda: os.close(iommufd), (iommufd,))


def _require_device_node(machine: Machine, bdf: Bdf) -> Path:
    node = machine.find_cdev(bdf)
    if node is not None:
        return node
    if not machine.is_vfio(bdf):
        raise not_bound(machine, bdf)
    raise DeviceError(
        f"{bdf} has no node in {machine.dev}/vfio/devices: this kernel was built without "
        "VFIO_DEVICE_CDEV; use -o vfio=group"
    )


@contextmanager
def _closed_on_error(node: Path, hint: str) -> Iterator[int]:
    """An open node, closed only where the block fails."""
    fd = open_device_node(node, hint)
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
    machine: Machine, bdf: Bdf, node: Path, group: int, token: UUID | None, error: OSError
) -> DeviceError:
    """What a failed BIND means (`vfio_df_ioctl_bind_iommufd`)."""
    if error.errno == errno.EACCES:
        return token_refused(bdf, token is not None)
    if error.errno == errno.EINVAL and token is not None:
        return TokenUnknown(
            f"{bdf}: this kernel takes no vf_token over {node}, or another process has that open; "
            "use -o vfio=group"
        )
    # A second open over the character device is EINVAL, not EBUSY.
    if error.errno == errno.EINVAL:
        return in_use(node)
    if error.errno == errno.EBUSY and machine.blockers(group):
        return not_viable(machine, group)
    if error.errno == errno.EBUSY:
        return in_use(machine.dev / "vfio" / str(group))
    if error.errno == errno.EPERM:
        return DeviceError(
            f"{bdf} cannot be given to iommufd: without interrupt remapping the kernel asks for "
            "the module parameter iommufd.allow_unsafe_interrupts=1"
        )
    if error.errno == errno.ENODEV:
        return not_bound(machine, bdf)
    return DeviceError(f"{bdf} cannot be given to iommufd: {reason(error)}")
