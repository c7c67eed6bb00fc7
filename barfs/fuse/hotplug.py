# SPDX-License-Identifier: MIT
"""Hot-plug: a mount of every device that a VFIO driver binds, now and later.

Rule 1: a device that cannot be opened is logged and does not affect the others.
Rule 2: devices leave as in every mount: when the kernel reclaims them (`mounted_devices`).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import trio

from barfs.device import Device, Options
from barfs.errors import BarfsError
from barfs.fuse.mounted_devices import MountedDevices
from barfs.host.sysfs import Machine
from barfs.host.uevents import Uevents
from barfs.opening import DeviceName, open_device
from barfs.pci import Bdf
from barfs.process.side_by_side import side_by_side

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AllDevices:
    """Every PCI function that a VFIO driver binds and that can be opened, now and later."""

    options: Options

    def open(self) -> Sequence[Device]:
        machine = Machine()
        return self._open_all([bdf for bdf in machine.functions() if machine.is_vfio(bdf)])

    def source(self, devices: Sequence[Device]) -> str:
        return devices[0].source if devices else "all"

    async def follow(self, mounted: MountedDevices) -> None:
        """Add devices as VFIO drivers bind them, until cancelled. Raises OSError."""
        machine = Machine()
        events = Uevents()
        try:
            # A device may have been bound between `open` and the subscription.
            candidates = machine.functions()
            while True:
                async with mounted.changing:
                    new = [
                        bdf for bdf in candidates if machine.is_vfio(bdf) and not mounted.has(bdf)
                    ]
                    devices = await trio.to_thread.run_sync(self._open_all, new)
                    for device in devices:
                        log.info("added %s", device.source)
                    mounted.add(devices)
                bound = await events.next_bound()
                candidates = [bound.bdf] if bound.bdf is not None else machine.functions()
        finally:
            events.close()

    def _open_all(self, bdfs: Sequence[Bdf]) -> list[Device]:
        """Those of the functions that can be opened."""
        tasks = [partial(self._try_open, bdf) for bdf in bdfs]
        found = side_by_side(tasks, undo=lambda device: device and device.close())
        return [device for device in found if device is not None]

    def _try_open(self, bdf: Bdf) -> Device | None:
        try:
            return open_device(DeviceName.parse(str(bdf)), self.options)
        except BarfsError as error:
            log.warning("cannot add %s: %s", bdf, error)
            return None
