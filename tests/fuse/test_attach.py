# SPDX-License-Identifier: MIT
"""`barfs.attach`: what is particular to a device that a mount holds (the rest: test_python_api)."""

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import barfs
from barfs.attached.wire import Reply, Request, Window
from barfs.registers.access import BoundRegister
from tests.support import Mounted, Served, ended, mounted, served, wait_until
from tests.support.forks import in_child

RAM = 0x4000
WINDOW = 0x3000
DELAY = 0x2C


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path) as found:
        yield found


@pytest.fixture
def mount(tmp_path: Path, device: Served) -> Iterator[Mounted]:
    with mounted(tmp_path, device.name, options="map") as found:
        yield found


def test_a_window_needs_no_request_and_a_gap_is_one_access(mount: Mounted, device: Served) -> None:
    with barfs.attach(mount.device()) as attached:
        bar0 = attached["bar0"]
        device.accesses()
        bar0.write32(WINDOW, 0x11223344)
        assert [bar0.read8(WINDOW), bar0.read16(WINDOW + 2)] == [0x44, 0x1122]
        assert device.accesses() == []
        bar0.write64(RAM, 0x8877665544332211)
        assert bar0.read16(RAM + 2) == 0x4433
        assert [line.split()[:4] for line in device.accesses()] == [
            ["w", "bar0", f"{RAM:#x}", "8"],
            ["r", "bar0", f"{RAM + 2:#x}", "2"],
        ]


def test_longer_requests_are_cut_as_the_mount_cuts_them(mount: Mounted, device: Served) -> None:
    with barfs.attach(mount.device()) as attached, (mount.device() / "bar0").open("rb", 0) as file:
        for offset, count in ((RAM + 1, 13), (WINDOW - 6, 11), (WINDOW + 0xFF9, 20), (0x8, 0x40)):
            device.accesses()
            here = attached["bar0"].read(offset, count)
            ours = [line.split()[:4] for line in device.accesses()]
            there = os.pread(file.fileno(), count, offset)
            theirs = [line.split()[:4] for line in device.accesses()]
            assert ours == theirs
            assert len(ours) > 1
            if offset != 8:  # a counter
                assert here == there


def test_stores_are_seen_on_both_sides(mount: Mounted) -> None:
    file = os.open(mount.device() / "bar0", os.O_RDWR)
    with barfs.attach(mount.device()) as one, barfs.attach(mount.device()) as two:
        one["bar0"].write32(WINDOW + 8, 0xCAFE)
        assert os.pread(file, 4, WINDOW + 8) == bytes.fromhex("feca0000")
        assert two["bar0"].read32(WINDOW + 8) == 0xCAFE
        os.pwrite(file, b"mnt!", WINDOW + 8)
        assert one["bar0"].read(WINDOW + 8, 4) == b"mnt!"
    os.close(file)


WORK = """
import sys, barfs
number = int(sys.argv[2])
with barfs.attach(sys.argv[1]) as device:
    bar0 = device["bar0"]
    for turn in range(3000):
        for place in (0x3000, 0x4000) if turn % 50 == 0 else (0x3000,):
            value = number << 24 | turn
            bar0.write32(place + 8 * number, value)
            assert bar0.read32(place + 8 * number) == value, (place, number, turn)
"""


def test_eight_processes_and_the_mount(mount: Mounted) -> None:
    """No store on registers of one's own is lost, while the mount reads and writes others."""
    processes = [
        subprocess.Popen([sys.executable, "-c", WORK, str(mount.device()), str(number)])
        for number in range(8)
    ]
    file = os.open(mount.device() / "bar0", os.O_RDWR)
    turn = 0
    while any(process.poll() is None for process in processes):
        turn += 1
        os.pwrite(file, turn.to_bytes(4, "little"), WINDOW + 0x100)
        assert os.pread(file, 0x1000, WINDOW)[0x100:0x104] == turn.to_bytes(4, "little")
    os.close(file)
    assert [process.returncode for process in processes] == [0] * 8
    with barfs.attach(mount.device()) as attached:
        last = [attached["bar0"].read32(WINDOW + 8 * number) for number in range(8)]
    assert last == [number << 24 | 2999 for number in range(8)]


def test_paths(mount: Mounted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(mount.path))
    link = tmp_path / "link"
    link.symlink_to(mount.device())
    monkeypatch.chdir(mount.path / "bus")
    names: list[str | Path] = [
        "~/bus/ffff:00:00.0",
        link,
        "ffff:00:00.0",
        "../devices/ffff:00:00.0",
    ]
    names.append(mount.path / "flat/ffff-00-00.0")
    for path in names:
        with barfs.attach(path) as attached:
            assert str(attached.bdf) == "ffff:00:00.0"
            assert attached.source.startswith("vfio-user:")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "like .../bus/BDF: No such file or directory"),
        ("mnt", "must be a device's directory in a mount, like .../bus/BDF"),
        ("mnt/bus", "must be a device's directory in a mount"),
        ("mnt/bus/ffff:00:00.0/bar0", "must be a device's directory in a mount"),
        ("mnt/bus/ffff:00:00.0/registers", "must be a device's directory in a mount"),
        ("mnt/bus/0000:00:00.0", "BDF: No such file or directory"),
        (".", "must be a device's directory in a mount"),
    ],
)
def test_paths_of_no_device(mount: Mounted, tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(barfs.UsageError, match=message) as caught:
        barfs.attach(tmp_path / path)
    assert "\n" not in str(caught.value)


def test_a_mount_that_does_not_answer(mount: Mounted) -> None:
    directory = mount.device()
    os.stat(directory)
    mount.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(barfs.DeviceError, match="does not answer"):
            barfs.attach(directory)
    finally:
        mount.process.send_signal(signal.SIGCONT)
    with barfs.attach(directory) as attached:
        assert attached["bar0"].read32(0) == 0x66726162


def test_the_layout_and_the_texts_are_those_of_the_mount(mount: Mounted) -> None:
    with barfs.attach(mount.device()) as attached:
        for name in attached:
            text = (mount.device() / f"{name}.layout").read_text()
            assert attached[name].layout.to_text() == text
        for name, text in attached.attributes.items():
            assert (mount.device() / name).read_text() == text
        assert attached["config"].read16(0) == int(attached.attributes["vendor"], 16)
        assert attached["config"].read(0, 4096) == (mount.device() / "config").read_bytes()


def test_the_address_of_a_contiguous_mapping(mount: Mounted) -> None:
    with barfs.attach(mount.device(), mapping="contiguous") as attached:
        bar0 = attached["bar0"]
        place = ctypes.c_uint32.from_address(bar0.address + WINDOW)
        bar0.write32(WINDOW, 0x12345678)
        assert place.value == 0x12345678
        assert bar0.read32(0) == 0x66726162
    with (
        barfs.attach(mount.device(), mapping="off") as attached,
        pytest.raises(barfs.UsageError, match="no address"),
    ):
        _ = attached["bar0"].address
    with pytest.raises(barfs.UsageError, match="mapping must be"):
        barfs.attach(mount.device(), mapping="all")  # type: ignore[arg-type]


def test_options_of_the_mount_are_in_force(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(
        '[[rule]]\nregion = "bar0"\nrange = "0x3000+0x10"\naccess = "none"\n'
        '[[rule]]\nregion = "bar0"\nrange = "0x4000+0x10"\naccess = "ro"\n'
    )
    trace = tmp_path / "trace"
    options = f"guard,width=8,timeout=0.3,policy={policy},trace={trace}"
    with (
        mounted(tmp_path, "demo", options=options) as mount,
        barfs.attach(mount.device()) as attached,
    ):
        bar0 = attached["bar0"]
        assert bar0.layout.width == 8
        for attempt in (
            lambda: bar0.read32(0x3000),
            lambda: bar0.write32(0x3004, 1),
            lambda: bar0.write32(0x4000, 1),
        ):
            with pytest.raises(barfs.PolicyDenied):
                attempt()
        assert bar0.read(0x4000, 4) == b"A ga"
        shown = (mount.device() / "bar0.layout").read_text()
        assert [s for s in bar0.layout.segments if s.reason == "policy"] == [
            s for s in barfs.Layout.from_text(shown).segments if s.reason == "policy"
        ]
        with pytest.raises(barfs.InvalidAccess):
            bar0.read(RAM + 0x100, 16)
        bar0.write32(DELAY, 2000)
        with pytest.raises(barfs.AccessTimeout):
            bar0.read32(DELAY)
        assert " bar0 r 0x00004000 4 " in trace.read_text()


def test_a_read_only_mount(tmp_path: Path) -> None:
    with (
        mounted(tmp_path, "demo", options="ro") as mount,
        barfs.attach(mount.device()) as attached,
    ):
        assert attached["bar0"].read32(0) == 0x66726162
        assert not attached["bar0"].writable
        with pytest.raises(barfs.AccessDenied):
            attached["bar0"].write32(RAM, 1)


def test_registers_by_name(tmp_path: Path) -> None:
    card = Path(__file__).parents[1] / "support/card.rdl"
    shutil.copy(card, tmp_path / "card.rdl")
    with mounted(tmp_path, "demo", options=f"map,registers=bar2={tmp_path}/card.rdl") as mount:
        with barfs.attach(mount.device()) as attached:
            names = list(attached.registers)
            assert "bar0.SCRATCH" in names
            assert any(name.startswith("bar2.") for name in names)
            scratch = attached.registers["bar0.SCRATCH"]
            assert isinstance(scratch, BoundRegister)
            scratch.write(0x55)
            assert attached["bar0"].read32(4) == 0x55
        with barfs.attach(mount.device(), registers="off") as attached:
            assert not attached.registers
        with pytest.raises(barfs.UsageError, match="has no bar1"):
            barfs.attach(mount.device(), registers={"bar1": card})


def test_no_registers_where_the_mount_has_none(tmp_path: Path) -> None:
    with (
        mounted(tmp_path, "demo", options="registers=off") as mount,
        barfs.attach(mount.device()) as attached,
    ):
        assert not attached.registers


def test_nothing_stays_open(mount: Mounted) -> None:
    def held() -> tuple[int, int, str]:
        fds = len(os.listdir("/proc/self/fd"))
        maps = [line for line in Path("/proc/self/maps").read_text().split("\n") if "memfd" in line]
        return fds, len(maps), ""

    before, threads = held(), threading.active_count()
    for _ in range(3):
        with barfs.attach(mount.device()) as attached:
            assert attached["bar0"].read32(WINDOW)
            assert held() > before
    wait_until(lambda: threading.active_count() <= threads, "the thread to end")
    assert held() == before


def test_a_child_that_was_forked(mount: Mounted) -> None:
    with barfs.attach(mount.device()) as attached:

        def use() -> list[str]:
            found = []
            for offset in (0, WINDOW):
                with contextlib.suppress(barfs.ForkedAccess):
                    attached["bar0"].read32(offset)
                    found.append("read")
            attached.close()
            for fd in os.listdir("/proc/self/fd"):
                with contextlib.suppress(FileNotFoundError):  # that of the directory
                    found.append(os.readlink(f"/proc/self/fd/{fd}"))
            return [what for what in found if what == "read" or str(mount.path) in what]

        assert in_child(use) == []
        assert attached["bar0"].read32(WINDOW)
        assert not attached.gone


def test_a_mount_that_ends(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        mount = stack.enter_context(mounted(tmp_path, "demo", options="map"))
        attached = barfs.attach(mount.device())
        bar0 = attached["bar0"]
        mount.process.send_signal(signal.SIGTERM)
        assert ended(mount.process) == 0
        wait_until(lambda: attached.gone, "the news")
        for offset in (0, WINDOW):
            with pytest.raises(barfs.DeviceGone):
                bar0.read32(offset)
        assert attached.close()


def test_a_mount_that_is_killed(tmp_path: Path) -> None:
    with (
        served(tmp_path) as device,
        mounted(tmp_path, device.name, options="map") as mount,
        barfs.attach(mount.device()) as attached,
    ):
        mount.process.kill()
        mount.process.wait()
        place = Path(mount.path)
        wait_until(lambda: attached.gone, "the news")
        for offset in (0, WINDOW):
            with pytest.raises(barfs.DeviceGone):
                attached["bar0"].read32(offset)
        wait_until(lambda: not os.path.ismount(place), "the helper to unmount")


@pytest.mark.parametrize("options", ["map", ""])
def test_a_server_that_ends(tmp_path: Path, options: str) -> None:
    with (
        served(tmp_path) as device,
        mounted(tmp_path, device.name, options=options) as mount,
        barfs.attach(mount.device()) as attached,
    ):
        assert attached["bar0"].read32(WINDOW)
        device.process.terminate()
        wait_until(lambda: "is lost" in mount.log.read_text(), "the mount")
        with pytest.raises(barfs.DeviceGone):
            attached["bar0"].read32(0)
        wait_until(lambda: attached.gone, "the news")
        with pytest.raises(barfs.DeviceGone):
            attached["bar0"].read32(WINDOW)


def test_memory_that_is_not_there_is_an_error_and_no_end(tmp_path: Path) -> None:
    """As where memory decode goes off: SIGBUS in this process becomes BusFault."""
    with pretending(tmp_path) as (server, directory):
        server.write(b"1234")
        with barfs.attach(directory) as attached:
            bar0 = attached["bar0"]
            assert bar0.read32(WINDOW) == int.from_bytes(b"1234", "little")
            os.ftruncate(server.memory, 0)
            with pytest.raises(barfs.BusFault):
                bar0.read32(WINDOW)
            os.ftruncate(server.memory, WINDOW + 0x1000)
            assert bar0.read32(WINDOW) == 0


class Pretender:
    """A map server that answers with whatever `answer` says, beside a real mount."""

    def __init__(self, path: Path) -> None:
        self.memory = os.memfd_create("memory")
        os.ftruncate(self.memory, WINDOW + 0x1000)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path))
        self.listener.listen()
        self.answer: Callable[[Request], tuple[bytes, list[int]]] = self.honest
        threading.Thread(target=self.serve, daemon=True).start()

    def honest(self, _request: Request) -> tuple[bytes, list[int]]:
        window = Window(WINDOW, 0x1000, WINDOW, 0, True, True)
        return Reply(0, 0x10000, [window], 1).encode(), [self.memory]

    def write(self, data: bytes) -> None:
        os.pwrite(self.memory, data, WINDOW)

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                with client:
                    data, fds = self.answer(Request.decode(client.recv(100)))
                    if data:
                        socket.send_fds(client, [data], fds)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        os.close(self.memory)


@contextlib.contextmanager
def pretending(folder: Path) -> Iterator[tuple[Pretender, Path]]:
    """A mount whose socket is that of a pretender."""
    with mounted(folder, "demo", options="map") as mount:
        path = Path(os.readlink(mount.path / ".barfs-map"))
        path.unlink()
        server = Pretender(path)
        try:
            yield server, mount.device()
        finally:
            server.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"rubbish",
        Reply(errno.EMFILE).encode(),
        Reply(0, 0x10000, [Window(WINDOW, 0x1000, WINDOW, 0, True, True)], 2).encode(),
        Reply(0, 0x10000, [Window(WINDOW, 0x1000, WINDOW, 1, True, True)], 1).encode(),
        Reply(0, 0x10000, [Window(WINDOW, 0x2000, WINDOW, 0, True, True)], 1).encode(),
        Reply(0, 0x10000, [Window(WINDOW, 0x1000, 0, 0, True, True)], 1).encode(),
        Reply(0, 0x20000, [Window(WINDOW, 0x1000, WINDOW, 0, True, True)], 1).encode(),
        Reply(0, 0x10000, [Window(WINDOW + 8, 0x1000, WINDOW + 8, 0, True, True)], 1).encode(),
        Reply(0, 0x10000, [Window(WINDOW, 0x1000, WINDOW, 0, True, True)], 1).encode() + b"\0",
    ],
)
def test_a_server_that_answers_nonsense(tmp_path: Path, answer: bytes) -> None:
    """The device is attached, and accesses of windows are requests."""
    with pretending(tmp_path) as (server, directory):
        server.answer = lambda request: (answer, [server.memory] if answer else [])
        with barfs.attach(directory) as attached:
            assert not attached["bar0"].layout.windows
            attached["bar0"].write32(WINDOW, 0xCAFE)
            assert attached["bar0"].read32(WINDOW) == 0xCAFE
            assert (directory / "bar0").read_bytes()[WINDOW : WINDOW + 2] == b"\xfe\xca"


def test_no_descriptor_is_free(mount: Mounted) -> None:
    code = """
import os, resource, sys, barfs
for limit in range(3, 80):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, 256))
    try:
        with barfs.attach(sys.argv[1]) as device:
            device["bar0"].read32(0x3000)
    except barfs.BarfsError as error:
        assert "\\n" not in str(error)
    except OSError as error:  # not even a module can be imported
        assert error.errno == 24
    except (ImportError, RuntimeError):
        pass
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
print(len(os.listdir("/proc/self/fd")))
"""
    code = "import barfs.attached.device, barfs.attached.departure, barfs.device\n" + code
    result = subprocess.run(
        [sys.executable, "-c", code, str(mount.device())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) <= 4 + 1, "nothing leaks"
