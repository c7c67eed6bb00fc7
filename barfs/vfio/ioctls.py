# SPDX-License-Identifier: MIT
"""The ioctls of VFIO and their constants, under the names of `linux/vfio.h`.

They are declared here because the headers of a build host may be older than the running kernel.
"""

import struct


def _io(number: int) -> int:
    """_IO(VFIO_TYPE, VFIO_BASE + number): no direction and no size."""
    return ord(";") << 8 | 100 + number


VFIO_GET_API_VERSION = _io(0)
VFIO_CHECK_EXTENSION = _io(1)
VFIO_SET_IOMMU = _io(2)
VFIO_GROUP_GET_STATUS = _io(3)
VFIO_GROUP_SET_CONTAINER = _io(4)
VFIO_GROUP_GET_DEVICE_FD = _io(6)
VFIO_DEVICE_GET_INFO = _io(7)
VFIO_DEVICE_GET_REGION_INFO = _io(8)
VFIO_DEVICE_GET_IRQ_INFO = _io(9)
VFIO_DEVICE_SET_IRQS = _io(10)
VFIO_DEVICE_RESET = _io(11)
VFIO_DEVICE_BIND_IOMMUFD = _io(18)

VFIO_API_VERSION = 0

VFIO_TYPE1_IOMMU = 1
VFIO_TYPE1v2_IOMMU = 3
VFIO_NOIOMMU_IOMMU = 8

VFIO_GROUP_FLAGS_VIABLE = 1 << 0
VFIO_DEVICE_BIND_FLAG_TOKEN = 1 << 0

VFIO_PCI_ERR_IRQ_INDEX = 3
"""The function reported an uncorrectable error."""
VFIO_PCI_REQ_IRQ_INDEX = 4
"""The kernel wants the device back; its unbinding waits until the device file is closed."""

VFIO_IRQ_SET_DATA_EVENTFD = 1 << 2
VFIO_IRQ_SET_ACTION_TRIGGER = 1 << 5

GROUP_STATUS = struct.Struct("=II")
"""struct vfio_group_status: argsz, flags."""
IRQ_INFO = struct.Struct("=IIII")
"""struct vfio_irq_info: argsz, flags, index, count."""
IRQ_SET_EVENTFD = struct.Struct("=IIIIIi")
"""struct vfio_irq_set with one eventfd: argsz, flags, index, start, count, data."""
BIND_IOMMUFD = struct.Struct("=IIiI")
"""struct vfio_device_bind_iommufd as it began: argsz, flags, iommufd, out_devid."""
BIND_IOMMUFD_WITH_TOKEN = struct.Struct("=IIiIQ")
"""The same with token_uuid_ptr."""
