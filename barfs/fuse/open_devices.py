# SPDX-License-Identifier: MIT
"""Opens devices while a mount serves others."""

import threading
from collections.abc import Sequence

import trio

from barfs.device import Device, Options
from barfs.opening import DeviceName, open_all


async def open_devices(names: Sequence[DeviceName], options: Options) -> list[Device]:
    """`open_all` in a worker thread.

    A cancelled caller does not wait for it; what it opens then is closed at once.
    """
    lock = threading.Lock()
    opened: list[Device] = []
    wanted = True

    def run() -> None:
        devices = open_all(names, options)
        with lock:
            if wanted:
                opened.extend(devices)
                return
        _close(devices)

    try:
        await trio.to_thread.run_sync(run, abandon_on_cancel=True)
    except BaseException:
        with lock:
            wanted = False
        _close(opened)
        raise
    return opened


def _close(devices: Sequence[Device]) -> None:
    for device in devices:
        device.close(grace=0)
