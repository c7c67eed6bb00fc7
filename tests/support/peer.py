# SPDX-License-Identifier: MIT
"""A vfio-user server that follows a test's script, right or wrong."""

import contextlib
import fcntl
import functools
import socket
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from barfs import engine
from barfs.errors import AccessError
from barfs.pci import Bdf
from barfs.vfio_user import messages as m
from barfs.vfio_user import wire
from barfs.vfio_user.client import VfioUserClient

BDF = Bdf(0xFFFF, 0, 0, 0)
LARGEST = 1 << 62
T = TypeVar("T")
Answer = Callable[["Peer", wire.Message], None]


def recv_exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data


class Peer:
    """Answers each message of one client with the next function of its script, then leaves.

    It answers VERSION itself if told to `negotiate`, else by the script.
    """

    def __init__(
        self, *script: Answer, version: m.Version | None = None, negotiate: bool = True
    ) -> None:
        self.client_end, self.sock = socket.socketpair()
        self.seen: list[wire.Message] = []
        self.release = threading.Event()
        self._version = version or m.Version()
        self._script = script
        self._negotiate = negotiate
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.client_end.close()
        self.release.set()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.sock.close()

    def receive(self) -> wire.Message:
        """The next message of the client."""
        header = recv_exactly(self.sock, wire.HEADER.size)
        identifier, command, size, flags, error = wire.HEADER.unpack(header)
        body = recv_exactly(self.sock, size - wire.HEADER.size)
        found = wire.Message(identifier, command, flags, error, body)
        self.seen.append(found)
        return found

    def _run(self) -> None:
        # A client that leaves early, or is thrown out, ends the script.
        with contextlib.suppress(EOFError, OSError):
            if self._negotiate:
                self.sock.sendall(m.encode_reply(self.receive(), self._version.body()))
            for answer in self._script:
                answer(self, self.receive())
            self.sock.shutdown(socket.SHUT_RDWR)


class TableClient(VfioUserClient):
    """A client whose accesses go through a table, so that C makes those that go as usual."""

    def __init__(self, endpoint: socket.socket, *, bdf: Bdf, source: str, timeout: float) -> None:
        super().__init__(endpoint, bdf=bdf, source=source, timeout=timeout)
        self._raised = threading.local()  # by a call
        self._in_flight = engine.InFlight()
        self._tables: dict[int, engine.Table] = {}

    def read(self, region: int, offset: int, width: int) -> bytes:
        if offset % width:
            return super().read(region, offset, width)
        return self._through(lambda: self._table(region).read(offset, width))

    def write(self, region: int, offset: int, data: bytes) -> None:
        if offset % len(data):
            super().write(region, offset, data)
        else:
            self._through(lambda: self._table(region).write(offset, data))

    def _through(self, access: Callable[[], T]) -> T:
        self._raised.error = None
        try:
            return access()
        except AccessError:
            if (
                self._raised.error is not None
            ):  # a table has no other way to tell what a call raised
                raise self._raised.error from None
            raise

    def _table(self, region: int) -> engine.Table:
        if region not in self._tables:
            call = engine.Call(
                functools.partial(self._call, super().read, region),
                functools.partial(self._call, super().write, region),
                None,
                self.exchange(region),
            )
            whole = engine.TableEntry(0, LARGEST, True, True, 8, call)
            self._tables[region] = engine.Table(self._in_flight, LARGEST, 8, [whole])
        return self._tables[region]

    def _call(self, access: Callable[..., T], *words: object) -> T:
        try:
            return access(*words)
        except BaseException as error:
            self._raised.error = error
            raise


client_class: type[VfioUserClient] = VfioUserClient
"""What `connect` makes."""


def connect(peer: Peer, timeout: float = 5.0) -> VfioUserClient:
    return client_class(peer.client_end, bdf=BDF, source="vfio-user:test", timeout=timeout)


@contextlib.contextmanager
def client_of(
    *script: Answer, timeout: float = 5.0, version: m.Version | None = None
) -> Iterator[tuple[VfioUserClient, Peer]]:
    """A client whose server follows a script."""
    with Peer(*script, version=version) as peer:
        client = connect(peer, timeout)
        try:
            yield client, peer
        finally:
            client.close()


def reply(body: bytes = b"") -> Answer:
    """Answer with this body."""
    return lambda peer, message: peer.sock.sendall(m.encode_reply(message, body))


def refuse(error: int) -> Answer:
    """Answer with an error reply."""
    return lambda peer, message: peer.sock.sendall(m.encode_error(message, error))


def data(value: bytes) -> Answer:
    """Answer a region read with this data, as asked."""

    def answer(peer: Peer, message: wire.Message) -> None:
        peer.sock.sendall(m.encode_reply(message, message.body + value))

    return answer


def done(peer: Peer, message: wire.Message) -> None:
    """Answer a region write."""
    peer.sock.sendall(m.encode_reply(message, message.body[: wire.REGION_ACCESS.size]))


def raw(make: Callable[[wire.Message], bytes]) -> Answer:
    """Answer with the bytes that `make` returns for the message."""
    return lambda peer, message: peer.sock.sendall(make(message))


def header(size: int, flags: int = wire.FLAG_REPLY) -> Answer:
    """Answer with the header of a message of this size, and nothing after it."""
    return raw(lambda message: wire.HEADER.pack(message.id, message.command, size, flags, 0))


def until_taken(sock: socket.socket) -> None:
    """Wait until the other side has received what was sent."""
    while int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder):
        time.sleep(0.001)


def say_nothing(_peer: Peer, _message: wire.Message) -> None:
    """Leave the request unanswered."""
