# SPDX-License-Identifier: MIT
"""The one table between the errors of an access and the errno that stands for each.

The engine answers with `-errno`, and FUSE wants one: both go through here.
"""

import errno

from barfs.errors import (
    AccessDenied,
    AccessError,
    AccessTimeout,
    BeyondEnd,
    BusFault,
    DeviceGone,
    ForkedAccess,
    Interrupted,
    InvalidAccess,
    PolicyDenied,
)

_ERRNO_OF: dict[type[AccessError], int] = {
    BusFault: errno.EIO,
    DeviceGone: errno.ENODEV,
    AccessTimeout: errno.ETIMEDOUT,
    InvalidAccess: errno.EINVAL,
    AccessDenied: errno.EACCES,
    PolicyDenied: errno.EPERM,
    BeyondEnd: errno.EFBIG,
    Interrupted: errno.EINTR,
    ForkedAccess: errno.ECHILD,
}
_ERROR_OF = {number: kind for kind, number in _ERRNO_OF.items()}


def errno_of(error: AccessError) -> int:
    """Return the errno of `error`, by its class or the nearest ancestor in the table; else EIO."""
    for kind in type(error).__mro__:
        if number := _ERRNO_OF.get(kind):
            return number
    return errno.EIO


def error_from(number: int, region: str, offset: int, width: int, message: str = "") -> AccessError:
    """Return the error that `number` stands for; `BusFault` for one that is not in the table."""
    kind = _ERROR_OF.get(number, BusFault)
    if number not in _ERROR_OF:
        message = errno.errorcode.get(number, f"errno {number}")
    return kind(message, region=region, offset=offset, width=width)
