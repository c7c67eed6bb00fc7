# SPDX-License-Identifier: MIT
"""One client's session with a software device: answers its commands, without I/O.

Rule 1: every message gets exactly one reply, unless it asks for none or is itself a reply.
Rule 2: a request that fails is answered with an errno (EINVAL if it is invalid), and does not
        affect the next one.
Rule 3: the short way for register reads answers exactly as the general one, or not at all.
Rule 4: a client that speaks another major version gets an error reply, and nothing after it.

Commands for DMA and interrupts are validated as the kernel and libvfio-user do, and have no effect:
the device uses neither.
"""

import errno
import logging
import sys
from dataclasses import replace
from typing import assert_never

from barfs.emulated.device import IRQ_ERR, IRQ_INTX, IRQ_REQ, SoftwareDevice
from barfs.errors import AccessError, InvalidAccess, PeerError
from barfs.uapi import REGION_INFO_SIZE, encode_region_info
from barfs.vfio_user import messages
from barfs.vfio_user.dma import DmaRanges
from barfs.vfio_user.wire import (
    ACCESS_MESSAGE,
    DEFAULT_MAX_TRANSFER,
    FLAG_ERROR,
    FLAG_REPLY,
    BadInterrupt,
    BadVersion,
    Message,
    Number,
    OutOfTurn,
    RangeExists,
    TooManyRanges,
    UnexpectedReply,
    WrongIndex,
    command_name,
    encode,
)

_log = logging.getLogger(__name__)

_MAX_FDS = 8
_UNMAP_ALL = 2
_IRQ_EVENTFD, _IRQ_MASKABLE, _IRQ_AUTOMASKED = 1, 2, 4
_DATA_NONE, _DATA_BOOL, _DATA_EVENTFD = 1, 2, 4
_ACTION_MASK, _ACTION_UNMASK, _ACTION_TRIGGER = 8, 16, 32
_DATA_TYPES = _DATA_NONE | _DATA_BOOL | _DATA_EVENTFD
_ACTIONS = _ACTION_MASK | _ACTION_UNMASK | _ACTION_TRIGGER
_DESCRIPTOR_SIZE = 4
_REFUSALS: dict[type[PeerError], int] = {RangeExists: errno.EEXIST, TooManyRanges: errno.ENOSPC}

_USUAL_READ = (Number.REGION_READ, ACCESS_MESSAGE.size, 0)
"""Command, size and flags."""

Reply = tuple[bytes, int | None]
"""A message, and the descriptor to send with it."""


class Session:
    """One client of `device`. `over` is set once the server must disconnect the client."""

    def __init__(self, device: SoftwareDevice) -> None:
        self.over = False
        self._device = device
        self._theirs: messages.Version | None = None
        self._most_read = 0  # in bytes; none before VERSION
        self._dma = DmaRanges()

    def answer(self, message: Message) -> Reply:
        """The reply to a message; empty if it gets none."""
        try:
            reply = self._perform(message, messages.decode_command(message))
        except UnexpectedReply:
            return b"", None
        except PeerError as error:
            _log.info("refused %s: %s", command_name(message.command), error)
            self.over = isinstance(error, BadVersion)
            number = _REFUSALS.get(type(error), errno.EINVAL)
            reply = messages.encode_error(message, number), None
        except Exception as error:
            reply = messages.encode_error(message, _failure(message.command, error)), None
        return reply if message.wants_reply else (b"", None)

    def answer_read(self, data: bytes) -> bytes:
        """The reply that `answer` would give to a REGION_READ, at a third of its cost.

        Empty, and without effect, unless `data` is one REGION_READ of the usual form.
        """
        if len(data) != ACCESS_MESSAGE.size:
            return b""
        identifier, command, size, flags, _error, offset, region, count = ACCESS_MESSAGE.unpack(
            data
        )
        if (command, size, flags) != _USUAL_READ or not 0 < count <= self._most_read:
            return b""
        try:
            found = self._device.read(region, offset, count)
        except Exception as error:
            number = _failure(command, error)
            return encode(identifier, command, flags=FLAG_REPLY | FLAG_ERROR, error=number)
        place = (offset, region, count)
        return ACCESS_MESSAGE.pack(identifier, command, size + count, FLAG_REPLY, 0, *place) + found

    def _perform(self, message: Message, command: messages.Command) -> Reply:
        if isinstance(command, messages.Version):
            return messages.encode_reply(message, self._agree(command).body()), None
        if self._theirs is None:
            raise OutOfTurn(f"{command_name(message.command)} before VERSION")
        body, fd = b"", None
        match command:
            case messages.RegionRead():
                data = self._read(command)
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
            case messages.DmaMap():
                self._dma.add(command.address, command.size)
            case messages.DmaUnmap():
                self._unmap(command)
                body = command.body()
            case messages.Reset():
                self._device.reset()
            case messages.SetIrqs():
                self._check_irqs(command)
            case _:
                assert_never(command)
        return messages.encode_reply(message, body), fd

    def _agree(self, theirs: messages.Version) -> messages.Version:
        if self._theirs is not None:
            raise OutOfTurn("a second VERSION")
        self._theirs = theirs
        self._most_read = min(theirs.max_transfer, DEFAULT_MAX_TRANSFER)
        return messages.Version(minor=min(theirs.minor, messages.MINOR_VERSION), max_fds=_MAX_FDS)

    def _read(self, command: messages.RegionRead) -> bytes:
        if command.count > self._most_read:
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
        # As libvfio-user does: the fixed part alone, with the argsz that the client needs.
        argsz = len(body).to_bytes(4, sys.byteorder)
        bare = encode_region_info(replace(info, areas=None, type=None, msix_mappable=False))
        return argsz + bare[len(argsz) : REGION_INFO_SIZE], None

    def _unmap(self, command: messages.DmaUnmap) -> None:
        if command.flags & _UNMAP_ALL and command.address == command.size == 0:
            self._dma.clear()
        else:
            self._dma.remove(command.address, command.size)

    def _irq_info(self, command: messages.IrqInfo) -> messages.IrqInfo:
        if command.index >= self._device.info().num_irqs:
            raise WrongIndex(f"there is no interrupt {command.index}")
        count = self._device.irq_count(command.index)
        flags = _IRQ_EVENTFD if count else 0
        if count and command.index == IRQ_INTX:
            flags |= _IRQ_MASKABLE | _IRQ_AUTOMASKED
        return messages.IrqInfo(command.index, flags, count)

    def _check_irqs(self, command: messages.SetIrqs) -> None:
        """As drivers/vfio/vfio_main.c, vfio_set_irqs_validate_and_prepare, and drivers/vfio/pci/
        vfio_pci_intrs.c; descriptors of DATA_EVENTFD come beside the message, or are left out."""
        if command.index >= self._device.info().num_irqs:
            raise WrongIndex(f"there is no interrupt {command.index}")
        vectors = self._device.irq_count(command.index)
        if command.start >= vectors or command.start + command.count > vectors:
            raise WrongIndex(f"interrupt {command.index} has only {vectors} vectors")
        kind, action = command.flags & _DATA_TYPES, command.flags & _ACTIONS
        if kind.bit_count() != 1 or action.bit_count() != 1 or command.flags != kind | action:
            raise BadInterrupt(
                f"flags must be one type of data and one action, not {command.flags:#x}"
            )
        if command.index in (IRQ_ERR, IRQ_REQ) and action != _ACTION_TRIGGER:
            raise BadInterrupt(f"interrupt {command.index} cannot be masked")
        disable = command.start == 0 and kind == _DATA_NONE and action == _ACTION_TRIGGER
        if command.count == 0 and not disable:
            raise BadInterrupt("a count of 0 is only for disabling all vectors")
        lengths = {
            _DATA_NONE: (0,),
            _DATA_BOOL: (command.count,),
            _DATA_EVENTFD: (0, command.count * _DESCRIPTOR_SIZE),
        }
        if len(command.data) not in lengths[kind]:
            raise BadInterrupt(f"{len(command.data)} bytes of data for {command.count} vectors")


def _failure(command: int, error: Exception) -> int:
    """The errno for a command that failed in the device."""
    if isinstance(error, AccessError):
        return error.errno
    # A bug in a behaviour fails one access, not the device.
    _log.error("%s failed in the device", command_name(command), exc_info=error)
    return errno.EIO
