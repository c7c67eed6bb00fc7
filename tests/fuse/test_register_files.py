# SPDX-License-Identifier: MIT
"""Registers and fields as files of a mount."""

import errno
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from barfs.attached.mounts import MountInfo
from tests.support import Mounted, Served, barfs, is_mounted, mounted, served

CARD = Path(__file__).parents[1] / "support" / "card.rdl"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with served(tmp_path) as running:
        yield running


@pytest.fixture
def mount(tmp_path: Path, server: Served) -> Iterator[Mounted]:
    with mounted(tmp_path, server.name, options=f"registers={CARD}") as running:
        yield running


def registers(mount: Mounted) -> Path:
    return mount.device() / "registers"


def error_of(call: Callable[..., object], *arguments: object) -> int | None:
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return None


def test_blocks_registers_and_fields_are_files(mount: Mounted) -> None:
    root = registers(mount)
    assert sorted(os.listdir(root)) == ["bar0", "bar4", "config"]
    assert sorted(os.listdir(root / "bar0" / "dma")) == ["chan0", "chan1", "chan2", "chan3"]
    names = "ctrl ctrl.count ctrl.enable ctrl.error ctrl.mode status status.amount status.done"
    assert sorted(os.listdir(root / "bar0/dma/chan2")) == [
        *names.split(),
        "status.stop",
        "wide",
        "wide.high",
        "wide.low",
    ]
    modes = {"identity": 0o400, "command": 0o200, "fifo": 0o600, "dma": 0o555}
    for name, mode in modes.items():
        assert stat.S_IMODE((root / "bar0" / name).stat().st_mode) == mode
    status = (root / "bar0/fifo").stat()
    assert (status.st_size, status.st_uid) == (4096, os.getuid())
    assert not (root / "bar0/dma/chan[2]").exists()
    assert not (root / "bar0/dma/chan4").exists()
    assert not (root / "bar0/fifo/value").exists()
    assert (root / "config/VENDOR_ID").read_text() == "0x1234\n"


def test_a_name_costs_no_access(mount: Mounted, server: Served) -> None:
    assert os.listdir(registers(mount) / "config")
    server.accesses()
    subprocess.run(["ls", "-lR", registers(mount)], check=True, stdout=subprocess.DEVNULL)
    assert server.accesses() == []


def test_a_read_is_one_access_that_is_kept(mount: Mounted, server: Served) -> None:
    path = registers(mount) / "bar0/dma/chan0/ctrl"
    server.accesses()
    fd = os.open(path, os.O_RDONLY)
    try:
        assert os.pread(fd, 4, 0) == b"0x00"
        assert os.pread(fd, 100, 4) == b"000000\n"
        assert len(server.accesses()) == 1
        path.write_text("0x13")
        assert len(server.accesses()) == 1
        assert os.pread(fd, 100, 4) == b"000000\n"
        assert os.pread(fd, 100, 0) == b"0x00000013\n"
    finally:
        os.close(fd)


@pytest.mark.parametrize("text", ["0x13", "19\n", "0b10011", " 0x13 \n"])
def test_a_write_is_one_value(mount: Mounted, server: Served, text: str) -> None:
    path = registers(mount) / "bar0/dma/chan1/ctrl"
    server.accesses()
    path.write_text(text)
    assert len(server.accesses()) == 1
    assert path.read_text() == "0x00000013\n"
    with path.open("a") as file:
        file.write("0x14")
    assert path.read_text() == "0x00000014\n"


def test_a_field_is_written_and_its_neighbours_are_not(mount: Mounted, server: Served) -> None:
    channel = registers(mount) / "bar0/dma/chan2"
    (channel / "ctrl").write_text("0x00070105")
    server.accesses()
    (channel / "ctrl.mode").write_text("single\n")
    assert len(server.accesses()) == 2
    assert (channel / "ctrl").read_text() == "0x00070003\n"
    assert (channel / "ctrl.mode").read_text() == "single\n"
    assert (channel / "ctrl.count").read_text() == "7\n"


@pytest.mark.parametrize(
    ("name", "text", "number"),
    [
        ("ctrl.mode", "fast", errno.EINVAL),
        ("ctrl.mode", "", errno.EINVAL),
        ("ctrl.mode", "1 2", errno.EINVAL),
        ("ctrl.mode", "\0", errno.EINVAL),
        ("ctrl.mode", "ünd", errno.EINVAL),
        ("ctrl", "-1", errno.EINVAL),
        ("ctrl", " " * 5000 + "1", errno.EINVAL),
        ("ctrl.mode", "4", errno.ERANGE),
        ("ctrl", "0x100000000", errno.ERANGE),
        ("status.amount", "1", errno.EPERM),
    ],
)
def test_what_is_no_value_is_not_written(
    mount: Mounted, server: Served, name: str, text: str, number: int
) -> None:
    path = registers(mount) / "bar0/dma/chan3" / name
    server.accesses()
    assert error_of(path.write_text, text or "\n") == number
    assert server.accesses() == []


def test_a_refused_field_write_names_the_neighbour_in_the_log(mount: Mounted) -> None:
    for _ in range(3):
        path = registers(mount) / "bar0/dma/chan3/status.amount"
        assert error_of(path.write_text, "1") == errno.EPERM
    found = [line for line in mount.log.read_text().splitlines() if "status.amount" in line]
    assert len(found) == 1
    assert "stop" in found[0]
    assert "write the whole register" in found[0]


def lost_writes(register: Path) -> list[str]:
    """What two writers lose: of the bits from 16 on, called `count`, and of bit 0, `enable`."""
    lost: list[str] = []

    def write(name: str, last: int) -> None:
        for number in range(200):
            text = f"{number % last}"
            register.with_name(f"{register.name}.{name}").write_text(text)
            value = int(register.read_text(), 16)
            found = value >> 16 if name == "count" else value & 1
            if found != number % last:
                lost.append(f"{name} {number}")

    threads = [
        threading.Thread(target=write, args=args) for args in (("count", 500), ("enable", 2))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return lost


def test_two_writers_of_a_register_lose_nothing(mount: Mounted) -> None:
    assert lost_writes(registers(mount) / "bar0/dma/chan0/ctrl") == []


def test_registers_in_a_window(tmp_path: Path, server: Served) -> None:
    """Their accesses are loads and stores: the server is asked nothing."""
    path = tmp_path / "window.rdl"
    path.write_text("addrmap window { reg { field {} enable[0:0]; field {} count[31:16]; } a; };")
    with mounted(tmp_path, server.name, options=f"registers=bar0+0x1000={path}") as mount:
        register = registers(mount) / "bar0" / "a"
        assert register.is_file()
        server.accesses()
        register.write_text("0x00070000")
        register.with_name("a.enable").write_text("1")
        assert register.read_text() == "0x00070001\n"
        assert error_of(register.write_text, "0x100000000") == errno.ERANGE
        with (mount.device() / "bar0").open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), 4, 0x1000) == (0x00070001).to_bytes(4, "little")
        assert lost_writes(register) == []
        assert server.accesses() == []
    with mounted(tmp_path, server.name, options=f"ro,registers=bar0+0x1000={path}") as mount:
        assert error_of((registers(mount) / "bar0/a").write_text, "1") == errno.EROFS


def test_a_slow_register_does_not_hold_up_the_mount(tmp_path: Path) -> None:
    with mounted(tmp_path, "demo") as mount:
        slow = mount.device() / "registers/bar0/DELAY"
        slow.write_text("3000")
        done = threading.Event()

        def read() -> None:
            slow.read_text()
            done.set()

        thread = threading.Thread(target=read)
        thread.start()
        assert (mount.device() / "vendor").read_text() == "0x1234\n"
        assert os.listdir(mount.device() / "registers/bar0")
        assert not done.is_set()
        thread.join()
        slow.write_text("0")


def test_a_device_that_does_not_answer_is_a_timeout(tmp_path: Path) -> None:
    with mounted(tmp_path, "demo", options="timeout=0.3") as mount:
        slow = registers(mount) / "bar0/DELAY"
        slow.write_text("60000")
        assert error_of(slow.read_text) == errno.ETIMEDOUT


def test_guard_keeps_reads_with_side_effects_away(tmp_path: Path, server: Served) -> None:
    options = f"guard,registers=bar0={CARD}"
    with mounted(tmp_path, server.name, options=options) as mount:
        bar0 = registers(mount) / "bar0"
        for name in ("fifo", "fifo.value"):
            assert stat.S_IMODE((bar0 / name).stat().st_mode) == 0o200
            assert error_of((bar0 / name).read_text) == errno.EACCES
        server.accesses()
        subprocess.run(
            ["grep", "-rq", "no such text", bar0], check=False, stderr=subprocess.DEVNULL
        )
        assert not any("0x18" in line for line in server.accesses())
        (bar0 / "fifo").write_text("7")
        with (mount.device() / "bar0").open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), 4, 0x18) == (7).to_bytes(4, "little")


def test_read_only_and_policy_hold(tmp_path: Path, server: Served) -> None:
    with mounted(tmp_path, server.name, options=f"ro,registers={CARD}") as mount:
        ctrl = registers(mount) / "bar0/dma/chan0/ctrl"
        assert stat.S_IMODE(ctrl.stat().st_mode) == 0o400
        assert error_of(ctrl.write_text, "1") in (errno.EACCES, errno.EROFS)
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nregion = "bar0"\nrange = "0x4100+4"\naccess = "none"\n')
    options = f"policy={rules},registers={CARD}"
    with mounted(tmp_path, server.name, options=options) as mount:
        channel = registers(mount) / "bar0/dma/chan0"
        assert error_of((channel / "ctrl").read_text) == errno.EPERM
        assert error_of((channel / "ctrl.mode").write_text, "1") == errno.EPERM
        assert (channel / "status").read_text() == "0x00000000\n"


def test_registers_off(tmp_path: Path) -> None:
    with mounted(tmp_path, "demo", options="registers=off") as mount:
        assert not registers(mount).exists()


def test_the_mount_says_what_describes_its_registers(mount: Mounted) -> None:
    info = MountInfo.read(mount.path)
    assert info is not None
    assert info.registers == {mount.device().name: [f"bar0+0x0={CARD}"]}


def test_an_error_of_a_description_mounts_nothing(tmp_path: Path) -> None:
    bad = tmp_path / "bad.rdl"
    bad.write_text("addrmap bad {\n    reg { field {} a; } r\n};\n")
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    result = barfs("mount", "-o", f"registers=bar0={bad}", "demo", mountpoint)
    assert result.returncode == 2
    assert f"{bad}:" in result.stderr
    assert "Traceback" not in result.stderr
    assert not is_mounted(mountpoint)
    result = barfs("mount", "-o", f"registers=bar1={CARD}", "demo", mountpoint)
    assert result.returncode == 2
    assert "has no bar1" in result.stderr
