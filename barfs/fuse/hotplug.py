# SPDX-License-Identifier: MIT
"""A mount of all devices that VFIO drivers hold, now and later.

Rule 1: a device that cannot be opened is a line in the log, and nobody else's matter.
Rule 2: devices leave as in every mount: when the kernel asks for them (`mounted_devices`).
"""

import logging

import trio

from barfs.attach import DeviceName, open_device
from barfs.device import Device, Options
from barfs.errors import BarfsError
from barfs.fuse.mounted_devices import MountedDevices
from barfs.host.sysfs import Machine
from barfs.host.uevents import Uevents
from barfs.pci import Bdf

log = logging.getLogger(__name__)


def open_all(options: Options) -> list[Device]:
    """Every PCI function that is bound to a VFIO driver and can be opened."""
    machine = Machine()
    found = (_try_open(bdf, options) for bdf in machine.functions() if machine.is_vfio(bdf))
    return [device for device in found if device is not None]


def _try_open(bdf: Bdf, options: Options) -> Device | None:
    try:
        return open_device(DeviceName.parse(str(bdf)), options)
    except BarfsError as error:
        log.warning("%s is left out: %s", bdf, error)
        return None


async def follow(mounted: MountedDevices, options: Options) -> None:
    """Let devices that VFIO drivers take appear in the mount, until cancelled. Raises OSError."""
    machine = Machine()
    events = Uevents()
    try:
        # What was bound between open_all() and the subscription.
        candidates = machine.functions()
        while True:
            for bdf in candidates:
                if not machine.is_vfio(bdf) or mounted.has(bdf):
                    continue
                device = await trio.to_thread.run_sync(_try_open, bdf, options)
                if device is not None:
                    log.info("%s has come", device.source)
                    mounted.add([device])
            bound = await events.next_bound()
            candidates = [bound.bdf] if bound.bdf is not None else machine.functions()
    finally:
        events.close()
