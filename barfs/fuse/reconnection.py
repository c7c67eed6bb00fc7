# SPDX-License-Identifier: MIT
"""Waits until a vfio-user server that has ended listens again, for `-o reconnect`.

Rule 1: what comes back is a new device: opened and checked as at the start of a mount. The old one
        is closed before.
Rule 2: a server that is not there, refuses, or does not answer in time costs one attempt; pauses
        between attempts grow, up to a limit. Each reason is logged once.
"""

import logging

import trio

from barfs.device import Device
from barfs.errors import BarfsError
from barfs.fuse.open_devices import open_devices
from barfs.opening import DeviceName

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0
_MOST_TOLD = 20
_IDS = ("vendor", "device", "subsystem_vendor", "subsystem_device", "class", "revision")

log = logging.getLogger(__name__)


def can_come_back(device: Device) -> bool:
    """Whether a server at a path serves the device."""
    return _name_of(device).kind == "vfio-user"


async def come_back(old: Device) -> Device:
    """The device that is served, once one is, at the socket of a closed one, at its address."""
    name, told = _name_of(old), set[str]()
    pause = _FIRST_PAUSE
    while True:
        await trio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
        try:
            (device,) = await open_devices([name], old.options)
        except BarfsError as error:
            if str(error) not in told and len(told) < _MOST_TOLD:
                told.add(str(error))
                log.info("waiting for %s: %s", old.bdf, error)
            continue
        log.warning("%s is back as %s%s", device.source, device.bdf, _difference(old, device))
        return device


def _name_of(device: Device) -> DeviceName:
    kind, _colon, socket = device.source.partition(":")
    if kind != "vfio-user":
        return DeviceName("demo", device.source, device.source, device.bdf)
    return DeviceName("vfio-user", device.source, device.source, device.bdf, socket)


def _difference(old: Device, new: Device) -> str:
    """How it differs from the one before, in words."""
    before, now = ([_id(device, name) for name in _IDS] for device in (old, new))
    found = [
        f"{name} {after} instead of {was}"
        for name, was, after in zip(_IDS, before, now, strict=True)
        if was != after
    ]
    sizes = [
        {name: region.size for name, region in device.regions.items()} for device in (old, new)
    ]
    if sizes[0] != sizes[1]:
        found.append("other regions")
    return f", another device: {', '.join(found)}" if found else ""


def _id(device: Device, name: str) -> str:
    return device.attributes.get(name, "none").strip()
