# SPDX-License-Identifier: MIT
"""The two interrupts that VFIO adds to a device's own: release request and AER error.

Rule 1: a device that does not offer one of them works without it.
Rule 2: barfs never sets up an interrupt of the device itself.
"""

import fcntl
import os

from barfs.vfio.ioctls import (
    IRQ_INFO,
    IRQ_SET_EVENTFD,
    VFIO_DEVICE_GET_IRQ_INFO,
    VFIO_DEVICE_SET_IRQS,
    VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_DATA_EVENTFD,
)


def eventfd_of(device_fd: int, index: int) -> int | None:
    """A new eventfd that interrupt `index` triggers; None if the device does not offer it."""
    info = bytearray(IRQ_INFO.pack(IRQ_INFO.size, 0, index, 0))
    try:
        fcntl.ioctl(device_fd, VFIO_DEVICE_GET_IRQ_INFO, info, True)
    except OSError:
        return None
    *_, count = IRQ_INFO.unpack(info)
    if not count:
        return None
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER
    try:
        request = IRQ_SET_EVENTFD.pack(IRQ_SET_EVENTFD.size, flags, index, 0, 1, event)
        fcntl.ioctl(device_fd, VFIO_DEVICE_SET_IRQS, request)
    except OSError:
        os.close(event)
        return None
    return event
