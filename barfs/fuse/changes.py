# SPDX-License-Identifier: MIT
"""Devices that a mount adds and removes when its owner asks for it (`barfs add`, `barfs remove`).

Rule 1: a request is done whole or not at all, and requests are done one after the other.
Rule 2: a device is opened and closed as at the start and end of a mount, with the mount's options.
        Opening and closing block, so worker threads do it.
Rule 3: a device that is removed leaves as one that the kernel reclaims: accesses under way finish,
        files that are open get ENODEV.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import trio

from barfs.device import Options
from barfs.errors import BarfsError, DeviceError, UsageError
from barfs.fuse.control import Outcome, Request
from barfs.fuse.mount_socket import Reply
from barfs.fuse.mounted_devices import MountedDevices
from barfs.fuse.open_devices import open_devices
from barfs.opening import DeviceName, with_addresses
from barfs.pci import Bdf
from barfs.text.system_errors import reason

_GRACE = 1.0
_PAUSE = 0.01

log = logging.getLogger(__name__)


class Changes:
    """Answers requests for `mounted`, whose devices are opened with `options`."""

    def __init__(self, mounted: MountedDevices, options: Options, mountpoint: Path) -> None:
        self._mounted = mounted
        self._options = options
        self._mountpoint = mountpoint

    async def answer(self, data: bytes) -> Reply | None:
        """The reply to a message; None for one that is no request."""
        request = Request.decode(data)
        if request is None:
            return None
        try:
            names = [DeviceName.parse(text) for text in request.names]
            async with self._mounted.changing:
                act = self._add if request.command == "add" else self._remove
                outcome = Outcome(0, await act(names))
        except BarfsError as error:
            outcome = Outcome(2 if isinstance(error, UsageError) else 1, str(error))
        return Reply(outcome.encode())

    async def _add(self, names: Sequence[DeviceName]) -> str:
        """Returns a line for each device: its directory."""
        for name in names:
            if name.kind != "demo" and self._mounted.found(name.source):
                raise DeviceError(f"{name.source} is already in {self._mountpoint}")
            if name.bdf is not None and self._mounted.has(name.bdf):
                raise DeviceError(f"{name.bdf} is already in {self._mountpoint}")
        named = with_addresses(names, self._mounted.addresses())
        devices = await open_devices(named, self._options)
        try:
            self._mounted.add(devices)
        except OSError as error:
            for device in devices:
                await trio.to_thread.run_sync(device.close)
            raise DeviceError(f"cannot add {named[0].source}: {reason(error)}") from error
        for device in devices:
            log.info("added %s as %s", device.source, device.bdf)
        return "".join(f"{self._mountpoint}/bus/{device.bdf}\n" for device in devices)

    async def _remove(self, names: Sequence[DeviceName]) -> str:
        addresses = list(dict.fromkeys(self._find(name) for name in names))
        hanging = await self._mounted.remove(addresses, self._options.timeout + _GRACE)
        with trio.move_on_after(_GRACE):
            for bdf in addresses:
                await self._until_forgotten(self._mountpoint / "bus" / str(bdf))
                await self._until_forgotten(self._mountpoint / "flat" / bdf.flat)
        if hanging:
            raise DeviceError(
                f"{', '.join(map(str, hanging))} left {self._mountpoint}, but an access has not "
                "come back; the device is released when it does, or when the mount ends"
            )
        return ""

    def _find(self, name: DeviceName) -> Bdf:
        """The address of a device of the mount. Raises BarfsError."""
        found = self._mounted.found(name.source)
        if not found:
            known = ", ".join(map(str, self._mounted.addresses())) or "no device"
            raise DeviceError(f"{name.source} is not in {self._mountpoint}, which has {known}")
        if len(found) > 1:
            known = ", ".join(map(str, found))
            raise UsageError(f"{name.source} is several devices; name one of {known}")
        return found[0]

    async def _until_forgotten(self, path: Path) -> None:
        """The kernel caches names, and forgets them a little after it is told to."""
        while await trio.to_thread.run_sync(os.path.lexists, path, abandon_on_cancel=True):
            await trio.sleep(_PAUSE)
