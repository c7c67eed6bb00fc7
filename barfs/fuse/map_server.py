# SPDX-License-Identifier: MIT
"""Hands out the windows of a mount's regions, by the protocol of `barfs.attached.wire` (`-o map`).

Rule 1: only this process's user and root get an answer, whichever user owns the files
        (`barfs.fuse.mount_socket`): the descriptor of a VFIO device also takes ioctls.
Rule 2: a descriptor is duplicated in the step that looks it up: a device that leaves may close it
        as soon as the event loop runs again, and another file get its number.
"""

import errno
import functools
import os

import trio

from barfs.attached.wire import MOST_WINDOWS, REQUEST_SIZE, BadMessage, Reply, Request, Window
from barfs.device import Device, in_flight_of
from barfs.fuse import mount_socket
from barfs.fuse.mount_socket import MountSocket
from barfs.fuse.tree import RegionFile, Tree
from barfs.host.device_clients import Process
from barfs.region import backing_of, windows_of

KIND = "map"

_MOST_REMEMBERED = 64
"""Clients of a device, before those that have ended are forgotten."""


class MapServer:
    """Answers for the regions in `tree`, on `socket`. For the event loop."""

    def __init__(self, socket: MountSocket, tree: Tree) -> None:
        self.path = socket.path
        self._socket = socket
        self._tree = tree
        self._leaving: dict[Device, trio.Event] = {}
        self._clients: dict[Device, list[Process]] = {}
        tree.set_socket(KIND, socket.path)

    def leave(self, device: Device) -> None:
        """Tell the clients of a device that it leaves. It must refuse accesses by now."""
        event = self._leaving.pop(device, None)
        if event is not None:
            event.set()

    def clients_of(self, device: Device) -> list[Process]:
        """The clients that ever had a device which has left; they are forgotten by that."""
        return self._clients.pop(device, [])

    async def serve(self) -> None:
        """Answer until cancelled."""
        await self._socket.serve(REQUEST_SIZE, self._answer)

    async def _answer(self, data: bytes) -> mount_socket.Reply | None:
        try:
            request = Request.decode(data)
        except BadMessage:
            return None
        node = self._tree.nodes.get(request.inode)
        if not isinstance(node, RegionFile):
            return mount_socket.Reply(Reply(errno.ENOENT).encode())
        backing, windows = backing_of(node.region), windows_of(node.region)
        if backing is None or not windows or in_flight_of(node.device).closed:
            return _refusal(errno.ENODEV, node)
        if len(windows) > MOST_WINDOWS:
            return _refusal(errno.EOVERFLOW, node)
        fd, start = backing
        granted = [
            Window(each.start, each.size, start + each.start, 0, each.readable, each.writable)
            for each in windows
        ]
        stays = request.stay and self._socket.has_room
        try:
            fds = [os.dup(fd)]
        except OSError as error:  # no descriptor is free
            return _refusal(error.errno or errno.EMFILE, node)
        return mount_socket.Reply(
            Reply(0, node.region.size, granted, len(fds), stays).encode(),
            fds,
            self._leaving.setdefault(node.device, trio.Event()) if stays else None,
            functools.partial(self._remember, node.device),
        )

    def _remember(self, device: Device, pid: int) -> None:
        client = Process.find(pid)
        clients = self._clients.setdefault(device, [])
        if client is None or client in clients:
            return
        if len(clients) >= _MOST_REMEMBERED:
            clients[:] = [each for each in clients if Process.find(each.pid) == each]
        clients.append(client)


def _refusal(number: int, node: RegionFile) -> mount_socket.Reply:
    return mount_socket.Reply(Reply(number, node.region.size).encode())
