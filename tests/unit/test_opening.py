# SPDX-License-Identifier: MIT
"""Many devices are opened and closed side by side, all or none."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from barfs.device import Options
from barfs.emulated.demo import demo_device
from barfs.engine.trace import HEADER
from barfs.errors import DeviceError, UsageError
from barfs.opening import DeviceName, close_all, open_all
from barfs.registers.errors import DescriptionError
from barfs.registers.find import parse_choice
from tests.support import DEADLINE, wait_until
from tests.support.raw import running

SERVERS = 12


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def software_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "barfs-software-device"]


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[list[Path]]:
    """The sockets of running servers, and none left open after the test."""
    paths = [tmp_path / f"{number}.sock" for number in range(SERVERS)]
    with contextlib.ExitStack() as stack:
        for path in paths:
            running_device = stack.enter_context(contextlib.closing(demo_device()))
            stack.enter_context(running(path, running_device))
        yield paths


@pytest.fixture
def nothing_left() -> Iterator[None]:
    before = descriptors()
    yield
    wait_until(lambda: not software_threads(), "the end of the software devices")
    wait_until(lambda: descriptors() == before, "the devices' descriptors to be closed")


def names(sockets: list[Path]) -> list[DeviceName]:
    return [DeviceName.parse(f"vfio-user:{path}") for path in sockets]


@contextlib.contextmanager
def mute(path: Path) -> Iterator[socket.socket]:
    """A server that accepts connections and says nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield listener


def test_devices_are_in_the_order_of_their_names(sockets: list[Path], nothing_left: None) -> None:
    mixed = [*names(sockets[:6]), DeviceName.parse("demo"), *names(sockets[6:])]
    devices = open_all(mixed, Options())
    assert [device.source for device in devices] == [name.source for name in mixed]
    assert [device.bdf.device for device in devices] == [*range(13)]
    assert {device["bar0"].read(0, 4) for device in devices} == {b"barf"}
    close_all(devices)


def test_one_of_many_that_fails_is_named_and_the_others_are_closed(
    sockets: list[Path], tmp_path: Path, nothing_left: None
) -> None:
    mixed = names(sockets)
    mixed.insert(7, DeviceName.parse(f"vfio-user:{tmp_path}/absent"))
    mixed.append(DeviceName.parse("demo"))
    with pytest.raises(DeviceError, match=f"^vfio-user:{tmp_path}/absent: there is no such"):
        open_all(mixed, Options())
    # Each server takes one client at a time: all have been left.
    close_all(open_all(names(sockets), Options()))


def test_of_several_that_fail_the_first_is_named(
    sockets: list[Path], tmp_path: Path, nothing_left: None
) -> None:
    """Also if it takes longer than the others."""
    mixed = names(sockets)
    mixed.insert(9, DeviceName.parse(f"vfio-user:{tmp_path}/absent"))
    with mute(tmp_path / "mute"):
        mixed.insert(3, DeviceName.parse(f"vfio-user:{tmp_path}/mute"))
        with pytest.raises(DeviceError, match=f"^vfio-user:{tmp_path}/mute: connected, but"):
            open_all(mixed, Options(timeout=0.5))


def test_a_socket_that_is_named_twice(
    sockets: list[Path], tmp_path: Path, nothing_left: None
) -> None:
    first = sockets[0]
    link = tmp_path / "link"
    link.symlink_to(first.name)
    (tmp_path / "hard").hardlink_to(first)
    relative = os.path.relpath(first)
    paths = [str(first), f"{tmp_path}/x/../{first.name}", relative, str(link), f"{tmp_path}/hard"]
    (tmp_path / "x").mkdir()
    for path in paths:
        mixed = [*names(sockets), DeviceName.parse(f"vfio-user:{path},bdf=ffff:11:00.0")]
        with pytest.raises(UsageError, match=f"^{mixed[-1].source} is named twice"):
            open_all(mixed, Options())
    with pytest.raises(UsageError, match=f"is named twice, also as vfio-user:{first}$"):
        open_all(names([first, link]), Options())
    with pytest.raises(UsageError, match=r"/none is named twice$"):
        open_all(names([tmp_path / "none"] * 2), Options())


def test_a_signal_ends_the_opening_although_a_device_hangs(
    sockets: list[Path], tmp_path: Path, nothing_left: None
) -> None:
    with mute(tmp_path / "mute") as listener:
        mixed = [DeviceName.parse(f"vfio-user:{tmp_path}/mute"), *names(sockets)]

        def interrupt() -> None:
            connection, _address = listener.accept()
            with connection:
                connection.recv(1, socket.MSG_PEEK)
                os.kill(os.getpid(), signal.SIGINT)
                released.wait(DEADLINE)

        released = threading.Event()
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            open_all(mixed, Options(timeout=DEADLINE))
        # The others are closed by now: their servers take the next client.
        close_all(open_all(names(sockets), Options()))
        released.set()
        thread.join()


def test_a_description_that_fails_closes_all_devices(
    sockets: list[Path], tmp_path: Path, nothing_left: None
) -> None:
    description = tmp_path / "bad.rdl"
    description.write_text("addrmap {")
    with pytest.raises(DescriptionError):
        open_all(names(sockets), Options(registers=parse_choice([f"bar0={description}"])))


def test_devices_that_are_opened_side_by_side_begin_one_trace(
    sockets: list[Path], tmp_path: Path, nothing_left: None
) -> None:
    trace = tmp_path / "trace"
    devices = open_all(names(sockets), Options(trace=trace))
    lines = trace.read_bytes()
    assert lines.startswith(HEADER)
    assert lines.count(HEADER) == 1
    assert {line.split()[2] for line in lines.splitlines()[1:]} == {
        str(device.bdf).encode() for device in devices
    }
    close_all(devices)
