# SPDX-License-Identifier: MIT
"""The two interrupts of VFIO that are no interrupts of the device: release request and AER error.

Rule 1: what a device does not offer is left out; it costs nobody the device.
Rule 2: no interrupt of the device itself is ever set up.
"""

import fcntl
import os
import struct

REQUEST_INDEX = 4
"""VFIO_PCI_REQ_IRQ_INDEX: the kernel wants the device back. Unbinding waits until it has it."""
ERROR_INDEX = 3
"""VFIO_PCI_ERR_IRQ_INDEX: the function reported an uncorrectable error."""

_GET_IRQ_INFO = 0x3B6D
_SET_IRQS = 0x3B6E
_IRQ_INFO = struct.Struct("=IIII")
"""struct vfio_irq_info: argsz, flags, index, count."""
_IRQ_SET = struct.Struct("=IIIIIi")
"""struct vfio_irq_set with one eventfd: argsz, flags, index, start, count, data."""
_DATA_EVENTFD = 1 << 2
_ACTION_TRIGGER = 1 << 5


def eventfd_of(device_fd: int, index: int) -> int | None:
    """A new eventfd that interrupt `index` triggers; None where the device does not offer it."""
    info = bytearray(_IRQ_INFO.pack(_IRQ_INFO.size, 0, index, 0))
    try:
        fcntl.ioctl(device_fd, _GET_IRQ_INFO, info, True)
    except OSError:
        return None
    *_, count = _IRQ_INFO.unpack(info)
    if not count:
        return None
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    flags = _DATA_EVENTFD | _ACTION_TRIGGER
    try:
        request = _IRQ_SET.pack(_IRQ_SET.size, flags, index, 0, 1, event)
        fcntl.ioctl(device_fd, _SET_IRQS, request)
    except OSError:
        os.close(event)
        return None
    return event
