# SPDX-License-Identifier: MIT
"""A device that a vfio-user server has: a `Backend` over a socket.

Rule 1: one access is one message, whatever its width.
Rule 2: the peer is not trusted. What it says is checked in `messages`; what it sends to be mapped
        is checked here: only memory that cannot block its reader (tmpfs, hugetlbfs), one file for
        all windows of a region, and as long as they say. Descriptors that fail leave their region
        without windows, and so do two answers about it that contradict each other.
Rule 3: a reply to a request that makes no sense fails that request: an access with `BusFault`. A
        peer of which it cannot be told any more what it answers is gone.
Rule 4: a peer that is gone stays gone: nothing is opened again, because a new server is a new
        device.
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

from barfs.backend import NoDescriptor, Signal
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
    """An error reply to a request that is no access; `errno` is the peer's, perhaps 0."""

    def __init__(self, message: str, error: int) -> None:
        super().__init__(message)
        self.errno = error


class VfioUserClient:
    """An open device on the other end of `endpoint`: a socket's path, or a connected socket.

    `timeout` bounds the negotiation and each access, in seconds. The client owns the socket.
    Raises DeviceError when there is nobody to speak to, PeerError when who answers does not speak
    vfio-user.
    """

    has_ports = False
    """What is no memory is a region like any other: libvfio-user's regions are I/O by default."""

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
        """Agree on a version; returns the widest access that the peer takes."""
        try:
            reply = self._request(messages.Version(max_fds=MAX_DESCRIPTORS))
        except ReplyTimeout:
            raise DeviceError(
                f"{self.source}: connected, but there is no answer; a vfio-user server has one "
                "client at a time: end the other one"
            ) from None
        theirs = self._checked(lambda: messages.reply_to_version(reply))
        return max(width for width in _WIDTHS if width <= theirs.max_transfer)

    def device_info(self) -> DeviceInfo:
        """What the device is. Raises DeviceError."""
        reply = self._request(messages.GetInfo())
        return self._checked(lambda: messages.reply_to_info(reply))

    def region_info(self, index: int) -> RegionInfo:
        """What region `index` is; one that the peer does not have has size 0.

        Asked once, then remembered. Raises RegionError where the peer will not say, DeviceError
        where it cannot be asked.
        """
        return self._region(index)[0]

    def region_fd(self, index: int) -> int | NoDescriptor:
        """The memory of the region's windows, or why the peer gave none that can be used."""
        return self._region(index)[1]

    @property
    def accessor(self) -> Self:
        """Itself: accesses are messages."""
        return self

    def attributes(self) -> Mapping[str, str]:
        """Nothing: all that is known of a vfio-user device stands in its configuration space."""
        return {}

    def links(self) -> Mapping[str, str]:
        """Nothing: no driver has it, and no IOMMU."""
        return {}

    def read(self, region: int, offset: int, width: int) -> bytes:
        """One access. Raises AccessError, and PeerError when the peer is not spoken to again."""
        body = REGION_ACCESS.pack(offset, region, width)
        answer = self._access(Number.REGION_READ, body, region, offset, width, width)
        if isinstance(answer, bytes):
            return answer
        request = messages.RegionRead(region, offset, width)
        with self._failing(region, offset, width):
            return self._checked(lambda: messages.reply_to_read(answer, request))

    def write(self, region: int, offset: int, data: bytes) -> None:
        """One access. Raises AccessError, and PeerError when the peer is not spoken to again."""
        width = len(data)
        body = REGION_ACCESS.pack(offset, region, width) + data
        answer = self._access(Number.REGION_WRITE, body, region, offset, width, 0)
        if isinstance(answer, Message):
            request = messages.RegionWrite(region, offset, data)
            with self._failing(region, offset, width):
                self._checked(lambda: messages.reply_to_write(answer, request))

    def signals(self) -> tuple[Signal, ...]:
        """The socket: the peer hangs up when it ends, and this end when the peer is distrusted."""
        return (Signal("lost", self._channel.fileno(), select.POLLRDHUP),)

    def reset(self) -> None:
        """Reset the device. Raises DeviceError."""
        reply = self._request(messages.Reset())
        self._checked(lambda: messages.reply_to_reset(reply))

    def close(self) -> None:
        """Leave the server; who maps windows keeps them. May be called again.

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
        """Send an access; what goes wrong becomes an AccessError that says where it went."""
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
                f"the peer refused it ({_error_text(answer.error)})",
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
        """Send a command that is no access. Raises DeviceError, also for an error reply."""
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
        """Decode a reply; one that is about something else ends all conversation."""
        try:
            return decode()
        except PeerError as error:
            if not isinstance(error, BadBody):
                self._channel.fail(error)
            raise self._distrust(error) from error

    @contextlib.contextmanager
    def _failing(self, region: int, offset: int, width: int) -> Iterator[None]:
        """What a body that makes no sense does to its access; the log has each kind once."""
        try:
            yield
        except BadBody as error:
            if type(error) not in self._told:
                self._told.add(type(error))
                _log.warning("%s", error)
            name = region_name(region)
            raise BusFault(str(error), region=name, offset=offset, width=width) from error

    def _distrust(self, error: PeerError) -> PeerError:
        """The same malformation, told with the device's name."""
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
                # What the kernel says of a region that is not there; rust-vmm gives no reason.
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
        error_text = f"region {index}: its info has {needed} bytes, {REGION_INFO_LIMIT} at most"
        return replace(info, chain_error=CapabilityTruncated(error_text)), REASON_NO_DESCRIPTOR

    def _decode_region(
        self, reply: Message, request: messages.GetRegionInfo
    ) -> tuple[RegionInfo, int]:
        try:
            return self._checked(lambda: messages.reply_to_region_info(reply, request))
        except BadBody as error:
            raise RegionError(str(error)) from error

    def _choose_descriptor(self, info: RegionInfo, fds: list[int]) -> int | NoDescriptor:
        """Take a descriptor of the region's windows out of `fds`, if it has any."""
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
    """Why `fds` cannot be mapped up to `end`: the reason, and what is wrong. None: they can be.

    Older servers send one for each area, of the same file; of which area another file would be, no
    message says. Only of memory is anything more asked: the server of a FUSE file could leave that,
    and every later fault, unanswered.
    """
    if not fds:
        return REASON_NO_DESCRIPTOR, "no descriptor came with its areas"
    if not all(is_memory(fd) for fd in fds):
        return REASON_BAD_DESCRIPTOR, "its descriptor is neither of tmpfs nor of hugetlbfs"
    found = [os.fstat(fd) for fd in fds]
    if not all(stat.S_ISREG(status.st_mode) for status in found):
        return REASON_BAD_DESCRIPTOR, "its descriptor is not of a file"
    files = {(status.st_dev, status.st_ino) for status in found}
    if len(files) > 1:
        return REASON_DESCRIPTORS_DIFFER, f"its {len(fds)} descriptors are of {len(files)} files"
    if found[0].st_size < end:
        size = found[0].st_size
        return REASON_BAD_DESCRIPTOR, f"its memory ends at {size:#x}, the windows at {end:#x}"
    return None


def _contradiction(before: RegionInfo, after: RegionInfo) -> str:
    """What two answers about one region say differently; empty: nothing.

    The flag MMAP may come with the capabilities, for which the first had no room.
    """
    said = [(info.size, info.offset, info.readable, info.writable) for info in (before, after)]
    names = ("size", "offset", "read flag", "write flag")
    changed = [name for name, old, new in zip(names, *said, strict=True) if old != new]
    return f"asked twice, its {' and '.join(changed)} changed" if changed else ""


def _error_text(error: int) -> str:
    if error == 0:
        return "without a reason"
    # A peer's number may be none that exists, or none that fits where strerror wants it.
    return os.strerror(error) if error in errno.errorcode else f"errno {error}"


def _connect(path: str, source: str, timeout: float) -> socket.socket:
    """Connect to a server's socket. Raises DeviceError, saying what to do about it."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise DeviceError(f"{source}: {reason(error)}") from error
    # Python's own timeout does not cover a full backlog: connect is then EAGAIN at once.
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
            return "nobody listens there; start the server, or remove the stale socket"
        return "is not a socket; give the path of a vfio-user server's socket"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "permission denied; run as the user who owns the socket, or change its mode"
    if error.errno == errno.EPROTOTYPE:
        return "is a socket of another type; vfio-user needs a stream socket"
    if error.errno == errno.EAGAIN:
        return "the server accepts no more connections; end its other clients"
    return address.path_problem(error)
