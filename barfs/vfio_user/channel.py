# SPDX-License-Identifier: MIT
"""Requests over a vfio-user socket: one at a time, each with a deadline.

Rule 1: every wait ends at the request's deadline: the waits for the other threads' requests, for
        room in the socket, and for the reply. The deadline detects a silent peer, so it counts from
        the last reply to any request, or from the request if that came later.
Rule 2: a request is sent once. One whose reply is late is given up but its id stays reserved, so
        that the late reply is recognised and dropped. A message that was sent or received in part
        is completed later, so the stream never gets out of step.
Rule 3: a whole message that names its request concerns that request alone, whatever it contains.
        After any other message the channel gives up the peer: the request that noticed raises the
        `PeerError`, every later one `ChannelClosed`.
Rule 4: every descriptor that arrives is handed out or closed. Where none is expected, the channel
        offers no room and the kernel closes them. No request waits for a close: closing a FUSE
        file waits for its server (fs/fuse/file.c, fuse_flush).
Rule 5: a command from the peer (DMA_READ, DMA_WRITE) is refused with EINVAL, since it was offered
        no memory, and has no other effect. The next request sees it and answers it.

An access costs two system calls (send, and a recv with the socket's own time limit). While the
connection is at rest, C makes them (engine/exchange.h), and hands over what is unusual to `access`.
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

from barfs.engine import Exchanger, Owner, Places, keep_from_children
from barfs.engine.exchange import BUSY, ENTERED_HANDED, Handed
from barfs.errors import DeviceError, PeerError
from barfs.text.system_errors import reason, why_no_descriptor_came
from barfs.vfio_user.wire import (
    ACCESS_MESSAGE,
    CLIENT_LIMIT,
    FLAG_ERROR,
    FLAG_REPLY,
    HEADER,
    ID_AT,
    OFFSET_AT,
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
"""The most descriptors of one reply; older servers send one per sparse area."""

_ROOM = socket.CMSG_SPACE(MAX_DESCRIPTORS * array("i").itemsize)
_PLACE = ACCESS_MESSAGE.size - HEADER.size
LONGEST_TIMEOUT = 1_000_000.0
"""Seconds; a longer limit would overflow poll()."""

_IDS = 1 << 16
_UNANSWERED_LIMIT = _IDS // 2
_UNSENT_LIMIT = 1 << 16
"""The most bytes of answers queued for a peer that sends commands and receives nothing."""
_RECEIVE = 4096
_PATIENCE = 0.05
"""Seconds in C that a thread waits for the requests of others: a signal may have come."""
_IN_ITS_MIDST = "this thread is in the midst of another request"


class ChannelClosed(DeviceError):
    """The peer is gone or was given up, or the channel was closed."""


class DescriptorsLost(DeviceError):
    """A reply arrived whose descriptors this process may not open."""


class ReplyTimeout(DeviceError):
    """No reply within the deadline."""


class Channel:
    """A connected socket and its requests. Any number of threads may use it.

    The channel owns `sock`. `timeout` is how many seconds the peer may be silent.
    """

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._sock = sock
        self._timeout = min(timeout, LONGEST_TIMEOUT)
        # Only `access` waits in recv; all else passes MSG_DONTWAIT and waits in poll.
        sock.setblocking(True)
        seconds, fraction = divmod(self._timeout, 1)
        limit = struct.pack("@ll", int(seconds), max(1, int(fraction * 1_000_000)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        # It knows its owner when it is left: a signal's exception can come at any moment.
        self.exchanger = Exchanger(sock.fileno(), Places(ACCESS_MESSAGE.size, ID_AT, OFFSET_AT))
        self.exchanger.answer()
        self._decoder = Decoder(CLIENT_LIMIT)
        self._unsent = b""
        self._pending: dict[int, int] = {}
        self._refused = False
        self._dead = ""
        self._owner = Owner()
        keep_from_children(self)

    def access(self, command: int, body: bytes, reply_size: int) -> Message | bytes:
        """Send a region access and wait for its reply, of `reply_size` bytes if all is well.

        Returns the data of a reply that is as expected to the byte, else the whole message.
        Raises ReplyTimeout, ChannelClosed, PeerError.
        """
        try:
            waited, deadline, handed = self._enter()
            if handed is not None:
                return self._finish(handed, command, body)
            identifier = self._send(command, body, deadline)
            # The socket's limit is a request's whole time: too long for one that has waited.
            if self._decoder.empty and not waited:
                data = self._receive(flags=0)
                header = HEADER.pack(identifier, command, reply_size, FLAG_REPLY, 0)
                if len(data) == reply_size and data.startswith(header + body[:_PLACE]):
                    self.exchanger.answer()
                    del self._pending[identifier]
                    self._rest()
                    return data[ACCESS_MESSAGE.size :]
                self._decoder.feed(data)
            message = self._await(identifier, deadline)
            self._rest()
            return message
        except PeerError as error:
            self.fail(error)
            raise
        finally:
            self.exchanger.leave()

    def request(self, command: int, body: bytes = b"") -> tuple[Message, list[int]]:
        """Send a command and wait for its reply, which may be an error reply.

        Returns it with its descriptors, which the caller then owns. Raises as `access` does.
        """
        try:
            _waited, deadline, handed = self._enter()
            if handed is not None:
                raise ReplyTimeout(_IN_ITS_MIDST)
            identifier = self._send(command, body, deadline)
            message = self._await_descriptors(identifier, deadline)
            self._rest()
            return message
        except PeerError as error:
            self.fail(error)
            raise
        finally:
            self.exchanger.leave()

    def fileno(self) -> int:
        """The socket's descriptor, which hangs up when the peer ends."""
        return self._sock.fileno()

    def descriptors(self) -> tuple[int]:
        return (self._sock.fileno(),)

    def fail(self, error: PeerError) -> None:
        """Give up the peer: it broke the protocol."""
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
        while self.exchanger.enter(_PATIENCE) == BUSY:
            pass
        try:
            self._sock.close()
        finally:
            self.exchanger.leave()

    def _shutdown(self) -> None:
        # Wakes a thread in poll or recv; the descriptor stays open until no thread can use it.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _enter(self) -> tuple[bool, float, Handed | None]:
        """Enter the exchanger; returns whether that meant waiting, the request's deadline, and the
        request that C handed to this thread.

        Whatever this raises, the caller leaves.
        """
        arrived = time.monotonic()
        entered = self.exchanger.enter()
        waited = entered == BUSY
        if waited:
            self._wait_for_turn(arrived)
        if entered == ENTERED_HANDED:
            return False, arrived, self.exchanger.handed()
        if self._dead:
            raise ChannelClosed(self._dead)
        if self.exchanger.has_handed:  # a thread that a signal's exception ended
            self._take_over(self.exchanger.handed())
        return waited, self._deadline(arrived), None

    def _wait_for_turn(self, arrived: float) -> None:
        while self.exchanger.enter(_PATIENCE) == BUSY:
            if time.monotonic() > self._deadline(arrived):
                raise ReplyTimeout("the peer has not answered the requests before this one")

    def _deadline(self, arrived: float) -> float:
        return max(arrived, self.exchanger.answered) + self._timeout

    def _rest(self) -> None:
        """Let C exchange messages, unless something is under way."""
        rests = self._decoder.empty and not (self._pending or self._unsent or self._dead)
        self.exchanger.at_rest = rests

    def _take_over(self, handed: Handed) -> None:
        """Go on with a request of C: its reply comes, or has come in part."""
        self._pending[handed.identifier] = HEADER.unpack_from(handed.request)[1]
        self._unsent = handed.unsent
        self._decoder.feed(handed.received)
        self.exchanger.take_over()

    def _finish(self, handed: Handed, command: int, body: bytes) -> Message:
        """Wait for the reply to this very request, which C has sent."""
        if handed.request != encode(handed.identifier, command, body):
            raise ReplyTimeout(_IN_ITS_MIDST)  # a signal's handler, before that request goes on
        self._take_over(handed)
        if self._dead:
            raise ChannelClosed(self._dead)
        if handed.error:
            raise self._gone(OSError(handed.error, os.strerror(handed.error)))
        message = self._await(handed.identifier, self._deadline(handed.since))
        self._rest()
        return message

    def _next_id(self) -> int:
        if len(self._pending) >= _UNANSWERED_LIMIT:
            self._dead = f"the peer has left {len(self._pending)} requests unanswered"
            raise ChannelClosed(self._dead)
        identifier = (self.exchanger.last_id + 1) % _IDS
        while identifier in self._pending:
            identifier = (identifier + 1) % _IDS
        self.exchanger.last_id = identifier
        return identifier

    def _send(self, command: int, body: bytes, deadline: float) -> int:
        """Send a command, after the rest of an earlier one; returns its id.

        If the deadline passes before its first byte is sent, the command is not sent at all.
        """
        self._flush(deadline)
        identifier = self._next_id()
        data = encode(identifier, command, body)
        # Before sending: an exception from a signal handler must not orphan the reply.
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
        """Send as much of the rest as the socket takes; returns the number of bytes."""
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
        """Wait for room to send. Receive late replies meanwhile: a peer that is stuck in sending
        them does not receive."""
        if self._wait(select.POLLIN | select.POLLOUT, deadline) & select.POLLIN:
            self._decoder.feed(self._receive())
            while (message := self._decoder.next_message()) is not None:
                self._settle(message, deadline)

    def _wait(self, events: int, deadline: float) -> int:
        """Wait for events of the socket; returns those that occurred."""
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
        """The bytes that have arrived, without descriptors; empty if there are none."""
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
        """As `_await`, but reads one message at a time, so that each keeps its own descriptors."""
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
        # A full room means that the peer sent too many; else some could not be opened.
        if flags & socket.MSG_CTRUNC and len(fds) >= MAX_DESCRIPTORS:
            raise TooManyDescriptors(f"more than {MAX_DESCRIPTORS} descriptors")
        self._decoder.feed(data)
        if flags & socket.MSG_CTRUNC:
            raise DescriptorsLost(why_no_descriptor_came())

    def _settle(self, message: Message, deadline: float) -> bool:
        """Settle a request by its reply, or refuse a command; returns whether it was a reply.

        Raises PeerError for a reply to no request, ReplyTimeout while commands keep coming.
        """
        command = self._pending.get(message.id)
        # Released versions of rust-vmm's server send error replies with the type of a command.
        if not (message.is_reply or message.is_error or message.command == command):
            self._refuse(message, deadline)
            return False
        if command is None:
            raise UnexpectedReply(f"a reply with id {message.id}, which belongs to no request")
        if command != message.command:
            raise WrongCommand(
                f"a reply to {command_name(message.command)} instead of {command_name(command)}"
            )
        self.exchanger.answer()
        del self._pending[message.id]
        return True

    def _refuse(self, message: Message, deadline: float) -> None:
        name = command_name(message.command)
        if not self._refused:
            self._refused = True
            _log.info("refused %s from a vfio-user server: it was offered no memory", name)
        if message.wants_reply:
            # Queued, since another message may be half sent.
            self._unsent += encode(
                message.id,
                message.command,
                flags=FLAG_REPLY | FLAG_ERROR,
                error=errno.EINVAL,
            )
            self._push()
            if len(self._unsent) > _UNSENT_LIMIT:
                raise TooManyCommands(f"the peer sends {name} after {name} but receives no answers")
        if time.monotonic() > deadline:
            raise ReplyTimeout("the peer sends commands but does not answer")


def _milliseconds(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0) * 1000


def is_memory(fd: int) -> bool:
    """Whether `fd` is in tmpfs or hugetlbfs, the only file systems with seals.

    `fstatfs` and `fstat` would ask the file system, and a FUSE server might never answer.
    (mm/memfd.c, memfd_file_seals_ptr)
    """
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors; those that are not memory in a thread, as their close may never return."""
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
    except RuntimeError:  # no more threads: rather wait than leave them open
        _close_each(strange)


def _close_each(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
