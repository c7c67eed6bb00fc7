# SPDX-License-Identifier: MIT
"""Requests to a vfio-user server with their valid replies, and the state that tests watch."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from barfs.uapi import DeviceInfo, RegionInfo, SparseArea, encode_region_info
from barfs.vfio_user import messages as m
from barfs.vfio_user import wire
from barfs.vfio_user.client import VfioUserClient
from tests.support import wait_until

PAGE = 0x1000
AREAS = (SparseArea(0x1000, 0x1000), SparseArea(0x3000, 0x2800))
SPARSE = RegionInfo(2, 0xF, 0x10000, 0, areas=AREAS, type=(0x8086_8086, 1), msix_mappable=True)
WHOLE = RegionInfo(2, 7, PAGE, 0)


@dataclass(frozen=True)
class Exchange:
    """A command, a valid body of its reply, and the client's decoder for it."""

    command: m.Command
    body: bytes
    read: Callable[[wire.Message], object]

    def encoded(self, identifier: int = 1) -> bytes:
        return wire.encode(identifier, self.command.NUMBER, self.body, flags=wire.FLAG_REPLY)


READ = m.RegionRead(2, 0x1000, 8)
WRITE = m.RegionWrite(2, 0x1000, b"abcd")
ASKED = m.GetRegionInfo(2, 4096)
EXCHANGES = (
    Exchange(m.Version(), m.Version().body(), m.reply_to_version),
    Exchange(m.GetInfo(), DeviceInfo(3, 9, 5).encode(), m.reply_to_info),
    Exchange(
        ASKED, encode_region_info(SPARSE), lambda message: m.reply_to_region_info(message, ASKED)
    ),
    Exchange(READ, READ.body() + b"01234567", lambda message: m.reply_to_read(message, READ)),
    Exchange(WRITE, WRITE.body()[:16], lambda message: m.reply_to_write(message, WRITE)),
    Exchange(m.Reset(), b"", m.reply_to_reset),
)


def perform(client: VfioUserClient, command: m.Command) -> object:
    match command:
        case m.GetInfo():
            return client.device_info()
        case m.GetRegionInfo():
            return client.region_info(command.index)
        case m.RegionRead():
            return client.read(command.region, command.offset, command.count)
        case m.RegionWrite():
            client.write(command.region, command.offset, command.data)
        case m.Reset():
            client.reset()
    return None


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def assert_closed(before: int) -> None:
    """No more descriptors than `before`, once those that close in the background are closed."""
    wait_until(lambda: open_files() <= before, f"{open_files()} descriptors to be {before} again")
