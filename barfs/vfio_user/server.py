# SPDX-License-Identifier: MIT
"""A vfio-user server: sockets, one client at a time, and its end. The answers are `session`'s.

Rule 1: others wait in the backlog until the client leaves. The device keeps its state when
        clients come and go.
Rule 2: whatever a client sends can harm only itself. A stream that cannot be cut into messages any
        more ends its connection. What is buffered is bounded by one message and one receive.
        Descriptors are never received: no room is given for them, and the kernel closes them.
Rule 3: `stop()` ends every wait of the server at once, from any thread or signal handler.
Rule 4: a socket that somebody listens on is never taken away from him.
"""

import contextlib
import errno
import logging
import os
import select
import socket
import stat
import threading
from collections.abc import Callable, Iterator

from barfs.emulated.device import SoftwareDevice
from barfs.engine import Owner
from barfs.errors import DeviceError, PeerError
from barfs.process.signals import heard
from barfs.text.system_errors import reason
from barfs.vfio_user.address import Place, path_problem, place_of
from barfs.vfio_user.session import Session
from barfs.vfio_user.wire import SERVER_LIMIT, Decoder

_log = logging.getLogger(__name__)

PRIVATE, SHARED = 0o600, 0o660
"""Modes of a socket: its owner alone may use it, or a group, too."""

_BACKLOG = 16
_RECEIVE = 1 << 13
_PAUSE = 1.0
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Stopped(Exception):
    """The server is to end; leaves its innermost wait."""


class Server:
    """Serves `device`. Close it when its serving is over."""

    def __init__(self, device: SoftwareDevice) -> None:
        self._device = device
        self._owner = Owner()
        device.stopping.clear()
        # Sockets, not an eventfd: a late stop() must not hit a descriptor that is somebody else's.
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_writer.setblocking(False)

    def stop(self) -> None:
        """End serving, now. May be called from other threads and signal handlers, and again.

        A process that is forked from this one, signal handlers and all, ends nothing.
        """
        if not self._owner.is_here:
            return
        self._device.stopping.set()
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"\0")

    def close(self) -> None:
        self._wake_reader.close()
        self._wake_writer.close()

    def serve_listener(self, listener: socket.socket) -> None:
        """Serve one client after the other until `stop()`."""
        listener.setblocking(False)
        with contextlib.suppress(Stopped):
            while True:
                self._wait(listener, select.POLLIN)
                try:
                    connection, _address = listener.accept()
                except OSError as error:
                    # The client left before it was accepted.
                    if error.errno in (errno.EAGAIN, errno.ECONNABORTED):
                        continue
                    if error.errno not in _SHORTAGES:
                        raise DeviceError(f"no client can be accepted: {reason(error)}") from error
                    _log.warning("a client waits: %s", reason(error))
                    self._pause()
                    continue
                with connection:
                    self._converse(connection)

    def serve_connection(self, connection: socket.socket) -> None:
        """Serve a connected client until it leaves, or until `stop()`."""
        with contextlib.suppress(Stopped):
            self._converse(connection)

    def _wait(self, sock: socket.socket, events: int) -> None:
        self._wait_by(self._poll_of(sock, events))

    def _pause(self) -> None:
        """Give a shortage time to pass, unless the server is to end."""
        poll = select.poll()
        poll.register(self._wake_reader, select.POLLIN)
        if poll.poll(_PAUSE * 1000):
            raise Stopped

    def _poll_of(self, sock: socket.socket, events: int) -> "select.poll":
        poll = select.poll()
        poll.register(self._wake_reader, select.POLLIN)
        poll.register(sock, events)
        return poll

    def _wait_by(self, poll: "select.poll") -> None:
        if any(fd == self._wake_reader.fileno() for fd, _event in poll.poll()):
            raise Stopped

    def _converse(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        session = Session(self._device)
        decoder = Decoder(SERVER_LIMIT)
        readable = self._poll_of(connection, select.POLLIN)
        try:
            while True:
                self._wait_by(readable)
                data = connection.recv(_RECEIVE)
                if not data:
                    return
                decoder.feed(data)
                while (message := decoder.next_message()) is not None:
                    reply, fd = session.answer(message)
                    if reply:
                        self._send(connection, reply, fd)
                    if session.over:
                        return
        except PeerError as error:
            _log.warning("a client is sent away: %s", error)
        except ConnectionError:
            pass  # as good as a close: replies that it has not read are lost
        except OSError as error:
            _log.info("a client is gone: %s", reason(error))

    def _send(self, connection: socket.socket, reply: bytes, fd: int | None) -> None:
        while reply:
            try:
                if fd is None:
                    sent = connection.send(reply, socket.MSG_NOSIGNAL)
                else:
                    sent = socket.send_fds(connection, [reply], [fd], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._wait(connection, select.POLLOUT)
                continue
            # The descriptor has gone with the first byte.
            reply, fd = reply[sent:], None


def serve_in_thread(device: SoftwareDevice) -> socket.socket:
    """Serve `device` in a thread of this process; returns the client's end of the connection.

    The thread takes the device over: both end when the client closes its socket.
    """
    client, connection = socket.socketpair()
    server = Server(device)

    def run() -> None:
        with connection, contextlib.closing(server), contextlib.closing(device):
            server.serve_connection(connection)

    try:
        threading.Thread(target=run, name="barfs-software-device", daemon=True).start()
    except RuntimeError as error:
        client.close()
        with connection, contextlib.closing(server), contextlib.closing(device):
            raise DeviceError(f"no thread for a software device: {reason(error)}") from error
    return client


def serve(
    device: SoftwareDevice,
    socket_path: str,
    ready: Callable[[], None],
    mode: int = PRIVATE,
    group: int | None = None,
) -> None:
    """Serve `device` on a new socket at `socket_path` until SIGTERM, SIGINT or SIGHUP.

    `ready` is called when clients can connect: those whom the socket's `mode` and `group` let in.
    It is removed at the end. Raises DeviceError where it cannot be made.
    """
    with (
        contextlib.closing(Server(device)) as server,
        heard(lambda _number: server.stop()),
        listening(socket_path, mode, group) as listener,
    ):
        ready()
        server.serve_listener(listener)


@contextlib.contextmanager
def listening(path: str, mode: int = PRIVATE, group: int | None = None) -> Iterator[socket.socket]:
    """A listening socket at `path`, removed at the end; one that nobody listens on is replaced.

    It has no wider mode than `mode` at any time, and that one only once it is the group's. Raises
    DeviceError where somebody listens there, or something else is there.
    """
    owner = Owner()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            place = stack.enter_context(place_of(path))
            if place.taken():
                _remove_stale(place)
            place.bind(listener, mode)
            stack.callback(_remove_own, place, place.status(), owner)
            if group is not None:
                _give(place, group)
            place.permit(mode)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise DeviceError(f"{path}: no socket there: {path_problem(error)}") from error
        yield listener


def _give(place: Place, group: int) -> None:
    try:
        place.give(group)
    except PermissionError as error:
        raise DeviceError(
            f"{place.path}: cannot be given to the group {group}; be a member of it, or run as root"
        ) from error


def _remove_stale(place: Place) -> None:
    """Remove a socket that nobody listens on. Raises DeviceError where it is anything else."""
    if not stat.S_ISSOCK(place.status().st_mode):
        raise DeviceError(f"{place.path}: is there already and is no socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            place.connect(probe)
        except ConnectionRefusedError:
            place.remove()
            return
        except BlockingIOError:
            pass
    raise DeviceError(f"{place.path}: another server listens there; end it, or choose another path")


def _remove_own(place: Place, made: os.stat_result, owner: Owner) -> None:
    if not owner.is_here:
        return
    with contextlib.suppress(FileNotFoundError):
        found = place.status()
        if (found.st_dev, found.st_ino) == (made.st_dev, made.st_ino):
            place.remove()
