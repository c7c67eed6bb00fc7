# SPDX-License-Identifier: MIT
"""A device of a vfio-user server: a `Backend` over a socket.

Rule 1: one access is one message, whatever its width.
Rule 2: the peer is not trusted. `messages` checks what it says; this module checks the descriptors
        to map: they must be of memory that cannot block its reader (tmpfs, hugetlbfs), one file
        for all windows of a region, and long enough for them. A region whose descriptors fail has
        no windows, nor has one about which two answers contradict each other.
Rule 3: an invalid reply fails its request; an access raises `BusFault`. A peer whose replies can no
        longer be matched to requests is gone.
Rule 4: a peer that is gone stays gone. Nothing reconnects: a new server is a new device.
"""

import contextlib
import errno
import logging
import os
import select
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Self, TypeVar

from barfs.backend import HostFile, NoDescriptor, Signal
from barfs.engine import Owner, keep_from_children
from barfs.errors import (
    AccessError,
    AccessTimeout,
    BusFault,
    DeviceError,
    DeviceGone,
    InvalidAccess,
    PeerError,
    RegionError,
    access_error,
)
from barfs.layout import REASON_BAD_DESCRIPTOR, REASON_DESCRIPTORS_DIFFER, REASON_NO_DESCRIPTOR
from barfs.pci import Bdf, region_name
from barfs.text.system_errors import reason
from barfs.uapi import (
    REGION_INFO_LIMIT,
    CapabilityTruncated,
    DeviceInfo,
    InfoChanged,
    RegionInfo,
    SparseArea,
)
from barfs.vfio_user import address, messages
from barfs.vfio_user.channel import (
    LONGEST_TIMEOUT,
    MAX_DESCRIPTORS,
    Channel,
    ChannelClosed,
    DescriptorsLost,
    ReplyTimeout,
    close_all,
    is_memory,
)
from barfs.vfio_user.wire import ACCESS_MESSAGE, REGION_ACCESS, BadBody, Message, Number

_log = logging.getLogger(__name__)

_FIRST_ARGSZ = 4096
_MOST_QUESTIONS = 4
_WIDTHS = (1, 2, 4, 8)
_PEERS_ERRORS = (InvalidAccess, DeviceGone)
"""What a peer may say of an access in its errno. It knows neither our policy nor our signals."""

T = TypeVar("T")


class RequestRefused(DeviceError):
    """An error reply to a request other than an access; `errno` is the peer's and may be 0."""

    def __init__(self, message: str, error: int) -> None:
        super().__init__(message)
        self.errno = error


class VfioUserClient:
    """An open device on the other end of `endpoint`: a socket's path, or a connected socket.

    `timeout` bounds the negotiation and each access, in seconds. The client owns the socket.
    Raises DeviceError if no server answers, PeerError if it does not speak vfio-user.
    """

    has_ports = False
    """An I/O region is like any other: libvfio-user flags regions as I/O by default."""

    access_fd = None
    """Accesses go through `accessor`."""

    def __init__(
        self, endpoint: str | socket.socket, *, bdf: Bdf, source: str, timeout: float = 5.0
    ) -> None:
        self.bdf = bdf
        self.source = source
        sock = _connect(endpoint, source, timeout) if isinstance(endpoint, str) else endpoint
        self._channel = Channel(sock, timeout)
        self._lock = threading.Lock()
        self._regions: dict[int, tuple[RegionInfo, int | NoDescriptor]] = {}
        self._told: set[type[PeerError]] = set()
        self._owner = Owner()
        keep_from_children(self)
        try:
            self.max_width = self._negotiate()
        except BaseException:
            self._channel.close()
            raise

    def _negotiate(self) -> int:
        """Agree on a version; returns the widest access that the peer accepts."""
        try:
            reply = self._request(messages.Version(max_fds=MAX_DESCRIPTORS))
        except ReplyTimeout:
            raise DeviceError(
                f"{self.source}: connected, but the server does not answer; it serves one client "
                "at a time: end the other one"
            ) from None
        theirs = self._checked(lambda: messages.reply_to_version(reply))
        return max(width for width in _WIDTHS if width <= theirs.max_transfer)

    def device_info(self) -> DeviceInfo:
        """The device info. Raises DeviceError."""
        reply = self._request(messages.GetInfo())
        return self._checked(lambda: messages.reply_to_info(reply))

    def region_info(self, index: int) -> RegionInfo:
        """The info of region `index`; an absent one has size 0.

        Asks the peer once and remembers the answer. Raises RegionError if the peer refuses to
        answer, DeviceError if it cannot be asked.
        """
        return self._region(index)[0]

    def layout(self, index: int) -> None:
        """None has been decided."""

    def region_fd(self, index: int) -> int | NoDescriptor:
        """The memory of the region's windows, or why there is none to use."""
        return self._region(index)[1]

    @property
    def accessor(self) -> Self:
        """The client itself: accesses are messages."""
        return self

    def attributes(self) -> Mapping[str, str]:
        """None: a vfio-user device has only its configuration space."""
        return {}

    def links(self) -> Mapping[str, str]:
        """None: the device has neither driver nor IOMMU group."""
        return {}

    def host_files(self) -> Mapping[str, HostFile]:
        """None: sysfs does not know the device."""
        return {}

    def slot(self) -> None:
        """None, too."""

    def read(self, region: int, offset: int, width: int) -> bytes:
        """One access. Raises AccessError, or PeerError when it gives up the peer."""
        body = REGION_ACCESS.pack(offset, region, width)
        answer = self._access(Number.REGION_READ, body, region, offset, width, width)
        if isinstance(answer, bytes):
            return answer
        request = messages.RegionRead(region, offset, width)
        with self._failing(region, offset, width):
            return self._checked(lambda: messages.reply_to_read(answer, request))

    def write(self, region: int, offset: int, data: bytes) -> None:
        """One access. Raises AccessError, or PeerError when it gives up the peer."""
        width = len(data)
        body = REGION_ACCESS.pack(offset, region, width) + data
        answer = self._access(Number.REGION_WRITE, body, region, offset, width, 0)
        if isinstance(answer, Message):
            request = messages.RegionWrite(region, offset, data)
            with self._failing(region, offset, width):
                self._checked(lambda: messages.reply_to_write(answer, request))

    def signals(self) -> tuple[Signal, ...]:
        """The socket: it hangs up when the peer ends, and when the client gives up the peer."""
        return (Signal("lost", self._channel.fileno(), select.POLLRDHUP),)

    def reset(self) -> None:
        """Reset the device. Raises DeviceError."""
        reply = self._request(messages.Reset())
        self._checked(lambda: messages.reply_to_reset(reply))

    def close(self) -> None:
        """Leave the server; mapped windows stay mapped. May be called again.

        Does nothing in a child of the process that made it.
        """
        if not self._owner.is_here:
            return
        self._channel.close()
        with self._lock:
            fds = self.descriptors()
            self._regions.clear()
        close_all(fds)

    def descriptors(self) -> list[int]:
        return [fd for _info, fd in self._regions.values() if isinstance(fd, int)]

    def _access(
        self, command: Number, body: bytes, region: int, offset: int, width: int, data_size: int
    ) -> Message | bytes:
        """Send an access; a failure becomes an AccessError with its place."""
        kind: type[AccessError]
        name = region_name(region)
        try:
            answer = self._channel.access(command, body, ACCESS_MESSAGE.size + data_size)
        except ReplyTimeout as error:
            kind, problem = AccessTimeout, str(error)
        except ChannelClosed as error:
            kind, problem = DeviceGone, str(error)
        except PeerError as error:
            raise self._distrust(error) from error
        else:
            if isinstance(answer, bytes) or not answer.is_error:
                return answer
            raise access_error(
                answer.error,
                f"the server refused it ({_error_text(answer.error)})",
                region=name,
                offset=offset,
                width=width,
                among=_PEERS_ERRORS,
            )
        raise kind(problem, region=name, offset=offset, width=width)

    def _request(self, command: messages.Command) -> Message:
        message, fds = self._request_descriptors(command)
        close_all(fds)
        return message

    def _request_descriptors(self, command: messages.Command) -> tuple[Message, list[int]]:
        """Send a command other than an access. Raises DeviceError, also for an error reply."""
        try:
            message, fds = self._channel.request(command.NUMBER, command.body())
        except PeerError as error:
            raise self._distrust(error) from error
        except ReplyTimeout as error:
            raise ReplyTimeout(f"{self.source}: {command.NUMBER.name}: {error}") from None
        except ChannelClosed as error:
            raise ChannelClosed(f"{self.source}: {error}; start the server again") from None
        except DescriptorsLost as error:
            raise DescriptorsLost(f"{self.source}: {command.NUMBER.name}: {error}") from None
        if message.is_error:
            close_all(fds)
            raise RequestRefused(
                f"{self.source}: the server refused {command.NUMBER.name} "
                f"({_error_text(message.error)})",
                message.error,
            )
        return message, fds

    def _checked(self, decode: Callable[[], T]) -> T:
        """Decode a reply; unless only its body is invalid, an error gives up the peer."""
        try:
            return decode()
        except PeerError as error:
            if not isinstance(error, BadBody):
                self._channel.fail(error)
            raise self._distrust(error) from error

    @contextlib.contextmanager
    def _failing(self, region: int, offset: int, width: int) -> Iterator[None]:
        """Turn an invalid body into the access's BusFault; log each kind once."""
        try:
            yield
        except BadBody as error:
            if type(error) not in self._told:
                self._told.add(type(error))
                _log.warning("%s", error)
            name = region_name(region)
            raise BusFault(str(error), region=name, offset=offset, width=width) from error

    def _distrust(self, error: PeerError) -> PeerError:
        """The same error, prefixed with the device's name."""
        return type(error)(f"{self.source}: the server broke the protocol: {error}")

    def _region(self, index: int) -> tuple[RegionInfo, int | NoDescriptor]:
        with self._lock:
            found = self._regions.get(index)
            if found is None:
                found = self._regions[index] = self._ask_region(index)
            return found

    def _ask_region(self, index: int) -> tuple[RegionInfo, int | NoDescriptor]:
        argsz = _FIRST_ARGSZ
        before: RegionInfo | None = None
        for _question in range(_MOST_QUESTIONS):
            request = messages.GetRegionInfo(index, argsz)
            try:
                reply, fds = self._request_descriptors(request)
            except RequestRefused as error:
                # The kernel's answer for an absent region; rust-vmm sends 0.
                if error.errno not in (0, errno.EINVAL):
                    raise RegionError(str(error)) from error
                return RegionInfo(index, 0, 0, 0), REASON_NO_DESCRIPTOR
            try:
                info, needed = self._decode_region(reply, request)
                if before is not None and (change := _contradiction(before, info)):
                    return replace(info, chain_error=InfoChanged(change)), REASON_NO_DESCRIPTOR
                before = info
                if needed <= argsz:
                    return info, self._choose_descriptor(info, fds)
            finally:
                close_all(fds)
            if needed > REGION_INFO_LIMIT:
                break
            argsz = needed
        error_text = (
            f"region {index}: an info of {needed} bytes; at most {REGION_INFO_LIMIT} are accepted"
        )
        return replace(info, chain_error=CapabilityTruncated(error_text)), REASON_NO_DESCRIPTOR

    def _decode_region(
        self, reply: Message, request: messages.GetRegionInfo
    ) -> tuple[RegionInfo, int]:
        try:
            return self._checked(lambda: messages.reply_to_region_info(reply, request))
        except BadBody as error:
            raise RegionError(str(error)) from error

    def _choose_descriptor(self, info: RegionInfo, fds: list[int]) -> int | NoDescriptor:
        """Take the descriptor of the region's windows out of `fds`, or say why there is none."""
        whole = (SparseArea(0, info.size),)
        areas = [area for area in (whole if info.areas is None else info.areas) if area.size]
        if not info.mappable or info.chain_error is not None or not areas:
            return REASON_NO_DESCRIPTOR
        end = info.offset + max(area.offset + area.size for area in areas)
        refused = _refusal(fds, end)
        if refused is None:
            return fds.pop(0)
        reason, problem = refused
        name = region_name(info.index)
        _log.warning("%s: %s has no windows (%s): %s", self.source, name, reason, problem)
        return reason


def _refusal(fds: Sequence[int], end: int) -> tuple[NoDescriptor, str] | None:
    """Why `fds` cannot be mapped up to `end`: a reason and its explanation; None if they can.

    Older servers send one per area, all of the same file; no message says to which area a second
    file would belong. The checks for memory come first: the server of a FUSE file could leave
    fstat, and every later fault, unanswered.
    """
    if not fds:
        return REASON_NO_DESCRIPTOR, "no descriptor came with its areas"
    if not all(is_memory(fd) for fd in fds):
        return REASON_BAD_DESCRIPTOR, "its descriptor must be in tmpfs or hugetlbfs"
    found = [os.fstat(fd) for fd in fds]
    if not all(stat.S_ISREG(status.st_mode) for status in found):
        return REASON_BAD_DESCRIPTOR, "its descriptor must be a regular file"
    files = {(status.st_dev, status.st_ino) for status in found}
    if len(files) > 1:
        return REASON_DESCRIPTORS_DIFFER, f"its {len(fds)} descriptors are of {len(files)} files"
    if found[0].st_size < end:
        size = found[0].st_size
        return REASON_BAD_DESCRIPTOR, f"its memory ends at {size:#x}, the windows at {end:#x}"
    return None


def _contradiction(before: RegionInfo, after: RegionInfo) -> str:
    """How two answers about one region differ; empty if they agree.

    The flag MMAP may come only with the capabilities, for which the first had no room.
    """
    said = [(info.size, info.offset, info.readable, info.writable) for info in (before, after)]
    names = ("size", "offset", "read flag", "write flag")
    changed = [name for name, old, new in zip(names, *said, strict=True) if old != new]
    return f"its {' and '.join(changed)} changed between two answers" if changed else ""


def _error_text(error: int) -> str:
    if error == 0:
        return "without a reason"
    # A peer's number may be unknown, or too large for strerror.
    return os.strerror(error) if error in errno.errorcode else f"errno {error}"


def _connect(path: str, source: str, timeout: float) -> socket.socket:
    """Connect to a server's socket. Raises DeviceError that says what to do."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise DeviceError(f"{source}: {reason(error)}") from error
    # With Python's own timeout, connect would not wait for room in the backlog (EAGAIN).
    seconds, fraction = divmod(min(timeout, LONGEST_TIMEOUT), 1)
    limit = struct.pack("@ll", int(seconds), int(fraction * 1_000_000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    try:
        address.connect(sock, path)
    except OSError as error:
        sock.close()
        raise DeviceError(f"{source}: {_connect_problem(path, error)}") from error
    return sock


def _connect_problem(path: str, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "there is no such socket; start the server, or correct the path"
    if error.errno in (errno.ECONNREFUSED, errno.ENOTSOCK):
        try:
            is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
        except OSError:
            is_socket = True
        if is_socket:
            return "no server listens there; start it, or remove the stale socket"
        return "is not a socket; give the path of a vfio-user server's socket"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "permission denied; run as the user who owns the socket, or change its mode"
    if error.errno == errno.EPROTOTYPE:
        return "is a socket of another type; vfio-user needs a stream socket"
    if error.errno == errno.EAGAIN:
        return "the server accepts no more connections; end its other clients"
    return address.path_problem(error)
