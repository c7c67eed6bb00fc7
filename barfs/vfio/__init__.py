# SPDX-License-Identifier: MIT
"""Kernel VFIO: a function opened through its character device, its group, or without an IOMMU.

Rule 1: every ioctl on a VFIO descriptor is in this package.
Rule 2: barfs does not rebind, enable or reset a function to open it (the kernel resets it when its
        device file is opened and when it is closed).
Rule 3: each obstacle between a user and a device has its own error, which says what to do next.
Rule 4: kernel features are probed; kernel versions are never compared.
"""

from barfs.vfio.device import KernelDevice

__all__ = ["KernelDevice"]
