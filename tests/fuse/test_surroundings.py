# SPDX-License-Identifier: MIT
"""Every command in surroundings that lack something: it works, or says in a line why not."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import BARFS, barfs, require, require_fuse, served, wait_until
from tests.support.namespace import AS_NOBODY, NOBODY, in_namespace, opened_to_others
from tests.support.namespace import run as namespace_run

NO_DEVICE = "fffe:1f:1f.7"
TIMEOUT = 60

# The exit code where nothing is missing, and the words; {mnt} is an empty directory.
COMMANDS = {
    "--version": 0,
    "--help": 0,
    "nonsense": 2,
    "list": 0,
    "doctor": None,
    "layout demo": 0,
    "md demo:bar0 0": 0,
    "mw demo:bar0 4 1": 0,
    "rmw demo:bar0 4 1 1": 0,
    "poll demo:bar0 4 0 0": 0,
    "dump demo --skip bar2 -o {dir}/new.dump": 0,
    "diff {dir}/a.dump {dir}/a.dump": 0,
    "trace {mnt}": 2,
    "run true": 0,
    "run {dir}/nothing": 127,
    f"bind {NO_DEVICE}": 1,
    f"unbind {NO_DEVICE}": 1,
    "umount {mnt}": 1,
    "mount demo {mnt}": 0,
    "mount -f demo {mnt}": 0,
    "demo": 0,
    "serve --socket {dir}/s.sock": 0,
    "serve": 0,
}
LOG = ("barfs: WARNING: ", "barfs: ERROR: ")
FOREGROUND = ("mount -f", "demo", "serve")

READ_ONLY = """
while read -r _ _ _ _ place _; do
    case $place in /proc*|/sys*) ;; *) mount -o remount,bind,ro "$place" || : ;; esac
done < /proc/self/mountinfo
"""
NO_FUSE = "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3;"


SO_ACCEPTCON = 1 << 16
"""In the flags of /proc/net/unix (net/unix/af_unix.c): a socket that takes connections."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """A script that sets them up, and redirections of the command.

    `harmless`: every command does what it does elsewhere. `silent`: nothing can be said.
    """

    setup: str = ""
    redirections: str = ""
    harmless: bool = False
    silent: bool = False


ALL = {
    "nothing missing": Surroundings(harmless=True),
    "no stdin": Surroundings("", "<&-", harmless=True),
    "no stdout": Surroundings("", ">&-"),
    "no stderr": Surroundings("", "2>&-", harmless=True, silent=True),
    "no streams": Surroundings("", "<&- >&- 2>&-", silent=True),
    "stdout full": Surroundings("", ">/dev/full"),
    "stderr full": Surroundings("", "2>/dev/full", harmless=True, silent=True),
    "both full": Surroundings("", ">/dev/full 2>&1", silent=True),
    "stdout unread": Surroundings("", "> >(exec <&-)"),
    "deleted directory": Surroundings(
        'mkdir "$dir/gone"; cd "$dir/gone"; rmdir "$dir/gone";', harmless=True
    ),
    "no environment": Surroundings(
        "for n in $(compgen -e); do [ $n = NOTIFY_SOCKET ] || unset $n; done;", harmless=True
    ),
    "no home": Surroundings("export HOME=/none TMPDIR=/none XDG_STATE_HOME=/none;", harmless=True),
    "another locale": Surroundings(
        'set -- env LC_ALL=xx_XX.nowhere PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 "$@";', harmless=True
    ),
    "read-only": Surroundings(READ_ONLY),
    "no /proc": Surroundings("mount -t tmpfs none /proc;"),
    "no /sys": Surroundings("mount -t tmpfs none /sys;", harmless=True),
    "no /dev": Surroundings("mount -t tmpfs none /dev;"),
    "no /dev/fuse": Surroundings(NO_FUSE),
    "5 files": Surroundings("ulimit -n 5;"),
    "9 files": Surroundings("ulimit -n 9;"),
    "14 files": Surroundings("ulimit -n 14;"),
    "20 files": Surroundings("ulimit -n 20;"),
    "24 files": Surroundings("ulimit -n 24;"),
    "no file size": Surroundings("ulimit -f 0;"),
    "60 MB": Surroundings("ulimit -v 60000;"),
    "150 MB": Surroundings("ulimit -v 150000;"),
    "250 MB": Surroundings("ulimit -v 250000;"),
}


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    output: str
    errors: str


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """With an empty directory `mnt` and a dump; processes that know of it are ended afterwards."""
    require_fuse()
    works = os.getuid() == 0 and subprocess.run(["unshare", "-m", "true"]).returncode == 0
    require("fuse", works, "no mount namespace can be made here: this takes root")
    (tmp_path / "mnt").mkdir()
    yield tmp_path
    with contextlib.suppress(ProcessLookupError):
        for pid in _started(tmp_path):
            os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not _started(tmp_path), "the end of what was started")


def _started(folder: Path) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if process.name.isdecimal() and os.fsencode(folder) in words:
                found.append(int(process.name))
    return found


def run(folder: Path, surroundings: Surroundings, command: str) -> Ended:
    """Run a command to its end; one in the foreground is told to end once it is ready."""
    words = command.format(dir=folder, mnt=folder / "mnt").split()
    # "demo" is another mount's device where one on this machine has it.
    script = f"""
        umount -i -l -a -t fuse.barfs || :
        dir=$1; shift; {surroundings.setup} exec "$@" {surroundings.redirections}
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(folder / "notify"))
        notified.setblocking(False)
        with subprocess.Popen(
            ["unshare", "-m", "bash", "-euc", script, "bash", str(folder), *BARFS, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify")},
        ) as process:
            if command.startswith(FOREGROUND):
                try:
                    wait_until(
                        lambda: (
                            process.poll() is not None
                            or _is_ready(notified, process.pid, command.startswith("serve"))
                        ),
                        "readiness",
                    )
                finally:
                    process.terminate()
            output, errors = process.communicate(timeout=TIMEOUT)
    (folder / "notify").unlink()
    return Ended(process.returncode, output, errors)


def _is_ready(notified: socket.socket, pid: int, serves: bool) -> bool:
    with contextlib.suppress(BlockingIOError):
        return b"READY=1" in notified.recv(4096)
    listening = {
        int(line.split()[6])
        for line in Path("/proc/net/unix").read_text(errors="replace").split("\n")[1:]
        if len(line.split()) > 6 and int(line.split()[3], 16) & SO_ACCEPTCON
    }
    try:  # what tells no service manager listens on a socket when it serves
        names = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return False
    return serves and any(f"socket:[{inode}]" in names for inode in listening)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ALL)
def test_it_works_or_says_why_not(folder: Path, name: str, command: str) -> None:
    surroundings = ALL[name]
    if command.startswith("diff"):
        made = run(folder, Surroundings(), "dump demo --skip bar2 -o {dir}/a.dump")
        assert made.code == 0, made.errors
    ended = run(folder, surroundings, command)
    both = ended.output + ended.errors
    assert "Traceback" not in both
    assert "Exception ignored" not in both
    usual = COMMANDS[command]
    if surroundings.harmless and usual is not None:
        assert ended.code == usual, both
    assert ended.code in (0, 1, 2, usual), both
    if surroundings.silent:
        assert ended.errors == ""
    elif ended.code and not (command == "doctor" and ended.output):
        unread = name == "stdout unread" and usual in (0, None)
        lines = ended.errors.splitlines()
        assert all(line.startswith("barfs: ") for line in lines), both
        told = [line for line in lines if not line.startswith(LOG)]
        assert len(told) == (0 if unread else 1), both


def test_closed_streams_are_given_to_nothing_else(tmp_path: Path) -> None:
    """Or what a library prints would be written into a device."""
    sock = tmp_path / "s.sock"
    script = 'exec "$@" <&- >&- 2>&-'
    with subprocess.Popen(
        ["sh", "-c", script, "sh", *BARFS, "serve", "--socket", str(sock)], text=True
    ) as process:
        try:
            wait_until(lambda: sock.exists() or process.poll() is not None, "the socket")
            targets = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in (0, 1, 2)]
        finally:
            process.terminate()
    # What could not be printed has moved the second to where everything may be written.
    assert targets == [os.devnull] * 3
    assert process.returncode == 0


def test_a_reader_that_leaves_a_servers_log_ends_nothing(tmp_path: Path) -> None:
    sock = tmp_path / "s.sock"
    with subprocess.Popen(
        [*BARFS, "serve", "--socket", str(sock), "--log", "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("listening")
        process.stdout.close()
        try:
            results = [barfs("md", f"vfio-user:{sock}:bar0", "0") for _ in range(2)]
        finally:
            process.terminate()
        errors = process.stderr.read()
    assert [(result.returncode, result.stdout[:18]) for result in results] == [
        (0, "00000000: 66726162")
    ] * 2
    assert errors == (
        "barfs: WARNING: accesses are no longer logged: standard output: Broken pipe\n"
    )
    assert process.returncode == 0


def test_a_server_that_cannot_take_a_client_takes_it_later(tmp_path: Path) -> None:
    sock = tmp_path / "s.sock"
    with subprocess.Popen(
        [*BARFS, "serve", "--socket", str(sock)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stdout.readline().startswith("listening")
            limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
            count = 1 + max(map(int, os.listdir(f"/proc/{process.pid}/fd")))
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (count, limits[1]))
            command = [*BARFS, "md", f"vfio-user:{sock}:bar0", "0"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
                line = process.stderr.readline()
                resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)
                output, _ = client.communicate(timeout=TIMEOUT)
        finally:
            process.terminate()
    assert (
        f"cannot accept a client yet: too many open files, {count} are allowed; raise the limit"
        in line
    )
    assert (client.returncode, output[:18]) == (0, "00000000: 66726162")
    assert process.returncode == 0


@pytest.mark.parametrize("log", ["/dev/full", "-"])
def test_a_servers_log_on_a_full_disk_ends_nothing(tmp_path: Path, log: str) -> None:
    sock = tmp_path / "s.sock"
    with (
        open("/dev/full", "w") as full,
        subprocess.Popen(
            [*BARFS, "serve", "--socket", str(sock), "--log", log],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stderr is not None
        try:
            wait_until(lambda: sock.exists() or process.poll() is not None, "the socket")
            results = [barfs("md", f"vfio-user:{sock}:bar0", "0") for _ in range(2)]
        finally:
            process.terminate()
        errors = process.stderr.read().splitlines()
    assert [result.returncode for result in results] == [0, 0]
    assert all("no space left on the device" in line for line in errors)
    assert 1 <= len(errors) <= 2
    assert process.returncode == 0


OPEN_FILES = """
import os, resource, subprocess, sys
from barfs.text import system_errors

before = resource.getrlimit(resource.RLIMIT_NOFILE)
system_errors.raise_open_files_limit()
after = resource.getrlimit(resource.RLIMIT_NOFILE)
command = system_errors.with_limits_before(["sh", "-c", "ulimit -Sn; ulimit -Hn"])
child = subprocess.run(command, capture_output=True, text=True).stdout.split()
print(before, after, child)
"""


def test_children_have_the_limits_that_barfs_was_started_with() -> None:
    result = subprocess.run(
        [
            "sh",
            "-c",
            'ulimit -Sn 700; ulimit -Hn 2000; exec "$0" -c "$1"',
            sys.executable,
            OPEN_FILES,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "(700, 2000) (2000, 2000) ['700', '2000']\n"


def test_many_devices_under_the_usual_limit(folder: Path) -> None:
    """Which is a soft one: a mount of more devices than fit raises it, its helper does not."""
    devices = " ".join(["demo"] * 40)
    ended = run(folder, Surroundings("ulimit -Sn 64;"), f"mount {devices} {{mnt}}")
    assert (ended.code, ended.errors) == (0, "")
    limits = {
        Path(f"/proc/{pid}/comm").read_text().strip(): Path(f"/proc/{pid}/limits").read_text()
        for pid in _started(folder)
    }
    soft = {
        name: line.split()[3]
        for name, text in limits.items()
        for line in text.splitlines()
        if line.startswith("Max open files")
    }
    assert soft.pop("fusermount3") == "64"
    assert all(int(limit) > 64 for limit in soft.values())
    assert soft


@pytest.mark.parametrize("background", [True, False])
def test_more_devices_than_may_be_open(folder: Path, background: bool) -> None:
    devices = " ".join(["demo"] * 40)
    words = "mount" if background else "mount -f"
    ended = run(folder, Surroundings("ulimit -n 64;"), f"{words} {devices} {{mnt}}")
    assert ended.code == 1
    assert "too many open files, 64 are allowed; raise the limit" in ended.errors
    assert ended.errors.count("\n") == 1


@pytest.mark.parametrize("files", range(5, 9))
def test_descriptors_that_do_not_fit_are_no_fault_of_the_server(folder: Path, files: int) -> None:
    with served(folder) as device:
        where = Surroundings(f"ulimit -n {files};")
        ended = run(folder, where, f"layout {device.name}")
    assert "broke the protocol" not in ended.errors
    assert ended.code == 0 or f"too many open files, {files} are allowed" in ended.errors


@pytest.mark.usefixtures("_other_user")
@pytest.mark.parametrize("more", range(1, 12, 2))
def test_a_user_with_few_threads(public: Path, more: int) -> None:
    mnt = public / "mnt"
    mnt.mkdir()
    os.chown(mnt, NOBODY, NOBODY)
    limit = _threads_of(NOBODY) + more
    script = f'ulimit -u {limit}; exec "$@"'
    command = [*AS_NOBODY, *BARFS, "mount", "demo", str(mnt)]
    result = namespace_run("bash", "-c", script, "bash", *command, TMPDIR=str(public))
    if result.returncode == 0:
        assert barfs("umount", mnt).returncode == 0
        return
    assert "Traceback" not in result.stderr
    assert result.returncode == 1
    assert f"no more processes and threads can be started; {limit} are allowed" in result.stderr


def _threads_of(uid: int) -> int:
    return sum(
        len(list((process / "task").iterdir()))
        for process in Path("/proc").iterdir()
        if process.name.isdecimal() and process.stat().st_uid == uid
    )


HOMES = {
    "a home": 'export HOME="$dir"',
    "a home elsewhere": "export HOME=/none",
    "no home": "unset HOME XDG_STATE_HOME XDG_RUNTIME_DIR",
    "a state": 'export HOME=/none XDG_STATE_HOME="$dir/state"',
}


def as_nobody(public: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script of bash as a user; "$@" is barfs, $dir the user's only directory."""
    folder = public / "own"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    start = f"""
        {opened_to_others(public)}
        export dir="$1" TMPDIR="$1"; shift; mkdir "$dir/mnt"; chown {NOBODY} "$dir/mnt"
        exec {" ".join(AS_NOBODY)} bash -euc '{script}' bash "$@"
    """
    return in_namespace(start, folder, *BARFS)


@pytest.mark.usefixtures("_other_user")
@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("words", ["demo", "mount demo"])
def test_root_of_a_user_namespace(public: Path, home: str, words: str) -> None:
    script = f"""
        {HOMES[home]}
        exec unshare -Urm bash -euc "
            \\"\\$@\\" {words} $dir/mnt; ls $dir/mnt; cat $dir/mnt/bus/*/vendor; umount $dir/mnt
        " bash "$@"
    """
    result = as_nobody(public, script)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "bus\ndevices\nflat\n0x1234\n"
    logs = [file.relative_to(public / "own").parts[0] for file in public.rglob("barfs.log")]
    expected = {"a home": [".local"], "a state": ["state"]}
    assert logs == expected.get(home, []) or Path("/dev/log").exists()


@pytest.mark.usefixtures("_other_user")
@pytest.mark.parametrize("unshare", ["unshare -Ur", "unshare -U"])
def test_a_user_namespace_without_a_mount_namespace(public: Path, unshare: str) -> None:
    result = as_nobody(public, f'exec {unshare} "$@" demo "$dir/mnt"')
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith(
        "; a user namespace needs a mount namespace of its own: unshare -Urm\n"
    )


@pytest.mark.usefixtures("_other_user")
def test_a_server_without_a_place_of_its_own(public: Path) -> None:
    """Its socket has a name that no other user can have taken."""
    os.chown(public, NOBODY, NOBODY)
    with subprocess.Popen(
        [*AS_NOBODY, *BARFS, "serve"],
        stdout=subprocess.PIPE,
        text=True,
        env={"TMPDIR": str(public), "HOME": "/none"},
    ) as process:
        assert process.stdout is not None
        try:
            message = process.stdout.readline()
            (sock,) = public.glob("barfs-serve-*/barfs.sock")
            assert f"vfio-user:{sock} " in message
            assert sock.parent.stat().st_mode & 0o777 == 0o700
        finally:
            process.terminate()
    assert process.returncode == 0
    assert list(public.iterdir()) == []


def test_a_daemon_that_is_killed_at_its_start(folder: Path) -> None:
    """As the kernel does when memory runs out."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s.sock"))
        server.listen()
        words = ["mount", "-o", "timeout=60", f"vfio-user:{folder}/s.sock", str(folder / "mnt")]
        with subprocess.Popen([*BARFS, *words], stderr=subprocess.PIPE, text=True) as process:
            connection, _ = server.accept()
            with connection:
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
                os.kill(int(children), signal.SIGKILL)
            _, errors = process.communicate(timeout=TIMEOUT)
    (folder / "s.sock").unlink()
    assert process.returncode == 1
    assert errors.startswith("barfs: signal 9 (Killed) ended the mount's process before")
    assert errors.count("\n") == 1
