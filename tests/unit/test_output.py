# SPDX-License-Identifier: MIT
"""Files are replaced whole, in the place of nothing else, and nothing is left beside them."""

import ctypes
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from barfs.errors import UsageError
from barfs.process.output import OutputError, save, saving
from tests.support import wait_until

NEW = b"new contents"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["O_TMPFILE", "a name meanwhile"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param != "O_TMPFILE":
        # What a kernel without it makes of it, see open(2): EISDIR.
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
    return tmp_path


def test_a_new_file_is_its_owners_alone(folder: Path) -> None:
    save(folder / "a", NEW)
    assert (folder / "a").read_bytes() == NEW
    assert (folder / "a").stat().st_mode & 0o777 == 0o600
    assert names(folder) == ["a"]


@pytest.mark.parametrize("mode", [0o640, 0o600, 0o4755])
def test_owner_and_mode_of_a_file_stay(folder: Path, mode: int) -> None:
    (folder / "a").write_text("old")
    if os.geteuid() == 0:
        os.chown(folder / "a", 12345, 54321)
    (folder / "a").chmod(mode)
    before = (folder / "a").stat()
    save(folder / "a", NEW)
    after = (folder / "a").stat()
    assert (folder / "a").read_bytes() == NEW
    assert (after.st_uid, after.st_gid, after.st_mode) == (
        before.st_uid,
        before.st_gid,
        before.st_mode,
    )
    assert names(folder) == ["a"]


def test_an_acl_stays(tmp_path: Path) -> None:
    """Without it, its mask would become what the group may do."""
    path = tmp_path / "a"
    path.touch(0o600)
    # version 2; user::rw-, user:4711:rw-, group::---, mask::rw-, other::---
    entries = [(1, 6, -1), (2, 6, 4711), (4, 0, -1), (16, 6, -1), (32, 0, -1)]
    acl = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little")
        + perm.to_bytes(2, "little")
        + who.to_bytes(4, "little", signed=True)
        for tag, perm, who in entries
    )
    os.setxattr(path, "system.posix_acl_access", acl)
    os.setxattr(path, "user.note", b"kept")
    save(path, NEW)
    assert os.getxattr(path, "system.posix_acl_access") == acl
    assert os.getxattr(path, "user.note") == b"kept"
    assert path.stat().st_mode & 0o777 == 0o660


def test_the_old_contents_stay_until_the_new_ones_are_whole(folder: Path) -> None:
    (folder / "a").write_text("old")
    os.link(folder / "a", folder / "other")
    with saving(folder / "a") as output:
        output.write(NEW)
        output.flush()
        assert (folder / "a").read_text() == "old"
    assert (folder / "a").read_bytes() == NEW
    assert (folder / "other").read_text() == "old"
    with pytest.raises(ZeroDivisionError), saving(folder / "a") as output:
        output.write(b"half" + bytes(1 // 0))
    assert (folder / "a").read_bytes() == NEW
    assert names(folder) == ["a", "other"]


def test_links_are_followed_and_stay(folder: Path) -> None:
    (folder / "there").mkdir()
    (folder / "link").symlink_to("there/target")
    (folder / "link2").symlink_to(folder / "link")
    for text in (b"1", b"22"):
        save(folder / "link2", text)
        assert (folder / "there/target").read_bytes() == text
    assert (folder / "link").is_symlink()
    assert (folder / "link2").is_symlink()
    assert names(folder / "there") == ["target"]
    (folder / "round").symlink_to("round")
    with pytest.raises(UsageError, match="Too many levels of symbolic links"):
        save(folder / "round", NEW)


def test_what_comes_meanwhile_is_replaced_if_it_is_a_file(folder: Path) -> None:
    with saving(folder / "a") as output:
        output.write(NEW)
        (folder / "a").write_text("meanwhile")
    assert (folder / "a").read_bytes() == NEW
    with (
        pytest.raises(OutputError, match="is no longer a regular file"),
        saving(folder / "b") as output,
    ):
        os.mkfifo(folder / "b")
    assert (folder / "b").is_fifo()
    assert names(folder) == ["a", "b"]


def test_a_fifo_is_written_into(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    reader = os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    save(folder / "pipe", NEW)
    assert os.read(reader, 100) == NEW
    os.close(reader)
    assert (folder / "pipe").is_fifo()
    assert names(folder) == ["pipe"]


def test_a_reader_that_leaves_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    saved = saving(tmp_path / "pipe")
    saved.__enter__().write(NEW)
    os.close(reader)
    with pytest.raises(OutputError, match="pipe: Broken pipe"):
        saved.__exit__(None, None, None)


def test_devices_are_written_into(tmp_path: Path) -> None:
    for path in (Path("/dev/null"), tmp_path / "link"):
        if path.parent == tmp_path:
            path.symlink_to("/dev/null")
        save(path, NEW)
    assert Path("/dev/null").is_char_device()
    with pytest.raises(OutputError, match="/dev/full: no space left on the device; free some"):
        save(Path("/dev/full"), NEW)


@pytest.mark.parametrize("name", ["/dev/stdout", "/proc/self/fd/1", "/dev/fd/1"])
def test_a_descriptor_is_written_into(tmp_path: Path, name: str) -> None:
    """Where it is, also in a file: what the shell writes before and after it stays."""
    program = (
        "from pathlib import Path; from barfs.process.output import save; "
        f"save(Path('{name}'), b'new ')"
    )
    subprocess.run(
        ["sh", "-c", f'echo before >"$1"; {{ "$0" -c "{program}"; echo after; }} >>"$1"',
         sys.executable, tmp_path / "a"],
        check=True,
    )  # fmt: skip
    assert (tmp_path / "a").read_text() == "before\nnew after\n"
    piped = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    assert piped.stdout == b"new "


def test_directories_and_sockets_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        for path, what in (
            (tmp_path, "is a directory; name a file in it"),
            (tmp_path / "link", "is a directory"),
            (tmp_path / "s", "is a socket; name a file"),
        ):
            with pytest.raises(UsageError, match=f"^{path} {what}"):
                save(path, NEW)
    with pytest.raises(UsageError, match="No such file or directory"):
        save(tmp_path / "missing/a", NEW)
    with pytest.raises(UsageError, match="Not a directory"):
        save(tmp_path / "s/a", NEW)
    assert names(tmp_path) == ["link", "s"]


def as_other_user(work: Callable[[], None]) -> None:
    """In a thread of another user: the system call, since glibc changes all threads."""
    errors: list[BaseException] = []

    def run() -> None:
        ctypes.CDLL(None).syscall(119, -1, 65534, -1)  # setresgid
        ctypes.CDLL(None).syscall(117, -1, 65534, -1)  # setresuid
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for error in errors:
        raise error


@pytest.mark.usefixtures("folder")
def test_a_file_of_another_user_is_not_taken_over() -> None:
    if os.geteuid():
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory(prefix="barfs-test-") as name:
        public = Path(name)
        public.chmod(0o777)
        (public / "a").touch()
        (public / "a").chmod(0o666)
        with pytest.raises(UsageError, match="belongs to user 0, group 0, which barfs cannot keep"):
            as_other_user(lambda: save(public / "a", NEW))
        (public / "a").chmod(0o644)
        with pytest.raises(UsageError, match="Permission denied"):
            as_other_user(lambda: save(public / "a", NEW))
        assert (public / "a").read_bytes() == b""
        assert names(public) == ["a"]


@pytest.mark.parametrize("flag", ["O_TMPFILE", "O_DIRECTORY"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_leaves_nothing(tmp_path: Path, flag: str, number: signal.Signals) -> None:
    (tmp_path / "a").write_text("old")
    program = f"""
import os, sys, time
from pathlib import Path
os.O_TMPFILE = os.{flag}
from barfs.process.signals import ended_by_signals
from barfs.process.output import saving
with ended_by_signals(), saving(Path(sys.argv[1])) as output:
    output.write(b"half")
    output.flush()
    print("ready", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "a"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    with process.stdout as output:
        assert select.select([output], [], [], 30)[0]
        process.send_signal(number)
        wait_until(lambda: process.poll() is not None, "its end")
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert (tmp_path / "a").read_text() == "old"
    if (flag, number) != ("O_DIRECTORY", signal.SIGKILL):
        assert names(tmp_path) == ["a"]


def test_a_full_disk_leaves_the_old_contents(folder: Path) -> None:
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", disk], check=True)
    try:
        (disk / "a").write_text("old")
        with pytest.raises(OutputError, match="no space left on the device; free some"):
            save(disk / "a", bytes(8192))
        assert (disk / "a").read_text() == "old"
        assert names(disk) == ["a"]
        assert stat.S_ISREG((disk / "a").stat().st_mode)
    finally:
        subprocess.run(["umount", disk], check=True)
