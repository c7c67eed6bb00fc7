# SPDX-License-Identifier: MIT
"""Whatever is wrong with a command: one line that says what to do, and nothing left behind."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from barfs.attached.mounts import MountInfo
from barfs.cli import main
from tests.support import BARFS, barfs, mounted, require_fuse, served, wait_until
from tests.support.leftovers import processes

FAILED = 1
USAGE = 2
NO_DEVICE = "fffe:1f:1f.7"


def refused(result: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    """The exit code, one line on standard error with these parts in it, and no output."""
    assert result.stdout == ""
    assert result.stderr.startswith("barfs"), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.endswith("\n")
    for part in parts:
        assert part in result.stderr
    assert result.returncode == code


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    """An empty directory; that it is empty afterwards, too, conftest's fixture sees."""
    path = tmp_path / "mnt"
    path.mkdir()
    return path


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs a command in this process, which is quick; not for one that could come to serve."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        try:
            code = main(list(map(str, words)))
        except SystemExit as end:
            code = int(end.code or 0)
        return subprocess.CompletedProcess(words, code, *capfd.readouterr())

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["COMMAND", "--help"]),
        (["frobnicate"], ["frobnicate", "choose from"]),
        (["mount"], ["MOUNTPOINT", "barfs mount --help"]),
        (["mount", "demo"], ["MOUNTPOINT"]),
        (["mount", "--frobnicate", "demo", "MNT"], ["--frobnicate"]),
        (
            ["mount", "nonsense", "MNT"],
            ["'nonsense' is not a device", "0000:01:00.0", "vfio-user:"],
        ),
        (["nonsense", "MNT"], ["'nonsense' is not a device"]),
        (["mount", "vfio-user:", "MNT"], ["names no socket"]),
        (["mount", "vfio-user:/s,bdf=9", "MNT"], ["'9' is not a PCI address"]),
        (["mount", "-o", "width=3", "demo", "MNT"], ["width must be 1, 2, 4 or 8 bytes, not 3"]),
        (["mount", "-o", "colour=red", "demo", "MNT"], ["'colour=red'", "width=", "timeout="]),
        (["mount", "-o", "ro,rw", "demo", "MNT"], ["ro and rw contradict"]),
        (["mount", "-o", "width=4", "-o", "width=8", "demo", "MNT"], ["width is given twice"]),
        (["mount", "-o", "mapping=off,msix=carve", "demo", "MNT"], ["msix=carve", "mapping=off"]),
        (["mount", "-o", "timeout=0", "demo", "MNT"], ["timeout", "positive"]),
        (["demo", "-o", "umask=9", "MNT"], ["umask", "octal"]),
        (["layout"], ["DEVICE"]),
        (["layout", "nonsense"], ["'nonsense' is not a device"]),
        (["layout", "demo", "bar9"], ["'bar9' is not a region", "bar0..bar5"]),
        (["layout", "demo", "bar3"], ["has no bar3; it has bar0, bar2, bar4, bar5, rom, config"]),
        (["umount"], ["MOUNTPOINT"]),
        (["list", "x"], ["unrecognized arguments: x"]),
        (["bind"], ["BDF"]),
        (["bind", "nonsense"], ["'nonsense' is not a PCI address"]),
        (
            ["bind", "--driver", "a/b", NO_DEVICE],
            ["driver must be a name like vfio-pci, not 'a/b'"],
        ),
        (["bind", "--user", "none such", NO_DEVICE], ["there is no user 'none such'"]),
        (["bind", "--group", "none such", NO_DEVICE], ["there is no group 'none such'"]),
        (["bind", "--user", "4294967295", NO_DEVICE], ["user must be", "0 to 4294967294"]),
        (["bind", "--group", "4294967295", NO_DEVICE], ["group must be", "0 to 4294967294"]),
        (["unbind", "nonsense"], ["'nonsense' is not a PCI address"]),
        (["doctor", "nonsense"], ["'nonsense' is not a PCI address"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_usage(command: Command, mountpoint: Path, words: list[str], parts: list[str]) -> None:
    refused(command(*(mountpoint if word == "MNT" else word for word in words)), USAGE, *parts)


def test_the_exit_code_is_the_command_s(mountpoint: Path) -> None:
    refused(barfs("mount", "-o", "width=3", "demo", mountpoint), USAGE, "width must be")


def test_a_device_named_twice(mountpoint: Path) -> None:
    result = barfs("mount", "01:00.0", "0000:01:00.0", mountpoint)
    refused(result, USAGE, "0000:01:00.0 is named twice")


def test_a_socket_twice(tmp_path: Path, mountpoint: Path) -> None:
    with served(tmp_path) as device:
        again = f"vfio-user:{device.socket.parent}/../{tmp_path.name}/{device.socket.name}"
        result = barfs("mount", f"vfio-user:{device.socket}", again, mountpoint)
        refused(result, USAGE, f"vfio-user:{device.socket} is named twice")


@pytest.mark.parametrize("foreground", [["-f"], []])
def test_an_unknown_address(mountpoint: Path, foreground: list[str]) -> None:
    result = barfs("mount", *foreground, NO_DEVICE, mountpoint)
    refused(result, FAILED, f"{NO_DEVICE}: no such PCI device", "barfs list")


def test_the_layout_of_an_unknown_address(command: Command) -> None:
    refused(command("layout", NO_DEVICE), FAILED, f"{NO_DEVICE}: no such PCI device")


@pytest.mark.parametrize(
    "words", [["bind"], ["bind", "--dry-run"], ["bind", "--force"], ["unbind"]]
)
def test_binding_an_unknown_address(command: Command, words: list[str]) -> None:
    refused(command(*words, NO_DEVICE), FAILED, f"{NO_DEVICE}: no such PCI device")


def test_the_doctor_of_an_unknown_address(command: Command) -> None:
    result = command("doctor", NO_DEVICE)
    assert (result.returncode, result.stderr) == (FAILED, "")
    assert f"FAIL  {NO_DEVICE}: no such PCI device: barfs list" in result.stdout


def test_one_good_and_one_bad_device(mountpoint: Path) -> None:
    refused(barfs("mount", "demo", NO_DEVICE, mountpoint), FAILED, NO_DEVICE)


def test_a_missing_mount_point(tmp_path: Path) -> None:
    path = tmp_path / "none"
    refused(barfs("mount", "demo", path), FAILED, f"{path} does not exist", f"mkdir -p {path}")
    assert not path.exists()


def test_a_mount_point_that_is_not_empty(mountpoint: Path) -> None:
    (mountpoint / "file").touch()
    result = barfs("mount", "demo", mountpoint)
    refused(result, FAILED, f"{mountpoint} is not empty", "choose an empty directory")


def test_a_mount_point_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    refused(barfs("mount", "demo", path), FAILED, f"{path} is not a directory")


def test_a_mount_point_in_use(tmp_path: Path) -> None:
    with mounted(tmp_path, "demo") as mount:
        result = barfs("mount", "demo", mount.path)
        refused(result, FAILED, "is already a barfs mount", f"barfs umount {mount.path}")
        link = tmp_path / "link"
        link.symlink_to(mount.path)
        refused(barfs("mount", "demo", link), FAILED, "is already a barfs mount")
        refused(barfs("mount", "demo", mount.device()), FAILED, "is not empty")
        assert (mount.device() / "vendor").read_text() == "0x1234\n"


@contextlib.contextmanager
def bound_socket(path: Path, kind: int = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))
        try:
            yield sock
        finally:
            path.unlink()


def test_a_socket_that_is_not_there(tmp_path: Path, mountpoint: Path) -> None:
    result = barfs("mount", f"vfio-user:{tmp_path}/none.sock", mountpoint)
    refused(result, FAILED, "no such socket", "start the server")


def test_a_socket_where_nobody_listens(tmp_path: Path, mountpoint: Path) -> None:
    path = tmp_path / "device.sock"
    with bound_socket(path):
        refused(barfs("mount", f"vfio-user:{path}", mountpoint), FAILED, "no server listens there")


def test_a_socket_of_another_kind(tmp_path: Path, mountpoint: Path) -> None:
    path = tmp_path / "device.sock"
    with bound_socket(path, socket.SOCK_DGRAM):
        refused(barfs("mount", f"vfio-user:{path}", mountpoint), FAILED, "stream socket")


def test_a_file_that_is_no_socket(tmp_path: Path, mountpoint: Path) -> None:
    path = tmp_path / "device.sock"
    path.touch()
    refused(barfs("mount", f"vfio-user:{path}", mountpoint), FAILED, "is not a socket")


def test_a_socket_that_never_answers(tmp_path: Path, mountpoint: Path) -> None:
    path = tmp_path / "device.sock"
    with bound_socket(path) as sock:
        sock.listen()
        for words in (["mount", "-o", "timeout=0.3"], ["mount", "-f", "-o", "timeout=0.3"]):
            result = barfs(*words, f"vfio-user:{path}", mountpoint)
            refused(result, FAILED, "the server does not answer", "one client at a time")


@pytest.mark.parametrize("everybody", [False, True], ids=["a signal", "a terminal's ^C"])
def test_an_interrupted_command_leaves_no_daemon(
    tmp_path: Path, mountpoint: Path, everybody: bool
) -> None:
    path = tmp_path / "device.sock"
    with bound_socket(path) as sock:
        sock.listen()
        words = ["mount", "-o", "timeout=60", f"vfio-user:{path}", str(mountpoint)]
        with subprocess.Popen(
            [*BARFS, *words], start_new_session=True, stderr=subprocess.PIPE, text=True
        ) as process:
            connection, _ = sock.accept()
            with connection:
                (os.killpg if everybody else os.kill)(process.pid, signal.SIGINT)
                assert process.wait(10) == 130
                wait_until(lambda: not processes(str(mountpoint)), "the daemon's end", 10)
            assert process.stderr is not None
            assert process.stderr.read() == ""


def test_a_daemon_leaves_its_callers_group_when_it_is_ready(
    tmp_path: Path, mountpoint: Path
) -> None:
    """Not before: by its group, an automount point knows who makes the mount."""
    path = tmp_path / "device.sock"
    with bound_socket(path) as sock:
        sock.listen()
        words = [*BARFS, "mount", "-o", "timeout=60", f"vfio-user:{path}", str(mountpoint)]
        with subprocess.Popen(words, start_new_session=True) as process:
            connection, _ = sock.accept()
            with connection:
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
                assert os.getpgid(int(children)) == process.pid
            assert process.wait(10) == 1
    assert barfs("mount", "demo", mountpoint).returncode == 0
    try:
        info = MountInfo.read(mountpoint)
        assert info is not None
        assert os.getsid(info.pid) == info.pid
    finally:
        assert barfs("umount", mountpoint).returncode == 0


def test_a_server_that_is_taken(tmp_path: Path, mountpoint: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with served(tmp_path) as device, mounted(other, device.name):
        result = barfs("mount", "-o", "timeout=0.3", device.name, mountpoint)
        refused(result, FAILED, "the server does not answer", "end the other one")


def test_a_server_that_speaks_something_else(tmp_path: Path, mountpoint: Path) -> None:
    def answer(sock: socket.socket) -> None:
        connection, _ = sock.accept()
        # The client may leave before it has read everything.
        with connection, contextlib.suppress(ConnectionError):
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            while connection.recv(4096):
                pass

    path = tmp_path / "device.sock"
    with bound_socket(path) as sock:
        sock.listen()
        answering = threading.Thread(target=answer, args=(sock,))
        answering.start()
        result = barfs("mount", f"vfio-user:{path}", mountpoint)
        answering.join()
        refused(result, FAILED, "broke the protocol")


GOOD = "vendor = 1\ndevice = 2\nclass = 3\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("vendor = ", ["is not TOML", "at end of document"]),
        ("vendor = 1\nvendor = 2\n", ["is not TOML"]),
        ("vendor = 1\n", ["device"]),
        (GOOD + "colour = 3\n", ["colour", "is not a key; the keys here are"]),
        (GOOD + 'revision = "one"\n', ["revision", "must be a number"]),
        (GOOD + "region = 5\n", ["region"]),
        (GOOD + '[[region]]\nname = "bar0"\n', ["bar0", "size"]),
        (GOOD + '[[region]]\nname = "bar7"\nsize = 4096\n', ["bar7"]),
        (GOOD + '[[region]]\nname = "bar0"\nsize = 100\n', ["bar0", "power of two"]),
        (
            GOOD + '[[region]]\nname = "bar0"\nsize = 4096\nflags = ["mmap", "fly"]\n',
            ["must be read, write or mmap, not 'fly'"],
        ),
        (
            GOOD + '[[region]]\nname = "bar0"\nsize = 4096\ninitial = [{ hex = "xyz" }]\n',
            ["hex", "pairs of digits"],
        ),
        ("\xff", ["UTF-8"]),
        (None, ["cannot be read", "No such file"]),
    ],
)
def test_a_malformed_description(
    command: Command, tmp_path: Path, text: str | None, parts: list[str]
) -> None:
    description = tmp_path / "device.toml"
    if text is not None:
        description.write_bytes(text.encode("latin-1"))
    # Even a description that is taken by mistake is not served there.
    result = command("serve", "--socket", tmp_path / "none" / "device.sock", description)
    refused(result, FAILED, str(description), *parts)


def test_serving_where_somebody_listens(tmp_path: Path) -> None:
    with served(tmp_path) as device:
        refused(barfs("serve", "--socket", device.socket), FAILED, "another server listens there")
        assert device.socket.exists()


def test_serving_where_a_file_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    refused(barfs("serve", "--socket", path), FAILED, "is not a socket", "choose another path")
    assert path.read_text() == "precious"


def test_serving_where_a_stale_socket_is(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "device.sock"))
    with served(tmp_path) as device:
        assert device.socket.exists()


@pytest.mark.parametrize("name", ["mnt", "none"])
def test_umount_of_what_is_no_mount(command: Command, mountpoint: Path, name: str) -> None:
    path = mountpoint.with_name(name)
    refused(command("umount", path), FAILED, f"{path} is not a barfs mount", "mount -t fuse.barfs")


def test_umount_of_another_file_system(command: Command) -> None:
    refused(command("umount", "/proc"), FAILED, "/proc is not a barfs mount")
    assert Path("/proc/self").exists()


def test_fuse_that_cannot_mount(tmp_path: Path) -> None:
    """The reason that fusermount3 gives is what the user sees."""
    require_fuse()
    if os.getuid():
        pytest.skip("/proc is another user's: refused before fusermount3 is asked")
    refused(barfs("mount", "demo", "/proc/self/fdinfo"), FAILED, "/fdinfo")


@pytest.mark.parametrize("arguments", [("--all", "demo"), ()])
def test_all_devices_or_named_ones(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = barfs("mount", *arguments, tmp_path)
    assert result.returncode == 2
    assert result.stderr == (
        "barfs: use barfs mount DEVICE... MOUNTPOINT or barfs mount --all MOUNTPOINT\n"
    )
