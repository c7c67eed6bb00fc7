# SPDX-License-Identifier: MIT
"""The errors of barfs.

Rule 1: every error that a user can cause or meet is a `BarfsError`, and its text is one line that
        says what to do next.
Rule 2: an error of one access is an `AccessError`, and carries where the access went.
Rule 3: each class of them carries its errno, which the engine and the file system answer with;
        `access_error` alone finds the class of an errno.
"""

import errno as errnos
from collections.abc import Sequence
from typing import ClassVar


class BarfsError(Exception):
    """An operation that failed; its text is one line for the user, or one for each mistake."""

    @property
    def lines(self) -> tuple[str, ...]:
        """The text, line by line."""
        return (str(self),)


class UsageError(BarfsError):
    """The request itself makes no sense: a bad or contradictory argument, option or file."""


class DeviceError(BarfsError):
    """A device that cannot be opened or described, or that has failed as a whole."""


class ForkedDevice(DeviceError):
    """A device in a forked child of the process that opened it and still has it open.

    The child may open the device anew once its owner has closed it.
    """


class RegionError(DeviceError):
    """One region that cannot be described; the rest of the device can be used."""


class CapabilityError(BarfsError):
    """A VFIO capability chain that cannot be read; `barfs.uapi` has one child per malformation."""


class PeerError(DeviceError):
    """A vfio-user peer broke the protocol; `barfs.vfio_user.wire` has the named children."""


class AccessError(BarfsError):
    """An access, or a request of several, that was not done.

    `region` is the region's name, `offset` the byte in the region where the first failed access
    begins, `width` its size in bytes (for a request: the count of bytes asked for). `errno` is what
    the file of a mount answers in its place.

        >>> import barfs
        >>> with barfs.open("demo") as device:
        ...     try:
        ...         device["rom"].write8(0, 1)
        ...     except AccessError as error:
        ...         print(error.region, error.offset, error.width, error)
        rom 0 1 rom+0x0 (1 bytes): not permitted here
    """

    summary = "access failed"
    errno: ClassVar[int] = errnos.EIO

    def __init__(
        self, message: str = "", *, region: str = "?", offset: int = 0, width: int = 0
    ) -> None:
        self.region = region
        self.offset = offset
        self.width = width
        self.message = message
        super().__init__(message)

    def __str__(self) -> str:
        where = f"{self.region}+{self.offset:#x} ({self.width} bytes): {self.summary}"
        return f"{where}: {self.message}" if self.message else where


class BusFault(AccessError):
    """The device refused the access, or its memory was not there (memory decode off, low power)."""

    summary = "the device did not take the access"
    errno = errnos.EIO


class DeviceGone(AccessError):
    """The device was removed or released, or its vfio-user peer is gone."""

    summary = "the device is gone"
    errno = errnos.ENODEV


class AccessTimeout(AccessError):
    """No answer within the deadline. The access is not repeated."""

    summary = "no answer from the device in time"
    errno = errnos.ETIMEDOUT


class ForkedAccess(AccessError, ForkedDevice):
    """An access by a process that was forked from the one that opened the device."""

    summary = "the device belongs to the process that opened it, which forked this one"
    errno = errnos.ECHILD


class InvalidAccess(AccessError):
    """A width or an alignment that the place does not allow, or an access that crosses an edge."""

    summary = "width or alignment not possible here"
    errno = errnos.EINVAL


class AccessDenied(AccessError):
    """The region, or this part of it, cannot be read or cannot be written."""

    summary = "not permitted here"
    errno = errnos.EACCES


class PolicyDenied(AccessDenied):
    """The user's policy (`barfs.policy`) does not permit it."""

    summary = "the policy does not permit it"
    errno = errnos.EPERM


class BeyondEnd(AccessError):
    """A write, or an access to one register, at or past the end of the region."""

    summary = "past the end of the region"
    errno = errnos.EFBIG


class Interrupted(AccessError):
    """Stopped on request before the first byte was transferred."""

    summary = "interrupted"
    errno = errnos.EINTR


ACCESS_ERRORS: tuple[type[AccessError], ...] = (
    BusFault,
    DeviceGone,
    AccessTimeout,
    ForkedAccess,
    InvalidAccess,
    AccessDenied,
    PolicyDenied,
    BeyondEnd,
    Interrupted,
)


def access_error(
    number: int,
    message: str = "",
    *,
    region: str,
    offset: int,
    width: int,
    among: Sequence[type[AccessError]] = ACCESS_ERRORS,
) -> AccessError:
    """Return the error of an access that was answered with the errno `number`.

    It is of the class of `among` that has this errno, or else a `BusFault`, whose message is the
    name of the errno where there is no other.
    """
    for kind in among:
        if kind.errno == number:
            return kind(message, region=region, offset=offset, width=width)
    message = message or errnos.errorcode.get(number, f"errno {number}")
    return BusFault(message, region=region, offset=offset, width=width)
