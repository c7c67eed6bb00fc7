# SPDX-License-Identifier: MIT
"""Requests over a vfio-user socket: one at a time, each with a deadline.

Rule 1: every wait ends at the request's deadline: for the other threads' requests, for the socket
        to take the request, for the reply. The deadline is for a peer that does not answer: it
        counts from the last reply, whosever it was, and from the request where that came later.
Rule 2: a request is sent once. When its reply is late, the request is given up but its id is kept;
        the reply is recognised by it when it comes, and thrown away. What was sent of a message,
        or received of one, stays where it is, so the stream never gets out of step.
Rule 3: what is whole and says to which request it belongs is that request's alone, whatever it
        holds. Where one of the two is missing, the peer is not spoken to again: the one who noticed
        gets the `PeerError`, everybody after that a `ChannelClosed`.
Rule 4: every descriptor that arrives is handed out or closed. Where none is expected, no room is
        given for them, and the kernel closes them itself. Nobody waits for a close: that of a FUSE
        file asks its server, and is not over before that answers (fs/fuse/file.c, fuse_flush).
Rule 5: a command of the peer's (DMA_READ, DMA_WRITE) is refused with EINVAL, since no memory was
        offered to it, and changes nothing else. It is seen, and answered, during the next request.

An access costs two system calls (send, and a recv that waits by the socket's own time limit) and
two structs; everything unusual leaves the short way in `access` for the general one.
"""

import contextlib
import errno
import fcntl
import logging
import os
import select
import socket
import struct
import threading
import time
from array import array
from collections.abc import Iterable

from barfs.engine import Owner, keep_from_children
from barfs.errors import DeviceError, PeerError
from barfs.text.system_errors import reason, why_no_descriptor_came
from barfs.vfio_user.wire import (
    ACCESS_MESSAGE,
    CLIENT_LIMIT,
    FLAG_ERROR,
    FLAG_REPLY,
    HEADER,
    Decoder,
    Message,
    TooManyCommands,
    TooManyDescriptors,
    UnexpectedReply,
    WrongCommand,
    command_name,
    encode,
)

_log = logging.getLogger(__name__)

MAX_DESCRIPTORS = 16
"""How many descriptors a reply may bring; servers of old send one for each sparse area."""

_ROOM = socket.CMSG_SPACE(MAX_DESCRIPTORS * array("i").itemsize)
_PLACE = ACCESS_MESSAGE.size - HEADER.size
LONGEST_TIMEOUT = 1_000_000.0
"""Seconds; more than this is as good as no limit, and poll() could not count it."""

_IDS = 1 << 16
_UNANSWERED_LIMIT = _IDS // 2
_UNSENT_LIMIT = 1 << 16
"""Bytes of answers to a peer that sends commands and receives nothing."""
_RECEIVE = 4096


class ChannelClosed(DeviceError):
    """The peer is gone, or was found to break the protocol, or the channel was closed."""


class DescriptorsLost(DeviceError):
    """A reply came, but this process may not open the descriptors that came with it."""


class ReplyTimeout(DeviceError):
    """No reply within the deadline."""


class Channel:
    """A connected socket, and whose reply comes next. May be used from several threads.

    The channel owns `sock`. `timeout` is how long the peer may be silent, in seconds.
    """

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._sock = sock
        self._timeout = min(timeout, LONGEST_TIMEOUT)
        # Only `access` waits in recv; everything else says MSG_DONTWAIT and waits in poll.
        sock.setblocking(True)
        seconds, fraction = divmod(self._timeout, 1)
        limit = struct.pack("@ll", int(seconds), max(1, int(fraction * 1_000_000)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        # One that knows its owner, for `finally`: a signal's exception can come at any moment.
        self._lock = threading.RLock()
        self._answered = time.monotonic()
        self._decoder = Decoder(CLIENT_LIMIT)
        self._unsent = b""
        self._pending: dict[int, int] = {}
        self._refused = False
        self._last_id = 0
        self._dead = ""
        self._owner = Owner()
        keep_from_children(self)

    def access(self, command: int, body: bytes, reply_size: int) -> Message | bytes:
        """Send a region access and wait for its reply, which should have `reply_size` bytes.

        Returns the data behind the place when the reply is the expected one to the byte, else the
        message, whatever it is. Raises ReplyTimeout, ChannelClosed, PeerError.
        """
        try:
            waited, deadline = self._enter()
            identifier = self._send(command, body, deadline)
            # The socket's limit is the whole time of a request: not for one that has lost some.
            if self._decoder.empty and not waited:
                data = self._receive(flags=0)
                header = HEADER.pack(identifier, command, reply_size, FLAG_REPLY, 0)
                if len(data) == reply_size and data.startswith(header + body[:_PLACE]):
                    self._answered = time.monotonic()
                    del self._pending[identifier]
                    return data[ACCESS_MESSAGE.size :]
                self._decoder.feed(data)
            return self._await(identifier, deadline)
        except PeerError as error:
            self.fail(error)
            raise
        finally:
            try:  # noqa: SIM105  (a function more could be interrupted at its start)
                self._lock.release()
            except RuntimeError:  # not entered
                pass

    def request(self, command: int, body: bytes = b"") -> tuple[Message, list[int]]:
        """Send a command and wait for its reply, which may be an error reply.

        Returns it with the descriptors that came, which are now the caller's. Raises as `access`.
        """
        try:
            _waited, deadline = self._enter()
            identifier = self._send(command, body, deadline)
            return self._await_descriptors(identifier, deadline)
        except PeerError as error:
            self.fail(error)
            raise
        finally:
            try:  # noqa: SIM105  (a function more could be interrupted at its start)
                self._lock.release()
            except RuntimeError:  # not entered
                pass

    def fileno(self) -> int:
        """The socket's descriptor, to wait for the peer's end on."""
        return self._sock.fileno()

    def descriptors(self) -> tuple[int]:
        return (self._sock.fileno(),)

    def fail(self, error: PeerError) -> None:
        """Speak to this peer no more: it has answered nonsense."""
        self._dead = self._dead or f"the peer broke the protocol ({error})"
        self._shutdown()

    def close(self) -> None:
        """End the connection; requests under way fail with ChannelClosed. May be called again.

        Does nothing in a child of the process that made it.
        """
        if not self._owner.is_here:
            return
        self._dead = self._dead or "the connection was closed"
        self._shutdown()
        with self._lock:
            self._sock.close()

    def _shutdown(self) -> None:
        # Wakes who waits in poll; the descriptor itself stays until nobody can be using it.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _enter(self) -> tuple[bool, float]:
        """Become the one whose request is sent; returns whether that took some waiting, and the
        request's deadline.

        The caller releases the lock if it has it, whatever is raised here.
        """
        arrived = time.monotonic()
        waited = not self._lock.acquire(False)
        if waited:
            self._wait_for_turn(arrived)
        if self._dead:
            raise ChannelClosed(self._dead)
        return waited, self._deadline(arrived)

    def _wait_for_turn(self, arrived: float) -> None:
        deadline = self._deadline(arrived)
        while not self._lock.acquire(timeout=max(deadline - time.monotonic(), 0)):
            passed, deadline = deadline, self._deadline(arrived)
            if deadline == passed:
                raise ReplyTimeout("the peer does not answer the requests before this one")

    def _deadline(self, arrived: float) -> float:
        return max(arrived, self._answered) + self._timeout

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
        self._flush(deadline)
        identifier = self._next_id()
        data = encode(identifier, command, body)
        # Before it is sent: an exception out of a signal handler must not orphan the reply.
        self._pending[identifier] = command
        try:
            while not (sent := self._send_now(data)):
                self._make_room(deadline)
                self._flush(deadline)
        except ReplyTimeout:
            del self._pending[identifier]
            raise
        if sent < len(data):
            self._unsent = data[sent:]
            self._flush(deadline)
        return identifier

    def _flush(self, deadline: float) -> None:
        while self._unsent:
            if not self._push():
                self._make_room(deadline)

    def _push(self) -> int:
        """Send of what is left to send as much as the socket takes; returns how much."""
        sent = self._send_now(self._unsent)
        self._unsent = self._unsent[sent:]
        return sent

    def _send_now(self, data: bytes) -> int:
        try:
            return self._sock.send(data, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._gone(error) from error

    def _make_room(self, deadline: float) -> None:
        """Wait until more can be sent. A peer that is stuck in sending late replies does not
        receive; so take them."""
        if self._wait(select.POLLIN | select.POLLOUT, deadline) & select.POLLIN:
            self._decoder.feed(self._receive())
            while (message := self._decoder.next_message()) is not None:
                self._settle(message, deadline)

    def _wait(self, events: int, deadline: float) -> int:
        """Wait for the socket; returns what there is."""
        poll = select.poll()
        poll.register(self._sock, events)
        found = poll.poll(_milliseconds(deadline))
        if not found:
            raise ReplyTimeout("the peer does not answer")
        return found[0][1]

    def _wait_to_receive(self, deadline: float) -> None:
        if self._unsent:
            self._push()
        self._wait(select.POLLIN | (select.POLLOUT if self._unsent else 0), deadline)

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
                if self._settle(message, deadline) and message.id == identifier:
                    return message
                deadline = max(deadline, self._deadline(0))
            self._wait_to_receive(deadline)
            self._decoder.feed(self._receive())

    def _await_descriptors(self, identifier: int, deadline: float) -> tuple[Message, list[int]]:
        """As `_await`, but never reads beyond one message, so that it is known whose fds came."""
        fds: list[int] = []
        try:
            while True:
                if (message := self._decoder.next_message()) is not None:
                    if self._settle(message, deadline) and message.id == identifier:
                        taken, fds = fds, []
                        return message, taken
                    close_all(fds)
                    fds = []
                    deadline = max(deadline, self._deadline(0))
                    continue
                self._wait_to_receive(deadline)
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

    def _settle(self, message: Message, deadline: float) -> bool:
        """Cross a request off, or refuse a command of the peer's; returns whether it was a reply.

        Raises PeerError where it is a reply to no request, ReplyTimeout where commands keep coming.
        """
        command = self._pending.get(message.id)
        # Released versions of rust-vmm's server send error replies with the type of a command.
        if not (message.is_reply or message.is_error or message.command == command):
            self._refuse(message, deadline)
            return False
        if command is None:
            raise UnexpectedReply(f"a reply with the id {message.id}, which no request has")
        if command != message.command:
            raise WrongCommand(
                f"a reply to {command_name(message.command)} instead of {command_name(command)}"
            )
        self._answered = time.monotonic()
        del self._pending[message.id]
        return True

    def _refuse(self, message: Message, deadline: float) -> None:
        name = command_name(message.command)
        if not self._refused:
            self._refused = True
            _log.info("a vfio-user server sent %s: refused, no memory was offered to it", name)
        if message.wants_reply:
            # In its turn: a message may be half sent.
            self._unsent += encode(
                message.id,
                message.command,
                flags=FLAG_REPLY | FLAG_ERROR,
                error=errno.EINVAL,
            )
            self._push()
            if len(self._unsent) > _UNSENT_LIMIT:
                raise TooManyCommands(f"the peer sends {name} after {name}, and takes no answers")
        if time.monotonic() > deadline:
            raise ReplyTimeout("the peer sends commands, and does not answer")


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
