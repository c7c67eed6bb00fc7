# SPDX-License-Identifier: MIT
"""A vfio-user client that sends what a test tells it to, and a server for it."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from barfs.emulated.device import SoftwareDevice
from barfs.vfio_user import messages as m
from barfs.vfio_user import wire
from barfs.vfio_user.server import Server, listening

from .peer import recv_exactly


def encode_command(identifier: int, command: m.Command) -> bytes:
    """The message of a command, as a client sends it."""
    return wire.encode(identifier, command.NUMBER, command.body())


class RawClient:
    """Sends exactly what a test tells it to."""

    def __init__(self, sock: socket.socket, *, negotiate: bool = True) -> None:
        self.sock = sock
        if negotiate:
            self.ask(m.Version())

    def send(self, command: int, body: bytes, *, flags: int = 0) -> None:
        self.sock.sendall(wire.encode(77, command, body, flags=flags))

    def receive(self) -> wire.Message:
        header = recv_exactly(self.sock, wire.HEADER.size)
        identifier, command, size, flags, error = wire.HEADER.unpack(header)
        body = recv_exactly(self.sock, size - wire.HEADER.size)
        return wire.Message(identifier, command, flags, error, body)

    def ask(self, command: m.Command) -> wire.Message:
        self.send(command.NUMBER, command.body())
        found = self.receive()
        assert (found.id, found.command, found.is_reply) == (77, command.NUMBER, True)
        return found

    def get(self, command: m.Command) -> bytes:
        found = self.ask(command)
        assert not found.is_error
        return found.body

    def read(self, region: int, offset: int, count: int) -> bytes:
        return self.get(m.RegionRead(region, offset, count))[wire.REGION_ACCESS.size :]


@contextlib.contextmanager
def running(path: Path, device: SoftwareDevice) -> Iterator[Server]:
    """A server at `path`, in a thread."""
    with contextlib.closing(Server(device)) as server, listening(str(path)) as listener:
        thread = threading.Thread(target=server.serve_listener, args=(listener,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stop()
            thread.join(20)
        assert not thread.is_alive()


@contextlib.contextmanager
def connection(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        # Python's own timeout would not wait for room in the backlog.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 30, 0))
        sock.connect(str(path))
        sock.settimeout(30)
        yield sock
