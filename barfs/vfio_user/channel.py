# SPDX-License-Identifier: MIT
"""Requests over a vfio-user socket: one at a time, each with a deadline.

Rule 1: every wait ends at the request's deadline: for the other threads' requests, for the socket
        to take the request, for the reply.
Rule 2: a request is sent once. When its reply is late, the request is given up but its id is kept;
        the reply is recognised by it when it comes, and thrown away. What was sent of a message,
        or received of one, stays where it is, so the stream never gets out of step.
Rule 3: a peer that breaks the protocol is not spoken to again: the one who noticed gets the
        `PeerError`, everybody after that a `ChannelClosed`.
Rule 4: every descriptor that arrives is handed out or closed. Where none is expected, no room is
        given for them, and the kernel closes them itself. Nobody waits for a close: that of a FUSE
        file asks its server, and is not over before that answers (fs/fuse/file.c, fuse_flush).

An access costs two system calls (send, and a recv that waits by the socket's own time limit) and
two structs; everything unusual leaves the short way in `access` for the general one.
"""

import contextlib
import fcntl
import os
import select
import socket
import struct
import threading
import time
from array import array
from collections.abc import Iterable

from barfs.errors import DeviceError, PeerError
from barfs.surroundings import reason, why_no_descriptor_came
from barfs.vfio_user.wire import (
    ACCESS_MESSAGE,
    CLIENT_LIMIT,
    FLAG_REPLY,
    HEADER,
    Decoder,
    Message,
    TooManyDescriptors,
    UnexpectedCommand,
    UnexpectedReply,
    WrongCommand,
    command_name,
    encode,
)

MAX_DESCRIPTORS = 16
"""How many descriptors a reply may bring; servers of old send one for each sparse area."""

_ROOM = socket.CMSG_SPACE(MAX_DESCRIPTORS * array("i").itemsize)
_PLACE = ACCESS_MESSAGE.size - HEADER.size
LONGEST_TIMEOUT = 1_000_000.0
"""Seconds; more than this is as good as no limit, and poll() could not count it."""

_IDS = 1 << 16
_UNANSWERED_LIMIT = _IDS // 2
_RECEIVE = 4096


class ChannelClosed(DeviceError):
    """The peer is gone, or was found to break the protocol, or the channel was closed."""


class DescriptorsLost(DeviceError):
    """A reply came, but this process may not open the descriptors that came with it."""


class ReplyTimeout(DeviceError):
    """No reply within the deadline."""


class Channel:
    """A connected socket, and whose reply comes next. May be used from several threads.

    The channel owns `sock`. `timeout` is how long a request may take, in seconds.
    """

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._sock = sock
        self._timeout = min(timeout, LONGEST_TIMEOUT)
        # Only `access` waits in recv; everything else says MSG_DONTWAIT and waits in poll.
        sock.setblocking(True)
        seconds, fraction = divmod(self._timeout, 1)
        limit = struct.pack("@ll", int(seconds), max(1, int(fraction * 1_000_000)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._lock = threading.Lock()
        self._decoder = Decoder(CLIENT_LIMIT)
        self._unsent = b""
        self._pending: dict[int, int] = {}
        self._last_id = 0
        self._dead = ""

    def access(self, command: int, body: bytes, reply_size: int) -> Message | bytes:
        """Send a region access and wait for its reply, which should have `reply_size` bytes.

        Returns the data behind the place when the reply is the expected one to the byte, else the
        message, whatever it is. Raises ReplyTimeout, ChannelClosed, PeerError.
        """
        deadline = time.monotonic() + self._timeout
        waited = self._enter(deadline)
        try:
            identifier = self._send(command, body, deadline)
            # The socket's limit is the whole time of a request: not for one that has lost some.
            if self._decoder.empty and not waited:
                data = self._receive(flags=0)
                header = HEADER.pack(identifier, command, reply_size, FLAG_REPLY, 0)
                if len(data) == reply_size and data.startswith(header + body[:_PLACE]):
                    del self._pending[identifier]
                    return data[ACCESS_MESSAGE.size :]
                self._decoder.feed(data)
            return self._await(identifier, deadline)
        except PeerError as error:
            self.fail(error)
            raise
        finally:
            self._lock.release()

    def request(self, command: int, body: bytes = b"") -> tuple[Message, list[int]]:
        """Send a command and wait for its reply, which may be an error reply.

        Returns it with the descriptors that came, which are now the caller's. Raises as `access`.
        """
        deadline = time.monotonic() + self._timeout
        self._enter(deadline)
        try:
            identifier = self._send(command, body, deadline)
            return self._await_descriptors(identifier, deadline)
        except PeerError as error:
            self.fail(error)
            raise
        finally:
            self._lock.release()

    def fileno(self) -> int:
        """The socket's descriptor, to wait for the peer's end on."""
        return self._sock.fileno()

    def fail(self, error: PeerError) -> None:
        """Speak to this peer no more: it has answered nonsense."""
        self._dead = self._dead or f"the peer broke the protocol ({error})"
        self._shutdown()

    def close(self) -> None:
        """End the connection; requests under way fail with ChannelClosed. May be called again."""
        self._dead = self._dead or "the connection was closed"
        self._shutdown()
        with self._lock:
            self._sock.close()

    def _shutdown(self) -> None:
        # Wakes who waits in poll; the descriptor itself stays until nobody can be using it.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _enter(self, deadline: float) -> bool:
        """Become the one whose request is sent; returns whether that took some waiting."""
        waited = not self._lock.acquire(False)
        if waited and not self._lock.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise ReplyTimeout("other requests to the device have taken all the time")
        if self._dead:
            self._lock.release()
            raise ChannelClosed(self._dead)
        return waited

    def _next_id(self) -> int:
        if len(self._pending) >= _UNANSWERED_LIMIT:
            self._dead = f"the peer has left {len(self._pending)} requests unanswered"
            raise ChannelClosed(self._dead)
        identifier = (self._last_id + 1) % _IDS
        while identifier in self._pending:
            identifier = (identifier + 1) % _IDS
        self._last_id = identifier
        return identifier

    def _send(self, command: int, body: bytes, deadline: float) -> int:
        """Send a command, behind what is left of an earlier one; returns its id.

        Where the deadline passes before the first byte is sent, the command is not sent at all.
        """
        self._finish_sending(deadline)
        identifier = self._next_id()
        data = encode(identifier, command, body)
        # Before it is sent: an exception out of a signal handler must not orphan the reply.
        self._pending[identifier] = command
        try:
            sent = self._send_some(data, deadline)
        except ReplyTimeout:
            del self._pending[identifier]
            raise
        if sent < len(data):
            self._unsent = data[sent:]
            self._finish_sending(deadline)
        return identifier

    def _finish_sending(self, deadline: float) -> None:
        while self._unsent:
            self._unsent = self._unsent[self._send_some(self._unsent, deadline) :]

    def _send_some(self, data: bytes, deadline: float) -> int:
        while True:
            try:
                return self._sock.send(data, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
            except BlockingIOError:
                # A peer that is stuck in sending late replies does not receive; so take them.
                if self._wait(select.POLLIN | select.POLLOUT, deadline) & select.POLLIN:
                    self._decoder.feed(self._receive())
                    while (message := self._decoder.next_message()) is not None:
                        self._settle(message)
            except OSError as error:
                raise self._gone(error) from error

    def _wait(self, events: int, deadline: float) -> int:
        """Wait for the socket; returns what there is."""
        poll = select.poll()
        poll.register(self._sock, events)
        found = poll.poll(_milliseconds(deadline))
        if not found:
            raise ReplyTimeout("the peer does not answer")
        return found[0][1]

    def _receive(self, flags: int = socket.MSG_DONTWAIT) -> bytes:
        """What has arrived, without descriptors; empty where nothing has."""
        try:
            data = self._sock.recv(_RECEIVE, flags)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise self._gone(error) from error
        if not data:
            raise self._gone(None)
        return data

    def _gone(self, error: OSError | None) -> ChannelClosed:
        why = f": {reason(error)}" if error is not None else ""
        self._dead = self._dead or f"the peer has closed the connection{why}"
        return ChannelClosed(self._dead)

    def _await(self, identifier: int, deadline: float) -> Message:
        while True:
            while (message := self._decoder.next_message()) is not None:
                self._settle(message)
                if message.id == identifier:
                    return message
            self._wait(select.POLLIN, deadline)
            self._decoder.feed(self._receive())

    def _await_descriptors(self, identifier: int, deadline: float) -> tuple[Message, list[int]]:
        """As `_await`, but never reads beyond one message, so that it is known whose fds came."""
        fds: list[int] = []
        try:
            while True:
                if (message := self._decoder.next_message()) is not None:
                    self._settle(message)
                    if message.id == identifier:
                        taken, fds = fds, []
                        return message, taken
                    close_all(fds)
                    fds = []
                    continue
                self._wait(select.POLLIN, deadline)
                self._receive_descriptors(fds)
        finally:
            close_all(fds)

    def _receive_descriptors(self, fds: list[int]) -> None:
        try:
            data, ancillary, flags, _address = self._sock.recvmsg(
                self._decoder.wanted, _ROOM, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return
        except OSError as error:
            raise self._gone(error) from error
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                arrived = array("i")
                arrived.frombytes(payload[: len(payload) // arrived.itemsize * arrived.itemsize])
                fds.extend(arrived)
        if not data:
            raise self._gone(None)
        # The room is full where the peer sent too many; where it is not, some could not be opened.
        if flags & socket.MSG_CTRUNC and len(fds) >= MAX_DESCRIPTORS:
            raise TooManyDescriptors(f"more than {MAX_DESCRIPTORS} descriptors")
        self._decoder.feed(data)
        if flags & socket.MSG_CTRUNC:
            raise DescriptorsLost(why_no_descriptor_came())

    def _settle(self, message: Message) -> None:
        """Cross a request off; raises PeerError where the message is no reply to any."""
        if not message.is_reply:
            raise UnexpectedCommand(f"the peer sent {command_name(message.command)} to a client")
        command = self._pending.get(message.id)
        if command is None:
            raise UnexpectedReply(f"a reply with the id {message.id}, which no request has")
        if command != message.command:
            raise WrongCommand(
                f"a reply to {command_name(message.command)} instead of {command_name(command)}"
            )
        del self._pending[message.id]


def _milliseconds(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0) * 1000


def is_memory(fd: int) -> bool:
    """Whether `fd` is of tmpfs or hugetlbfs, which alone have seals. Asks no file system.

    `fstatfs` and `fstat` would: a FUSE file's server can leave them unanswered.
    (mm/memfd.c, memfd_file_seals_ptr)
    """
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors that nobody wants; what is no memory in a thread, which may never end."""
    strange = []
    for fd in fds:
        if is_memory(fd):
            os.close(fd)
        else:
            strange.append(fd)
    if not strange:
        return
    thread = threading.Thread(target=_close_each, args=(strange,), name="barfs-close", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no more threads: a close that waits is better than none
        _close_each(strange)


def _close_each(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
