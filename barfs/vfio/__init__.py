# SPDX-License-Identifier: MIT
"""Kernel VFIO: a function opened over its group, its character device, or without an IOMMU.

Rule 1: the only ioctls on VFIO descriptors are in this package.
Rule 2: nothing is rebound, enabled or reset on the way (the kernel itself resets the function when
        its descriptor is opened and when it is closed).
Rule 3: what can stand between a user and a device is told apart and answered with what to do next.
Rule 4: abilities are probed; versions of the kernel are never compared.

The interface is `linux/vfio.h`; constants are declared here, since build hosts' headers are old.
"""

from barfs.vfio.device import KernelDevice

__all__ = ["KernelDevice"]
