# SPDX-License-Identifier: MIT
"""After a fork, what is open belongs to the process that opened it, which notices nothing."""

import contextlib
import ctypes
import gc
import mmap
import os
import re
import resource
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import barfs
from barfs.device import in_flight_of
from barfs.dump.file import Dump, new_dump
from barfs.engine import PAGE_SIZE, Mapping
from barfs.errors import AccessError
from barfs.fuse.fusermount import FuseMount
from barfs.fuse.gate import Gate
from barfs.layout import Layout
from barfs.vfio_user.server import listening
from tests.support import DEADLINE, is_mounted, require_fuse, served, wait_until
from tests.support.forks import fork, in_child

RAM = 0x4000  # a gap of bar0 that keeps what is written
WINDOW = 0x3000
IDENTITY = 0x66726162


@pytest.fixture(params=["demo", "vfio-user"])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[barfs.Device]:
    if request.param == "demo":
        with barfs.open("demo", mapping="contiguous") as found:
            yield found
        return
    with served(tmp_path) as server, barfs.open(server.name, mapping="contiguous") as found:
        yield found


def check(device: barfs.Device) -> None:
    """The device works, in window and gap."""
    bar0 = device["bar0"]
    for offset in (RAM, WINDOW):
        bar0.write32(offset, 0x12345678)
        assert bar0.read32(offset) == 0x12345678
    assert bar0.read32(0) == IDENTITY
    assert not device.gone


def refusals(device: barfs.Device) -> list[tuple[str, str, int, int]]:
    """What each way to use a device raises, and where it says it went."""
    bar0 = device["bar0"]
    attempts: list[Callable[[], object]] = [
        lambda: bar0.read32(RAM),
        lambda: bar0.read32(WINDOW),
        lambda: bar0.read8(RAM + 1),
        lambda: bar0.write64(WINDOW, 1),
        lambda: bar0.read(RAM, 64),
        lambda: bar0.write(WINDOW, b"12345678"),
        lambda: device["config"].read16(0),
        lambda: device["bar4"].read32(4),
    ]
    found = []
    for attempt in attempts:
        try:
            attempt()
        except barfs.ForkedAccess as error:
            found.append((type(error).__name__, error.region, error.offset, error.width))
    return found


REFUSED = [
    ("ForkedAccess", region, offset, width)
    for region, offset, width in [
        ("bar0", RAM, 4),
        ("bar0", WINDOW, 4),
        ("bar0", RAM + 1, 1),
        ("bar0", WINDOW, 8),
        ("bar0", RAM, 64),
        ("bar0", WINDOW, 8),
        ("config", 0, 2),
        ("bar4", 4, 4),
    ]
]


def test_a_child_is_refused_and_the_parent_goes_on(device: barfs.Device) -> None:
    for _round in range(3):
        assert in_child(lambda: refusals(device)) == REFUSED
        check(device)


def test_a_grandchild_is_refused(device: barfs.Device) -> None:
    assert in_child(lambda: in_child(lambda: refusals(device))) == REFUSED
    check(device)


def test_the_errors_are_of_the_device_and_of_the_access() -> None:
    assert issubclass(barfs.ForkedAccess, AccessError)
    assert issubclass(barfs.ForkedAccess, barfs.ForkedDevice)
    assert issubclass(barfs.ForkedDevice, barfs.DeviceError)


def test_what_is_no_access(device: barfs.Device) -> None:
    def ask() -> tuple[list[str], bool, int]:
        texts = []
        for attempt in (device.reset, lambda: device["bar0"].address):
            try:
                attempt()
            except barfs.ForkedDevice as error:
                texts.append(str(error))
        return texts, device.gone, len(device.signals)

    device["bar0"].write32(RAM, 7)
    texts, gone, signals = in_child(ask)
    assert len(texts) == 2
    assert all(
        text.endswith("belongs to the process that opened it, which forked this one")
        for text in texts
    )
    assert (gone, signals) == (True, 0)
    assert device["bar0"].read32(RAM) == 7, "the device was not reset"


@pytest.mark.parametrize("how", ["close", "with", "collected"])
def test_what_a_child_ends_is_not_the_parents(device: barfs.Device, how: str) -> None:
    def end() -> None:
        nonlocal device
        if how == "close":
            assert device.close()
        elif how == "with":
            with device:
                pass
        else:
            frame = sys._getframe()
            while frame is not None:
                frame.f_locals.pop("device", None)
                frame = frame.f_back  # type: ignore[assignment]
        del device
        gc.collect()

    kept = device
    in_child(end)
    check(kept)


def test_a_child_does_not_wait_for_the_parents_threads(device: barfs.Device) -> None:
    """Neither for an access that is under way in one, nor for a lock that it holds."""
    bar0 = device["bar0"]
    bar0.write32(0x2C, 2000)
    found: list[int] = []
    reader = threading.Thread(target=lambda: found.append(bar0.read32(0x2C)))
    reader.start()
    wait_until(lambda: in_flight_of(device).inside == 1, "the access")

    def end() -> float:
        start = time.monotonic()
        assert refusals(device) == REFUSED
        assert device.close()
        return time.monotonic() - start

    assert in_child(end) < 1
    reader.join()
    assert found == [2000]
    check(device)


def test_a_child_opens_devices_of_its_own(device: barfs.Device) -> None:
    def work() -> int:
        with barfs.open("demo") as own:
            check(own)
            return in_child(lambda: len(refusals(own)))

    assert in_child(work) == len(REFUSED)
    check(device)


def test_children_of_busy_threads(device: barfs.Device) -> None:
    """Whatever the threads are in the middle of when the process is forked."""
    bar0 = device["bar0"]
    over = threading.Event()
    wrong: list[object] = []

    def work(number: int) -> None:
        offset = (RAM if number % 2 else WINDOW) + 8 * number
        turn = 0
        while not over.is_set():
            turn += 1
            try:
                bar0.write32(offset, turn)
                if (found := bar0.read32(offset)) != turn:
                    wrong.append((turn, found))
            except barfs.BarfsError as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _round in range(20):

            def child() -> int:
                with barfs.open("demo") as own:
                    check(own)
                device.close()
                return len(refusals(device))

            assert in_child(child) == len(REFUSED)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not wrong
    check(device)


def test_a_child_unmaps_nothing_that_has_come_since() -> None:
    """Where the parent's window is, the child may have something of its own."""
    fd = os.memfd_create("window")
    os.truncate(fd, PAGE_SIZE)
    window = Mapping(fd, 0, PAGE_SIZE)
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]

    def work() -> bytes:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100000  # MAP_FIXED_NOREPLACE
        assert libc.mmap(window.address, PAGE_SIZE, mmap.PROT_WRITE, flags, -1, 0) == window.address
        ctypes.memset(window.address, 0x5A, PAGE_SIZE)
        window.close()
        return ctypes.string_at(window.address, 4)

    assert in_child(work) == b"ZZZZ"
    assert ctypes.string_at(window.address, 4) == bytes(4)
    window.close()
    os.close(fd)


def test_a_fork_that_python_does_not_see(device: barfs.Device) -> None:
    """As in a library's own daemon(3)."""
    libc = ctypes.PyDLL(None)
    # Until the fork no thread asks for the GIL: Python would wait for that thread in the child.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        os.sched_yield()
        child = libc.fork()
    finally:
        sys.setswitchinterval(interval)
    if child == 0:
        right = refusals(device) == REFUSED and device.close()
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    check(device)


def run(script: str, *arguments: str) -> str:
    """The output of a script that fails at the first error, and warns of nothing."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    stderr = re.sub(r".*DeprecationWarning.*fork.*\n.*\n", "", result.stderr)
    assert (result.returncode, stderr) == (0, "")
    return result.stdout


def test_a_child_holds_nothing_of_the_device(tmp_path: Path) -> None:
    """Or the server would not see the parent leave, nor the kernel get its device back."""
    with served(tmp_path) as server:
        script = """
            import os, sys, barfs
            name, trace = sys.argv[1:]
            def held():
                fds = os.listdir("/proc/self/fd")
                files = {os.path.realpath(f"/proc/self/fd/{fd}") for fd in fds}
                text = open("/proc/self/maps").read() + " ".join(files)
                return [word for word in ("barfs-device", trace, "socket:") if word in text]
            device = barfs.open(name, mapping="contiguous", trace=trace)
            print(len(held()))
            there, here = os.pipe(), os.pipe()
            if os.fork() == 0:
                os.write(there[1], str(held()).encode())
                os.close(here[1])
                os._exit(len(os.read(here[0], 1)))
            print(os.read(there[0], 100).decode())
            device.close()
            with barfs.open(name, timeout=5) as again:
                print(hex(again["bar0"].read32(0)))
            os.close(here[0]), os.close(here[1])
            print(os.wait()[1])
            """
        assert run(script, server.name, str(tmp_path / "trace")).split("\n") == [
            "3",
            "[]",
            "0x66726162",
            "0",
            "",
        ]


EXITS = """
    import os, sys, barfs
    with barfs.open(sys.argv[1]) as device:
        if os.fork() == 0:
            {end}
        assert os.waitstatus_to_exitcode(os.wait()[1]) == {status}
        device["bar0"].write32(4, 0x1234)
        print(hex(device["bar0"].read32(4)), device.gone)
    """


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("sys.exit(3)", 3),
        ("raise SystemExit", 0),
        ("os._exit(4)", 4),
        ("os.kill(os.getpid(), 9)", -9),
    ],
)
@pytest.mark.parametrize("name", ["demo", "vfio-user"])
def test_a_child_that_exits(tmp_path: Path, name: str, end: str, status: int) -> None:
    with served(tmp_path) as server:
        source = server.name if name == "vfio-user" else name
        assert run(EXITS.format(end=end, status=status), source) == "0x1234 False\n"


def test_multiprocessing(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        script = """
            import multiprocessing, sys, barfs
            def work(offset):
                try:
                    return device["bar0"].read32(offset)
                except barfs.ForkedAccess as error:
                    return str(error)
            with barfs.open(sys.argv[1]) as device:
                context = multiprocessing.get_context("fork")
                with context.Pool(2) as pool:
                    print(*sorted(set(pool.map(work, [0, 0x1000] * 8))), sep="\\n")
                print(hex(device["bar0"].read32(0)))
            """
        reason = "the device belongs to the process that opened it, which forked this one"
        assert run(script, server.name).splitlines() == [
            f"bar0+0x0 (4 bytes): {reason}",
            f"bar0+0x1000 (4 bytes): {reason}",
            "0x66726162",
        ]


def test_a_daemon_that_opens_its_device_itself(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        script = """
            import os, sys, barfs
            reading, writing = os.pipe()
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    with barfs.open(sys.argv[1]) as device:
                        os.write(writing, b"%#x" % device["bar0"].read32(0))
                os._exit(0)
            os.wait()
            os.close(writing)
            print(os.read(reading, 100).decode())
            """
        assert run(script, server.name) == "0x66726162\n"


def test_a_program_inherits_no_descriptor(device: barfs.Device) -> None:
    listed = ["ls", "-l", "/proc/self/fd"]
    result = subprocess.run(listed, capture_output=True, text=True, check=True, close_fds=False)
    assert "/proc/" in result.stdout
    assert "memfd" not in result.stdout
    assert "socket" not in result.stdout
    check(device)


def test_a_child_with_no_descriptor_to_spare(device: barfs.Device) -> None:
    def fill() -> None:
        while True:
            try:
                full.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                return

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    full: list[int] = []
    reading, writing = os.pipe()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, limits[1]), limits[1]))
    try:
        fill()
        child = fork()
        if child == 0:
            os.write(writing, b"1" if refusals(device) == REFUSED else b"0")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        for fd in full:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert os.read(reading, 1) == b"1"
    os.close(reading)
    os.close(writing)
    check(device)


def test_a_listening_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "device.sock"
    with listening(str(path)) as _listener:
        child = fork()
        if child != 0:
            assert os.waitpid(child, 0)[1] == 0
            assert path.is_socket()
    if child == 0:
        os._exit(0)
    assert not path.exists()


def test_a_gate_is_not_stopped_by_a_child() -> None:
    fuse, other = os.pipe()
    gate = Gate(fuse)
    ended = threading.Event()
    gate.start(ended.set)

    def stop() -> float:
        start = time.monotonic()
        assert not gate.stop(5)
        return time.monotonic() - start

    assert in_child(stop) < 1
    assert not ended.is_set()
    assert gate.stop(5)
    os.close(gate.libfuse_fd)
    gate.close()
    os.close(fuse)
    os.close(other)


def test_a_mount_is_not_ended_by_a_child(tmp_path: Path) -> None:
    require_fuse()
    mount = FuseMount(tmp_path, source="test")
    try:

        def end() -> str:
            mount.close()
            return os.readlink(f"/proc/self/fd/{mount.fd}")

        assert in_child(end) != "/dev/fuse"
        assert os.readlink(f"/proc/self/fd/{mount.fd}") == "/dev/fuse"
        assert is_mounted(tmp_path)
    finally:
        mount.close()
    assert not is_mounted(tmp_path)


def test_a_dump_in_the_making_is_not_ended_by_a_child(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with barfs.open("demo") as device, contextlib.ExitStack() as stack:
        writer = stack.enter_context(new_dump(path))
        for name in ("bar0", "rom"):
            layout = device[name].layout
            if name == "rom":

                def leave(layout: Layout = layout) -> None:
                    writer.add(layout, [(0, bytes(layout.size))], [])
                    stack.close()

                in_child(leave)
                assert not path.exists()
            writer.add(layout, [(0, device[name].read(0, layout.size))], [])
    with Dump(path) as dump:
        assert list(dump.layouts) == ["bar0", "rom"]
        assert dump.head("bar0", 4) == b"barf"
    assert os.listdir(tmp_path) == ["file"]
