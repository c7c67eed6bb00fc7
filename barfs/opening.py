# SPDX-License-Identifier: MIT
"""From what a user types to an open device: the one place that chooses a backend.

A device is named by its address (`0000:01:00.0`, `01:00.0`; for a virtual function with a token
`0000:01:00.0,vf_token=UUID`), by the socket of its vfio-user server
(`vfio-user:SOCKET[,bdf=BDF]`), or as `demo`, the built-in software device. A device that
a mount holds is named by its directory there.

Rule 1: what opens a device is imported when one is opened: a command that finds its device in a
        mount only reads the name.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from barfs.errors import DeviceError, UsageError
from barfs.pci import Bdf
from barfs.text import quoted
from barfs.text.system_errors import reason

if TYPE_CHECKING:
    import socket
    from uuid import UUID

    from barfs.backend import Backend
    from barfs.device import Device, MappingMode, Options
    from barfs.registers.find import Choice

_VFIO_USER = "vfio-user:"
_SOFTWARE_DOMAIN = 0xFFFF
_SYSFS = re.compile("(?s)^/sys/.*/")


@dataclass(frozen=True, slots=True)
class DeviceName:
    """A device as the user named it. `bdf` is None until `open_all` assigns one. `socket` is the
    path as written, since the absolute path may be too long.

    `shown` is the source that a mount of the device shows: the name as written, without a token.
    mount(8) compares it with fstab to tell which lines are mounted.
    """

    kind: Literal["pci", "vfio-user", "demo"]
    source: str
    shown: str
    bdf: Bdf | None
    socket: str = ""
    token: UUID | None = None

    @property
    def opening_notice(self) -> str:
        """The notice for a command that had to open the device; "" for the demo device, which each
        command makes anew."""
        reset = ": the kernel may reset it" if self.kind == "pci" else ""
        return "" if self.kind == "demo" else f"opened {self.source}{reset}"

    @classmethod
    def parse(cls, text: str) -> DeviceName:
        """Raises UsageError if the text does not name a device."""
        if text == "demo":
            return cls("demo", text, text, None)
        if not text.startswith(_VFIO_USER):
            return cls._parse_address(text)
        path, comma, choice = text.removeprefix(_VFIO_USER).partition(",bdf=")
        if not path:
            raise UsageError(
                f"{quoted(text)} names no socket; use the form vfio-user:/run/device.sock"
            )
        source = _VFIO_USER + _absolute(path)
        bdf = Bdf.parse(choice) if comma else None
        return cls("vfio-user", source, source + comma + choice, bdf, path)

    @classmethod
    def _parse_address(cls, text: str) -> DeviceName:
        address, comma, token = text.partition(",vf_token=")
        try:
            # Run in /sys/bus/pci/devices, mount(8) makes a path of an address: it is a file there.
            bdf = Bdf.parse(_SYSFS.sub("", address))
        except UsageError:
            raise UsageError(
                f"{quoted(text)} is not a device; name a PCI address like "
                "0000:01:00.0[,vf_token=UUID], vfio-user:SOCKET[,bdf=BDF], or demo"
            ) from None
        return cls("pci", str(bdf), address, bdf, token=_token(token) if comma else None)


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError:  # the working directory was removed
        return path


def _token(text: str) -> UUID:
    from uuid import UUID

    try:
        return UUID(text)
    except ValueError:
        raise UsageError(
            f"vf_token must be a UUID like 14d63f20-8445-11ea-8900-1f9ce7d5650d, not {quoted(text)}"
        ) from None


def _free_addresses(names: Sequence[DeviceName]) -> Iterator[Bdf]:
    taken = {name.bdf for name in names}
    for bus in range(256):
        for device in range(32):
            bdf = Bdf(_SOFTWARE_DOMAIN, bus, device, 0)
            if bdf not in taken:
                yield bdf


def with_addresses(names: Sequence[DeviceName], taken: Collection[Bdf]) -> list[DeviceName]:
    """The names, each with an address that is not in `taken` if it had none."""
    free = (bdf for bdf in _free_addresses(names) if bdf not in taken)
    return [name if name.bdf is not None else replace(name, bdf=next(free)) for name in names]


def open_all(names: Sequence[DeviceName], options: Options) -> list[Device]:
    """Open devices side by side, all or none.

    Raises UsageError when two have the same address or socket, DeviceError when one cannot be
    opened.
    """
    from barfs.process.side_by_side import side_by_side, undo_all

    _check_named_once(names)
    free = _free_addresses(names)
    tasks = [partial(_open, name, name.bdf or next(free), options) for name in names]
    devices = side_by_side(tasks, undo=_close)
    if options.registers is not None:
        try:
            # Now, so that an error of a description is told; one after the other, since compiling
            # one takes much memory, and the next device finds it compiled.
            for device in devices:
                _ = device.registers
        except BaseException as error:
            undo_all(devices, undo=_close)
            if isinstance(error, OSError):
                raise DeviceError(f"{device.source}: {reason(error)}") from error
            raise
    return devices


def _check_named_once(names: Sequence[DeviceName]) -> None:
    named = Counter(name.bdf for name in names if name.bdf is not None)
    for bdf, count in named.items():
        if count > 1:
            raise UsageError(f"{bdf} is named twice")
    # A server has one client at a time: the second one would wait for an answer.
    sockets: dict[object, DeviceName] = {}
    for name in names:
        if name.kind == "vfio-user":
            first = sockets.setdefault(_identity(name), name)
            if first is not name:
                also = f", also as {first.source}" if first.source != name.source else ""
                raise UsageError(f"{name.source} is named twice{also}")


def _identity(name: DeviceName) -> object:
    """The same for all paths of one socket."""
    try:
        status = os.stat(name.socket)
    except OSError:  # opening tells the reason
        return name.source
    return status.st_dev, status.st_ino


def close_all(devices: Iterable[Device]) -> None:
    """Close devices side by side, without waiting for accesses that hang."""
    from barfs.process.side_by_side import undo_all

    undo_all(list(devices), undo=partial(_close, grace=0))


def _close(device: Device, grace: float | None = None) -> None:
    device.close(grace)


def _open(name: DeviceName, bdf: Bdf, options: Options) -> Device:
    from barfs.device import Device

    try:
        return Device(_open_backend(name, bdf, options), options)
    except OSError as error:
        raise DeviceError(f"{name.source}: {reason(error)}") from error


def _open_backend(name: DeviceName, bdf: Bdf, options: Options) -> Backend:
    if name.kind == "pci":
        from barfs.vfio import KernelDevice

        return KernelDevice(bdf, path=options.vfio, token=name.token)
    from barfs.vfio_user.client import VfioUserClient

    endpoint = _serve_demo() if name.kind == "demo" else name.socket
    return VfioUserClient(endpoint, bdf=bdf, source=name.source, timeout=options.timeout)


def _serve_demo() -> socket.socket:
    from barfs.emulated.demo import demo_device
    from barfs.vfio_user.server import serve_in_thread

    return serve_in_thread(demo_device())


def open_device(name: DeviceName, options: Options) -> Device:
    """Open one device. Raises UsageError, DeviceError."""
    (device,) = open_all([name], options)
    return device


def attach(
    path: str | os.PathLike[str], *, mapping: MappingMode, registers: Choice | None
) -> Device:
    """Attach to the device that a mount holds in the directory `path`. Raises UsageError,
    DeviceError."""
    from barfs.attached.departure import close_at_departure
    from barfs.attached.device import AttachedDevice, MountedDirectory
    from barfs.device import Device, Options
    from barfs.registers.find import parse_choice

    directory = MountedDirectory.find(path)
    options = Options(
        mapping=mapping,
        read_only=directory.read_only,
        timeout=directory.info.timeout,
        guard=directory.info.guard,
        policy=directory.policy,
        registers=parse_choice(directory.registers) if registers is None else registers,
    )
    backend = AttachedDevice(directory, mapping=mapping != "off")
    connection = backend.connection
    device = Device(backend, options)
    try:
        if registers is not None:
            _ = device.registers  # now, so that an error of a description is told
        if connection is not None:
            close_at_departure(device, connection, lambda: backend.connection is None)
    except BaseException as error:
        device.close()
        if isinstance(error, OSError | RuntimeError):
            raise DeviceError(f"{path}: {reason(error)}") from error
        raise
    return device


def open_implicitly(
    name: DeviceName, tell: Callable[[str], object], registers: Choice | None = None
) -> Device:
    """Open a device for a command that needs it open; `tell` gets a notice for the user, if any."""
    from barfs.device import Options

    device = open_device(name, Options(registers=registers))
    if name.opening_notice:
        tell(name.opening_notice)
    return device
