# SPDX-License-Identifier: MIT
"""A mount acts on its devices' signals."""

import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pyfuse3
import pytest
import trio
import trio.testing

from barfs import engine
from barfs.backend import HostFile, Signal, SignalKind
from barfs.device import Device, Options
from barfs.fuse import mounted_devices
from barfs.fuse.gate import Gate
from barfs.fuse.mounted_devices import MountedDevices, tell_of_holders
from barfs.fuse.tree import INFO_NAME, Text, Tree
from barfs.host.device_clients import Process
from barfs.pci import Bdf
from barfs.registers.access import DeviceRegisters


@dataclass(eq=False)
class StubDevice:
    """A device without regions, whose signals are eventfds; it closes at the second attempt."""

    bdf: Bdf
    events: dict[SignalKind, int]
    _in_flight: engine.InFlight = field(default_factory=engine.InFlight)
    regions: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=lambda: {"vendor": "0x1234\n"})
    links: dict[str, str] = field(default_factory=dict)
    host_files: dict[str, HostFile] = field(default_factory=dict)
    slot: None = None
    options: Options = field(default_factory=Options)
    closings: int = 0
    registers: DeviceRegisters = field(default_factory=lambda: DeviceRegisters({}, {}, 5.0))

    @property
    def source(self) -> str:
        return str(self.bdf)

    @property
    def signals(self) -> tuple[Signal, ...]:
        return tuple(Signal(kind, fd, select.POLLIN) for kind, fd in self.events.items())

    def close(self) -> bool:
        self.closings += 1
        return self.closings == 2


class StubGate:
    """Counts the devices that it answers for."""

    def __init__(self) -> None:
        self.devices = 0

    def add_device(self, _name: str, _regions: dict[int, Any]) -> "StubGate":
        self.devices += 1
        return self

    def remove(self) -> None:
        self.devices -= 1


class Scene:
    """A mount of two devices, and what the kernel was told to forget."""

    def __init__(self, events: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
        kinds: tuple[SignalKind, ...] = ("requested", "error", "lost")
        self.first, self.second = (
            StubDevice(Bdf(0, 1, 0, function), {kind: events() for kind in kinds})
            for function in range(2)
        )
        self.tree, self.gate = Tree(), StubGate()
        self.forgotten: list[object] = []
        monkeypatch.setattr(
            pyfuse3, "invalidate_entry_async", lambda *entry, **_: self.forgotten.append(entry)
        )
        monkeypatch.setattr(pyfuse3, "invalidate_inode", self.forgotten.append)
        self.mounted = MountedDevices(self.tree, cast(Gate, self.gate))
        self.mounted.add([cast(Device, self.first), cast(Device, self.second)])

    def listed(self) -> list[bytes]:
        return list(self.tree.bus.children)

    def info(self) -> Text:
        node = self.tree.root.children[INFO_NAME]
        assert isinstance(node, Text)
        return node

    def watch(self, then: Callable[[], None], until: Callable[[], bool]) -> None:
        """Let it watch, do `then`, and end when `until` holds."""

        async def run() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.mounted.watch)
                then()
                with trio.fail_after(10):
                    while not until():
                        await trio.sleep(0.01)
                nursery.cancel_scope.cancel()

        trio.run(run)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    fds: list[int] = []

    def event() -> int:
        fds.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        return fds[-1]

    yield Scene(event, monkeypatch)
    for fd in fds:
        os.close(fd)


def test_a_requested_device_leaves_and_is_closed_until_it_is(scene: Scene) -> None:
    bdf = str(scene.first.bdf)
    assert bdf.encode() in scene.info().content
    scene.watch(
        lambda: os.eventfd_write(scene.first.events["requested"], 1),
        lambda: scene.first.closings == 2,
    )
    assert scene.first._in_flight.closed
    assert scene.listed() == [str(scene.second.bdf).encode()]
    assert bdf.encode() not in scene.info().content
    assert scene.forgotten == [
        (scene.tree.bus.inode, bdf.encode()),
        (scene.tree.flat.inode, scene.first.bdf.flat.encode()),
        scene.info().inode,
    ]
    assert scene.gate.devices == 1
    assert not scene.second._in_flight.closed
    assert not scene.second.closings


def test_a_lost_device_stays_to_be_seen(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.watch(
        lambda: os.eventfd_write(scene.first.events["lost"], 1),
        lambda: scene.first._in_flight.closed,
    )
    assert len(scene.listed()) == 2
    assert not scene.first.closings
    assert caplog.messages == [f"{scene.first.bdf} is lost"]


def test_an_error_is_logged_each_time_and_changes_nothing(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    event = scene.first.events["error"]

    def reported(count: int) -> bool:
        if len(caplog.messages) < count:
            return False
        os.eventfd_write(event, 1)
        return True

    scene.watch(lambda: os.eventfd_write(event, 1), lambda: reported(1) and reported(2))
    assert set(caplog.messages) == {
        f"{scene.first.bdf} reported an uncorrectable PCIe error; see the kernel's log"
    }
    assert not scene.first._in_flight.closed
    assert len(scene.listed()) == 2


def remove(scene: Scene, timeout: float) -> list[Bdf]:
    hanging: list[Bdf] = []

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.mounted.watch)
            await trio.testing.wait_all_tasks_blocked()
            hanging.extend(await scene.mounted.remove([scene.first.bdf], timeout))
            nursery.cancel_scope.cancel()

    trio.run(run)
    return hanging


def test_a_device_is_removed_on_request(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert remove(scene, timeout=10) == []
    assert scene.first.closings == 2
    assert scene.first._in_flight.closed
    assert scene.listed() == [str(scene.second.bdf).encode()]
    assert scene.mounted.addresses() == [scene.second.bdf]
    assert scene.gate.devices == 1
    assert str(scene.first.bdf).encode() not in scene.info().content
    assert caplog.messages == [f"removed {scene.first.bdf}"]


def test_a_device_in_an_access_that_hangs_leaves_all_the_same(scene: Scene) -> None:
    release = threading.Event()

    def close() -> bool:
        return release.wait(30)

    scene.first.close = close  # type: ignore[method-assign]
    assert remove(scene, timeout=0.05) == [scene.first.bdf]
    release.set()
    assert scene.listed() == [str(scene.second.bdf).encode()]


def test_devices_join_all_or_none(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate has no memory for the second."""
    third, fourth = (StubDevice(Bdf(0, 2, 0, function), {}) for function in range(2))
    add_device = scene.gate.add_device

    def fail(name: str, regions: dict[int, Any]) -> StubGate:
        if name == str(fourth.bdf):
            raise MemoryErrorOfTheGate
        return add_device(name, regions)

    monkeypatch.setattr(scene.gate, "add_device", fail)
    with pytest.raises(MemoryErrorOfTheGate):
        scene.mounted.add([cast(Device, third), cast(Device, fourth)])
    assert len(scene.listed()) == scene.gate.devices == 2
    assert scene.mounted.addresses() == [scene.first.bdf, scene.second.bdf]


def test_what_comes_back_after_its_removal_is_closed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = StubDevice(scene.first.bdf, {})
    closed: list[float] = []

    async def come_back(_old: Device) -> Device:
        """The user removes the device when its next server has just been found."""
        assert scene.mounted.found(str(scene.first.bdf)) == [scene.first.bdf]
        await scene.mounted.remove([scene.first.bdf], 0)
        return cast(Device, back)

    monkeypatch.setattr(scene.mounted, "_reconnect", True)
    monkeypatch.setattr(mounted_devices, "can_come_back", lambda _device: True)
    monkeypatch.setattr(mounted_devices, "come_back", come_back)
    monkeypatch.setattr(back, "close", lambda *, grace: closed.append(grace))
    scene.watch(
        lambda: os.eventfd_write(scene.first.events["lost"], 1),
        lambda: bool(closed),
    )
    assert scene.mounted.addresses() == [scene.second.bdf]
    assert scene.listed() == [str(scene.second.bdf).encode()]


class MemoryErrorOfTheGate(OSError):
    pass


HOLDING = """
import mmap, os, sys
memory = mmap.mmap(int(sys.argv[1]), 4096)
os.close(int(sys.argv[1]))
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("ends", [False, True])
def test_the_log_names_processes_that_still_map_a_device(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ends: bool
) -> None:
    """But not one that lets go in time."""
    with (tmp_path / "memory").open("wb+") as file:
        file.truncate(4096)
        command = [sys.executable, "-c", HOLDING, str(file.fileno())]
        with subprocess.Popen(
            command, pass_fds=[file.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            client = Process.find(process.pid)
            assert client is not None
            if ends:
                process.kill()
            trio.run(tell_of_holders, "0000:01:00.0", file.name, [client])
            process.kill()
    expected = (
        f"0000:01:00.0 is still held by process {client}; the kernel waits until none maps it or "
        "has it open"
    )
    assert caplog.messages == ([] if ends else [expected])
