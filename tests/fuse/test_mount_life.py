# SPDX-License-Identifier: MIT
"""A mount from its making to its end, whatever ends it."""

import contextlib
import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from barfs.attached.mounts import MountInfo
from barfs.cli import main
from barfs.fuse.fusermount import GRACE, unmount
from tests.support import (
    BARFS,
    DEADLINE,
    barfs,
    ended,
    is_mounted,
    mounted,
    require,
    require_fuse,
    served,
    shown_mount,
    wait_until,
)

DELAY = 0x2C
"""The demo device's register whose read takes as many milliseconds as were written to it."""


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.contextmanager
def daemon(*arguments: str) -> Iterator[tuple[Path, int]]:
    """A mount in the background, and its process; unmounted afterwards."""
    require_fuse()
    path = Path(arguments[-1])
    path.mkdir(exist_ok=True)
    result = barfs(*arguments)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    info = MountInfo.read(path)
    assert info is not None, "ready, and does not answer"
    try:
        yield path, info.pid
    finally:
        if is_mounted(path):
            result = barfs("umount", path)
            assert (result.returncode, result.stderr) == (0, "")
            assert not running(info.pid), "umount waits for the process"
        assert not is_mounted(path)


class Reader(threading.Thread):
    """Reads 4 bytes of a region; `error` is its errno, `seconds` how long it took."""

    def __init__(self, region: Path, offset: int) -> None:
        super().__init__()
        self._region, self._offset = region, offset
        self.error: int | None = None
        self.seconds = 0.0
        self.opened = threading.Event()
        self.start()
        assert self.opened.wait(10)

    def run(self) -> None:
        fd = os.open(self._region, os.O_RDONLY)
        self.opened.set()
        start = time.monotonic()
        try:
            os.pread(fd, 4, self._offset)
        except OSError as error:
            self.error = error.errno
        finally:
            self.seconds = time.monotonic() - start
            os.close(fd)


def read(region: Path, offset: int = 0, count: int = 4) -> bytes:
    with region.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), count, offset)


def write(region: Path, offset: int, value: int) -> None:
    with region.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), value.to_bytes(4, "little"), offset)


def read_slowly(region: Path, milliseconds: int) -> Reader:
    """A read that sleeps in the kernel, until the device answers in its own time."""
    write(region, DELAY, milliseconds)
    reader = Reader(region, DELAY)
    place = Path(f"/proc/self/task/{reader.native_id}/wchan")
    wait_until(lambda: place.read_text() == "request_wait_answer", "the read")
    return reader


def test_a_daemon_answers_when_the_command_returns(tmp_path: Path) -> None:
    with daemon("mount", "demo", str(tmp_path / "mnt")) as (path, pid):
        assert read(path / "bus/ffff:00:00.0/bar0") == b"barf"
        for fd in (0, 1, 2):
            assert os.readlink(f"/proc/{pid}/fd/{fd}") == "/dev/null"
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert os.getsid(pid) == pid


def test_a_daemon_keeps_no_descriptor_of_its_caller(tmp_path: Path) -> None:
    """Or this would not return: the output ends when the last holder of the pipe lets go."""
    reading, writing = os.pipe()
    path = tmp_path / "mnt"
    path.mkdir()
    with open(reading, "rb") as pipe:
        subprocess.run([*BARFS, "mount", "demo", path], pass_fds=[writing], check=True)
        os.close(writing)
        assert pipe.read() == b""
    assert barfs("umount", path).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_an_idle_mount(tmp_path: Path, number: signal.Signals) -> None:
    with mounted(tmp_path, "demo") as mount:
        start = time.monotonic()
        mount.process.send_signal(number)
        assert ended(mount.process) == 0
        assert time.monotonic() - start < GRACE / 2


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with mounted(tmp_path, "demo", options="timeout=60") as mount:
        reader = read_slowly(mount.device() / "bar0", 60_000)
        start = time.monotonic()
        mount.process.terminate()
        wait_until(lambda: not is_mounted(mount.path), "the unmount")
        mount.process.terminate()
        assert ended(mount.process) == 0
        assert time.monotonic() - start < 2
        reader.join(2)
        assert not reader.is_alive()


def test_a_signal_lets_a_request_finish(tmp_path: Path) -> None:
    with mounted(tmp_path, "demo") as mount:
        reader = read_slowly(mount.device() / "bar0", 700)
        mount.process.terminate()
        reader.join(5)
        assert reader.error is None
        assert ended(mount.process) == 0


def test_a_mount_where_a_dead_one_still_is(tmp_path: Path) -> None:
    """Its helper died as well, and the kernel still knows the attributes of its root."""
    path = tmp_path / "mnt"
    with contextlib.ExitStack() as stack:
        _, pid = stack.enter_context(daemon("mount", "demo", str(path)))
        (helper,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.stat(path)
        os.kill(int(helper), signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not running(pid), "the kill")
        assert is_mounted(path)
        stack.enter_context(daemon("mount", "demo", str(path)))
        assert read(path / "bus/ffff:00:00.0/bar0") == b"barf"


def test_a_server_can_be_mounted_again(tmp_path: Path) -> None:
    with served(tmp_path) as device:
        with mounted(tmp_path, device.name) as mount:
            write(mount.device() / "bar0", 4, 0x1234)
        with mounted(tmp_path, device.name) as mount:
            assert read(mount.device() / "bar0", 4) == b"\x34\x12\0\0"


def test_two_mounts_of_two_devices(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with mounted(tmp_path, "demo") as one, mounted(tmp_path / "other", "demo") as other:
        write(one.device() / "bar0", 4, 1)
        write(other.device() / "bar0", 4, 2)
        assert read(one.device() / "bar0", 4)[0] == 1
        ended_by_umount = barfs("umount", one.path)
        assert ended_by_umount.returncode == 0
        assert read(other.device() / "bar0", 4)[0] == 2


def test_several_devices_in_one_mount(tmp_path: Path) -> None:
    with (
        served(tmp_path, name="one") as one,
        served(tmp_path, name="two") as two,
        mounted(tmp_path, "demo", f"{one.name},bdf=ffff:00:00.0", two.name) as mount,
    ):
        names = ["ffff:00:00.0", "ffff:00:01.0", "ffff:00:02.0"]
        assert sorted(os.listdir(mount.path / "bus")) == names
        for name in names:
            assert read(mount.device(name) / "bar0") == b"barf"
        one.accesses()
        two.accesses()
        read(mount.device("ffff:00:00.0") / "bar0")
        assert [len(server.accesses()) for server in (one, two)] == [1, 0]
        info = MountInfo.read(mount.path)
        assert info is not None
        assert info.devices == {
            "ffff:00:00.0": one.name,
            "ffff:00:01.0": "demo",
            "ffff:00:02.0": two.name,
        }
        layout = barfs("layout", one.name, "bar0")
        assert layout.stdout.startswith("# barfs layout v1: bar0 of ffff:00:00.0\n")
        assert layout.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_peer_that_dies(tmp_path: Path, number: signal.Signals) -> None:
    with (
        served(tmp_path) as device,
        mounted(tmp_path, device.name, "demo") as mount,
    ):
        lost, other = mount.device("ffff:00:00.0"), mount.device("ffff:00:01.0")
        fd = os.open(lost / "bar0", os.O_RDWR)
        try:
            device.process.send_signal(number)
            ended(device.process)
            device.socket.unlink(missing_ok=True)
            for attempt in (lambda: os.pread(fd, 4, 0), lambda: os.pwrite(fd, b"1234", 4)):
                with pytest.raises(OSError, match="No such device") as caught:
                    attempt()
                assert caught.value.errno == 19
            for region in ("bar0", "bar2", "config"):
                with pytest.raises(OSError, match="No such device or address") as caught:
                    os.open(lost / region, os.O_RDONLY)
                assert caught.value.errno == 6
            with pytest.raises(OSError, match="No such device"):
                os.pread(fd, 4, 0x1000)
        finally:
            os.close(fd)
        assert read(other / "bar0") == b"barf"
        assert (lost / "vendor").read_text() == "0x1234\n"


def test_ro(tmp_path: Path) -> None:
    with mounted(tmp_path, "demo", options="ro") as mount:
        for file in mount.device().iterdir():
            assert stat.S_IMODE(file.stat().st_mode) & 0o222 == 0
            if file.is_dir():
                continue
            with pytest.raises(OSError, match="Read-only") as caught:
                os.open(file, os.O_WRONLY)
            assert caught.value.errno == 30


def test_owner_and_permissions(tmp_path: Path) -> None:
    options = "allow_other,uid=65534,gid=4,umask=027"
    with mounted(tmp_path, "demo", options=options) as mount:
        for path in (mount.path, mount.device(), *mount.device().iterdir()):
            status = path.lstat()
            assert (status.st_uid, status.st_gid) == (65534, 4)
        assert stat.S_IMODE((mount.device() / "bar0").stat().st_mode) == 0o640
        assert stat.S_IMODE((mount.device() / "rom").stat().st_mode) == 0o440
        assert stat.S_IMODE((mount.device() / "vendor").stat().st_mode) == 0o440
        assert stat.S_IMODE(mount.device().stat().st_mode) == 0o550
        assert "allow_other" in shown_mount(mount.path)[1]


def test_an_ordinary_mount(tmp_path: Path) -> None:
    with mounted(tmp_path, "demo") as mount:
        info = MountInfo.read(mount.path)
        assert info == MountInfo(mount.process.pid, {"ffff:00:00.0": "demo"})
        assert ".barfs" not in os.listdir(mount.path)
        # A region that the device does not let be written, root or not.
        rom = mount.device() / "rom"
        assert stat.S_IMODE(rom.stat().st_mode) == 0o400
        for flags in (os.O_WRONLY, os.O_RDWR):
            with pytest.raises(PermissionError) as caught:
                os.open(rom, flags)
            assert caught.value.errno == 13


def test_umount_of_a_mount_in_use(tmp_path: Path) -> None:
    with mounted(tmp_path, "demo") as mount:
        with (mount.device() / "bar0").open("rb", buffering=0) as file:
            result = barfs("umount", mount.path)
            assert result.returncode == 1
            assert "busy" in result.stderr
            assert f"fuser -vm {mount.path}" in result.stderr
            assert result.stderr.count("\n") == 1
            assert file.read(4) == b"barf"
        assert barfs("umount", mount.path).returncode == 0
        assert mount.process.poll() == 0, "umount returns when the devices are given back"
        assert barfs("umount", mount.path).returncode == 1


def test_the_demo_in_a_directory_of_its_own() -> None:
    require_fuse()
    command = [*BARFS, "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        device = Path(process.stdout.readline().split(" - ")[0])
        try:
            assert read(device / "bar0") == b"barf", "said where, and does not answer"
        finally:
            process.send_signal(signal.SIGINT)
        assert ended(process) == 0
    assert not device.parents[1].exists()


def test_a_demo_with_too_few_files_leaves_neither_mount_nor_directory(tmp_path: Path) -> None:
    """Also when it has mounted, and none is left to start a process that unmounts."""
    works = (
        os.getuid() == 0 and subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0
    )
    require("fuse", works, "no mount namespace can be made here: this takes root")
    place = tmp_path / "tmp"
    place.mkdir()
    script = """umount -i -l -a -t fuse.barfs || :; ulimit -n "$1"; shift; exec "$@" """
    for files in range(20, 60):
        command = ["unshare", "-m", "bash", "-euc", script, "bash", str(files), *BARFS, "demo"]
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(place)},
        ) as process:
            assert process.stdout is not None
            up = process.stdout.readline()
            process.terminate()
            _output, errors = process.communicate(timeout=DEADLINE)
        assert "still mounted" not in errors
        assert list(place.iterdir()) == []
        if up:
            return
        assert f"too many open files, {files} are allowed" in errors
    pytest.fail("60 files are enough")


def test_without_a_subcommand_it_is_mount(tmp_path: Path) -> None:
    """As mount.fuse3 calls it."""
    path = str(tmp_path / "mnt")
    (tmp_path / "mnt").mkdir()
    with served(tmp_path) as device:
        result = barfs(device.name, path, "-o", "rw,width=8,dev,suid,noauto,x-systemd.automount")
        assert (result.returncode, result.stderr) == (0, "")
        assert "\nwidth  8\n" in next(Path(path).glob("bus/*/bar0.layout")).read_text()
        assert barfs("umount", path).returncode == 0


def test_a_stopped_mount_does_not_hold_others(tmp_path: Path) -> None:
    """Neither a question for devices nor an unmount waits for a process that does not answer."""
    with mounted(tmp_path, "demo") as stopped:
        stopped.process.send_signal(signal.SIGSTOP)
        try:
            assert barfs("layout", "vfio-user:/nowhere", timeout=10).returncode == 1
            result = barfs("umount", stopped.path, timeout=10)
            pid = stopped.process.pid
            assert result.returncode == 1
            assert result.stderr == (
                f"barfs: {stopped.path} is unmounted, but process {pid} still holds the devices, "
                f"since it is stopped; resume it: kill -CONT {pid}\n"
            )
            assert not is_mounted(stopped.path)
            assert running(pid)
        finally:
            stopped.process.send_signal(signal.SIGCONT)


def test_one_of_many_umounts_at_once_is_the_one(tmp_path: Path) -> None:
    """The others find the mount, and it is gone when they would end it."""
    with mounted(tmp_path, "demo") as mount:
        command = [*BARFS, "umount", str(mount.path)]
        mount.process.send_signal(signal.SIGSTOP)
        try:
            racing = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in "1234"]
            wait_until(lambda: not is_mounted(mount.path), "an umount")
        finally:
            mount.process.send_signal(signal.SIGCONT)
        told = [one.communicate(timeout=DEADLINE)[1] for one in racing]
        codes = sorted(one.returncode for one in racing)
    assert codes == [0, 1, 1, 1], told
    refused = f"barfs: {mount.path} is not a barfs mount"
    assert all(text == "" or text.startswith(refused) for text in told), told


def test_a_burst_of_signals_is_one_end(tmp_path: Path) -> None:
    with mounted(tmp_path, "demo") as mount:
        for _signal in range(1000):
            mount.process.terminate()
        assert ended(mount.process) == 0


def test_signals_until_the_very_end(tmp_path: Path) -> None:
    """The last of them finds the interpreter on its way out."""

    def still_there() -> bool:
        mount.process.terminate()
        return mount.process.poll() is not None

    with mounted(tmp_path, "demo") as mount:
        wait_until(still_there, "the end")
        assert mount.process.returncode == 0


def test_another_mount_may_have_the_number_by_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel gives a device number away again as soon as the file system has ended."""
    require_fuse()
    place = tmp_path / "mnt"
    place.mkdir()
    assert barfs("mount", "demo", str(place)).returncode == 0
    monkeypatch.setattr("barfs.cli.mount.holders", lambda _device: ["at /elsewhere"])
    try:
        assert main(["umount", str(place)]) == 0
    finally:
        if is_mounted(place):
            unmount(place, lazy=True)
