# SPDX-License-Identifier: MIT
"""A vfio-user server: its socket, its clients one at a time, its end. `session` has the answers.

Rule 1: other clients wait in the backlog until the present one leaves. The device keeps its state
        between clients.
Rule 2: a client can harm only itself. A stream that is out of step ends the connection. The buffer
        is bounded by one message and one receive. The server never receives descriptors: it offers
        no room for them, so the kernel closes them.
Rule 3: `stop()` ends every wait of the server at once, from any thread or signal handler.
Rule 4: the server never takes over a socket on which another server listens.
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
"""Modes of a socket: for its owner only, or for a group as well."""

_BACKLOG = 16
_RECEIVE = 1 << 13
_PAUSE = 1.0
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Stopped(Exception):
    """Raised in every wait once the server must end."""


class Server:
    """Serves `device`. Close it after serving."""

    def __init__(self, device: SoftwareDevice) -> None:
        self._device = device
        self._owner = Owner()
        device.stopping.clear()
        # Sockets, not an eventfd: a late stop() must not write to a descriptor that was reused.
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_writer.setblocking(False)
        self._wake_fd = self._wake_reader.fileno()

    def stop(self) -> None:
        """End serving at once. Callable from any thread or signal handler, and more than once.

        Does nothing in a child of this process, which inherits its signal handlers.
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
        """Serve one client after another until `stop()`."""
        listener.setblocking(False)
        with contextlib.suppress(Stopped):
            while True:
                self._wait(listener, select.POLLIN)
                try:
                    connection, _address = listener.accept()
                except OSError as error:
                    # The client left before accept() returned.
                    if error.errno in (errno.EAGAIN, errno.ECONNABORTED):
                        continue
                    if error.errno not in _SHORTAGES:
                        raise DeviceError(f"cannot accept clients: {reason(error)}") from error
                    _log.warning("cannot accept a client yet: %s", reason(error))
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
        """Wait for a shortage to pass, unless the server must end."""
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
        if self._wake_fd in dict(poll.poll()):
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
                if decoder.empty and (reply := session.answer_read(data)):
                    self._send(connection, reply, None)
                    continue
                decoder.feed(data)
                while (message := decoder.next_message()) is not None:
                    reply, fd = session.answer(message)
                    if reply:
                        self._send(connection, reply, fd)
                    if session.over:
                        return
        except PeerError as error:
            _log.warning("disconnected a client: %s", error)
        except ConnectionError:
            pass  # the client closed its end; unread replies are lost
        except OSError as error:
            _log.info("lost a client: %s", reason(error))

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
            # The descriptor went with the first byte.
            reply, fd = reply[sent:], None


def serve_in_thread(device: SoftwareDevice) -> socket.socket:
    """Serve `device` in a thread of this process; returns the client's end of the connection.

    The thread owns the device: both end when the client closes its socket.
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

    Calls `ready` as soon as clients can connect; the socket's `mode` and `group` decide which may.
    Removes the socket at the end. Raises DeviceError if it cannot make the socket.
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
    """A listening socket at `path`, removed at the end; replaces a stale one.

    Its mode is never wider than `mode`, and is narrower until the socket has its `group`. Raises
    DeviceError if another server listens there, or if `path` exists and is no socket.
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
            raise DeviceError(f"{path}: cannot make a socket: {path_problem(error)}") from error
        yield listener


def _give(place: Place, group: int) -> None:
    try:
        place.give(group)
    except PermissionError as error:
        raise DeviceError(
            f"{place.path}: cannot set its group to {group}; join that group, or run as root"
        ) from error


def _remove_stale(place: Place) -> None:
    """Remove a stale socket. Raises DeviceError if it is in use, or is anything else."""
    if not stat.S_ISSOCK(place.status().st_mode):
        raise DeviceError(f"{place.path}: already exists and is not a socket; choose another path")
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
