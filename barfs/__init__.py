# SPDX-License-Identifier: MIT
"""barfs: the BARs of PCI devices as files, and from Python.

    >>> import barfs
    >>> with barfs.open("demo") as device:
    ...     print(*device)
    ...     bar0 = device["bar0"]
    ...     bar0.write32(0x4, 0x0BADC0DE)
    ...     print(hex(bar0.read32(0x4)), hex(bar0.read16(0x4)), bar0.read(0x0, 4))
    bar0 bar2 bar4 bar5 rom config
    0xbadc0de 0xc0de b'barf'

`barfs.attach("/mnt/bus/0000:01:00.0")` gives the same for a device that a mount holds.

Offsets and counts are bytes in the region; values are integers of the device's little-endian
registers. Errors are `BarfsError` and its children.

Rule 1: what is here is imported when it is first used. The command starts through this package, and
        has to be able to tell in a line that an import failed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from os import PathLike
    from typing import Literal

    from barfs.backend import VfioPath
    from barfs.device import Device, MappingMode, Options
    from barfs.errors import (
        AccessDenied,
        AccessError,
        AccessTimeout,
        BarfsError,
        BeyondEnd,
        BusFault,
        DeviceError,
        DeviceGone,
        ForkedAccess,
        ForkedDevice,
        Interrupted,
        InvalidAccess,
        PolicyDenied,
        UsageError,
    )
    from barfs.layout import Layout, MsixMode, Segment
    from barfs.region import Region
    from barfs.registers.find import Choice

__all__ = [
    "AccessDenied",
    "AccessError",
    "AccessTimeout",
    "BarfsError",
    "BeyondEnd",
    "BusFault",
    "Device",
    "DeviceError",
    "DeviceGone",
    "ForkedAccess",
    "ForkedDevice",
    "Interrupted",
    "InvalidAccess",
    "Layout",
    "Options",
    "PolicyDenied",
    "Region",
    "Segment",
    "UsageError",
    "VfioPath",
    "attach",
    "open",
]

_HOMES = {
    "Device": "device",
    "Layout": "layout",
    "Options": "device",
    "Region": "region",
    "Segment": "layout",
    "VfioPath": "backend",
}
"""The modules of what is no error."""


if not TYPE_CHECKING:  # or every name would do

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}")
        value = globals()[name] = getattr(module, name)
        return value


def open(
    device: str,
    *,
    mapping: MappingMode = "separate",
    width: int = 4,
    msix: MsixMode = "map",
    read_only: bool = False,
    timeout: float = 5.0,
    vfio: VfioPath = "auto",
    guard: bool = False,
    policy: str | PathLike[str] | None = None,
    trace: str | PathLike[str] | None = None,
    trace_limit: int = 256 << 20,
    registers: Mapping[str, str | PathLike[str]] | Literal["off"] | None = None,
    widths: Collection[int] | None = None,
) -> Device:
    """Open a device: a PCI address, `vfio-user:SOCKET`, or `demo`. Close it, or use `with`.

    The address of a virtual function may be followed by `,vf_token=UUID`. The kernel resets a PCI
    device when it is opened. The device belongs to this process: a forked child, also one of
    `multiprocessing`, cannot use it (`ForkedAccess`), and neither the child's `close` nor its end
    affects it. For the options see `Options`; `policy` is a file (`barfs.policy`). `registers` has
    the description of each region (`{"bar0": "card.rdl", "bar2+0x1000": "dma.svd"}`), "off" for
    none; without it, `device.registers` has the installed ones, and those that ship with barfs.
    Raises UsageError for a bad name or option, and DeviceError, naming the obstacle, for everything
    else.

        >>> with open("demo", read_only=True) as device:
        ...     device["bar0"].write32(0x4, 1)
        Traceback (most recent call last):
            ...
        barfs.errors.AccessDenied: bar0+0x4 (4 bytes): not permitted here
    """
    from barfs.device import Options
    from barfs.opening import DeviceName, open_device
    from barfs.policy import EVERYTHING, AccessPolicy

    rules = EVERYTHING if policy is None else AccessPolicy.load(policy)
    options = Options(
        mapping,
        width,
        msix,
        read_only,
        timeout,
        vfio,
        guard,
        rules,
        trace,
        trace_limit,
        _choice(registers),
        widths,
    )
    return open_device(DeviceName.parse(device), options)


def attach(
    path: str | PathLike[str],
    *,
    mapping: MappingMode = "separate",
    registers: Mapping[str, str | PathLike[str]] | Literal["off"] | None = None,
) -> Device:
    """Use a device that a mount holds: `path` is its directory there, as `~/bar/bus/0000:01:00.0`.

    Any number of processes may, at once. The options of the mount are in force. With `-o map`,
    an access in a window is a load or store in this process, as after `open`; every other one is a
    request on the region's file. `mapping` is as for `open`; with "off", all accesses are requests.
    Without `registers`, `device.registers` has the mount's names.

    When the device leaves the mount, or the mount ends, this process lets go of it: accesses raise
    DeviceGone. A forked child cannot use it, as after `open`. Raises UsageError if `path` is no
    such directory, and DeviceError, naming the obstacle, for everything else.

        >>> attach("/")
        Traceback (most recent call last):
            ...
        barfs.errors.UsageError: / must be a device's directory in a mount, like .../bus/BDF
    """
    from barfs.opening import attach

    return attach(path, mapping=mapping, registers=_choice(registers))


def _choice(registers: Mapping[str, str | PathLike[str]] | Literal["off"] | None) -> Choice | None:
    if registers is None:
        return None
    from barfs.registers.find import choice_of

    return choice_of(registers)
