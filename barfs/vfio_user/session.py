# SPDX-License-Identifier: MIT
"""What a software device answers to each command of one client; without I/O.

Rule 1: every message gets exactly one reply, unless it wants none or is a reply itself.
Rule 2: a request that cannot be done gets an errno (EINVAL where it makes no sense), and the next
        one is answered as if it had not been there.

DMA and interrupts are accepted and have no effect: the device does neither.
"""

import errno
import logging
import sys
from dataclasses import replace
from typing import assert_never

from barfs.errors import AccessError, AccessTimeout, DeviceGone, InvalidAccess, PeerError
from barfs.uapi import REGION_INFO_SIZE, encode_region_info
from barfs.vfio_user import messages
from barfs.vfio_user.device import SoftwareDevice
from barfs.vfio_user.wire import (
    DEFAULT_MAX_TRANSFER,
    Message,
    OutOfTurn,
    UnexpectedReply,
    WrongIndex,
    command_name,
)

_log = logging.getLogger(__name__)

_MAX_FDS = 8
_IRQ_EVENTFD = 1
_ERRORS: dict[type[AccessError], int] = {
    InvalidAccess: errno.EINVAL,
    DeviceGone: errno.ENODEV,
    AccessTimeout: errno.ETIMEDOUT,
}

Reply = tuple[bytes, int | None]
"""A message, and the descriptor that goes with it."""


class Session:
    """One client of `device`, from its VERSION on."""

    def __init__(self, device: SoftwareDevice) -> None:
        self._device = device
        self._theirs: messages.Version | None = None

    def answer(self, message: Message) -> Reply:
        """The reply to a message, empty where there is none."""
        try:
            reply = self._perform(message, messages.decode_command(message))
        except UnexpectedReply:
            return b"", None
        except PeerError as error:
            _log.info("refused %s: %s", command_name(message.command), error)
            reply = messages.encode_error(message, errno.EINVAL), None
        except AccessError as error:
            reply = messages.encode_error(message, _ERRORS.get(type(error), errno.EIO)), None
        except Exception:
            # A mistake in a behaviour costs its access, not the device.
            _log.exception("%s failed in the device", command_name(message.command))
            reply = messages.encode_error(message, errno.EIO), None
        return reply if message.wants_reply else (b"", None)

    def _perform(self, message: Message, command: messages.Command) -> Reply:
        if isinstance(command, messages.Version):
            return messages.encode_reply(message, self._agree(command).body()), None
        if self._theirs is None:
            raise OutOfTurn(f"{command_name(message.command)} before VERSION")
        body, fd = b"", None
        match command:
            case messages.RegionRead():
                data = self._read(command, self._theirs.max_transfer)
                return messages.encode_access_reply(message, command, data), None
            case messages.RegionWrite():
                if command.data:
                    self._device.write(command.region, command.offset, command.data)
                return messages.encode_access_reply(message, command, b""), None
            case messages.GetInfo():
                body = self._device.info().encode()
            case messages.GetRegionInfo():
                body, fd = self._region_info(command)
                fd = fd if self._theirs.max_fds else None
            case messages.IrqInfo():
                body = self._irq_info(command).body()
            case messages.DmaUnmap():
                body = command.body()
            case messages.Reset():
                self._device.reset()
            case messages.SetIrqs():
                self._check_irqs(command)
            case messages.DmaMap():
                pass
            case _:
                assert_never(command)
        return messages.encode_reply(message, body), fd

    def _agree(self, theirs: messages.Version) -> messages.Version:
        if self._theirs is not None:
            raise OutOfTurn("a second VERSION")
        self._theirs = theirs
        return messages.Version(minor=min(theirs.minor, messages.MINOR_VERSION), max_fds=_MAX_FDS)

    def _read(self, command: messages.RegionRead, limit: int) -> bytes:
        if command.count > min(limit, DEFAULT_MAX_TRANSFER):
            raise InvalidAccess(offset=command.offset, width=command.count)
        if command.count == 0:
            return b""
        return self._device.read(command.region, command.offset, command.count)

    def _region_info(self, command: messages.GetRegionInfo) -> Reply:
        if command.index >= self._device.info().num_regions:
            raise WrongIndex(f"there is no region {command.index}")
        info = self._device.region_info(command.index)
        body = encode_region_info(info)
        if command.argsz >= len(body):
            return body, self._device.region_fd(command.index)
        # As libvfio-user: the fixed part says how much is needed, and offers nothing else yet.
        argsz = len(body).to_bytes(4, sys.byteorder)
        bare = encode_region_info(replace(info, areas=None, type=None, msix_mappable=False))
        return argsz + bare[len(argsz) : REGION_INFO_SIZE], None

    def _irq_info(self, command: messages.IrqInfo) -> messages.IrqInfo:
        if command.index >= self._device.info().num_irqs:
            raise WrongIndex(f"there is no interrupt {command.index}")
        count = self._device.irq_count(command.index)
        return messages.IrqInfo(command.index, _IRQ_EVENTFD if count else 0, count)

    def _check_irqs(self, command: messages.SetIrqs) -> None:
        if command.index >= self._device.info().num_irqs:
            raise WrongIndex(f"there is no interrupt {command.index}")
        if command.start + command.count > self._device.irq_count(command.index):
            raise WrongIndex(f"interrupt {command.index} has fewer vectors")
