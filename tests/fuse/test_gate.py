# SPDX-License-Identifier: MIT
"""What a mount does with requests that are long, interrupted, late, or not meant for registers."""

import contextlib
import errno
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import Mounted, Served, ended, mounted, served, wait_until

GAP = 0x4000  # memory of bar0 behind messages
DELAY = 0x2C
WINDOW = 0x3000
BRIEF = 0.5
"""What nothing else that goes on may make a short request take."""

PLAIN = """\
vendor = 0x1234
device = 0x5678
class = 0xff0000

[[region]]
name = "bar0"
size = 0x200000
flags = ["read", "write", "mmap"]
areas = [{ offset = 0x100000, size = 0x100000 }]
initial = [{ offset = 0, text = "a gap of a megabyte" }, { offset = 0x100000, text = "a window" }]

[[region]]
name = "bar2"
size = 0x1000
"""


@dataclass(frozen=True)
class Rig:
    """A mount of a served device, and of the demo device."""

    mount: Mounted
    server: Served

    @property
    def device(self) -> Path:
        return self.mount.device("ffff:00:00.0")

    @property
    def other(self) -> Path:
        return self.mount.device("ffff:00:01.0")

    def accesses(self) -> list[tuple[str, str, int, int]]:
        """The accesses by message since the last call, as (r or w, region, offset, width)."""
        lines = [line.split() for line in self.server.accesses()]
        return [(line[0], line[1], int(line[2], 16), int(line[3])) for line in lines]


@contextlib.contextmanager
def rig(folder: Path, *, options: str = "", text: str | None = None) -> Iterator[Rig]:
    description = None
    if text is not None:
        description = folder / "device.toml"
        description.write_text(text)
    with (
        served(folder, *([description] if description else [])) as server,
        mounted(folder, server.name, "demo", options=options) as mount,
    ):
        server.accesses()
        yield Rig(mount, server)


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as found:
        yield found


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def brief(action: Callable[[], object]) -> None:
    start = time.monotonic()
    action()
    assert time.monotonic() - start < BRIEF


# ---- Opening ------------------------------------------------------------------------------------


@pytest.mark.parametrize("region", ["bar0", "bar2"])
def test_an_append_does_not_land_in_register_0(demo: Rig, region: str) -> None:
    """As it would where opening a file truncated it in the eyes of the kernel (ATOMIC_O_TRUNC)."""
    path = demo.device / region
    before = path.stat().st_size
    with opened(path, os.O_RDONLY) as fd:
        content = os.pread(fd, 64, 0x1000)
    for flags in (os.O_APPEND, os.O_APPEND | os.O_TRUNC, os.O_APPEND | os.O_CREAT | os.O_TRUNC):
        with opened(path, os.O_WRONLY | flags) as fd:
            with pytest.raises(OSError, match="too large") as caught:
                os.write(fd, b"\xff\xff\xff\xff")
            assert caught.value.errno == errno.EFBIG
            assert os.fstat(fd).st_size == before
    command = f"echo barf >> {path}"
    assert subprocess.run(["bash", "-c", command], stderr=subprocess.DEVNULL).returncode != 0
    assert demo.accesses() == []
    with opened(path, os.O_RDONLY) as fd:
        assert os.pread(fd, 64, 0x1000) == content


def test_a_truncating_open_changes_nothing(demo: Rig) -> None:
    path = demo.device / "bar0"
    with opened(path, os.O_WRONLY | os.O_TRUNC) as fd:
        assert os.fstat(fd).st_size == 0x10000
        assert demo.accesses() == []
        assert os.pwrite(fd, b"\1\2\3\4", 4) == 4
    assert demo.accesses() == [("w", "bar0", 4, 4)]
    subprocess.run(["bash", "-ec", f"printf abcd > {path}"], check=True)
    assert demo.accesses() == [("w", "bar0", 0, 4)]


# ---- The page cache -----------------------------------------------------------------------------


def test_the_page_cache_is_refused(demo: Rig, tmp_path: Path) -> None:
    copy = (tmp_path / "copy").open("wb+", buffering=0)
    ends = os.pipe()
    with (
        opened(demo.device / "bar0") as fd,
        copy,
        open(ends[0], "rb"),
        open(ends[1], "wb") as writing,
    ):
        attempts: list[Callable[[], int]] = [
            lambda: os.sendfile(copy.fileno(), fd, 0, 4),
            lambda: os.splice(fd, writing.fileno(), 4, offset_src=0),
        ]
        for attempt in attempts:
            with pytest.raises(OSError, match="not supported") as caught:
                attempt()
            assert caught.value.errno == errno.EOPNOTSUPP
        with pytest.raises(OSError, match="No such device"):
            mmap.mmap(fd, 0x1000, mmap.MAP_SHARED, mmap.PROT_READ)
        with (
            opened(demo.other / "bar2") as target,
            pytest.raises(OSError, match=r"not supported|cross-device|Invalid"),
        ):
            os.copy_file_range(fd, target, 4, 0, 0)
    assert demo.accesses() == []


def test_a_private_mapping_is_a_fault_not_an_access(demo: Rig) -> None:
    code = (
        "import mmap, os, sys; fd = os.open(sys.argv[1], os.O_RDONLY);"
        "print(mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)[0])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, demo.device / "bar0"], capture_output=True, check=False
    )
    assert result.returncode == -signal.SIGBUS
    assert demo.accesses() == []


@pytest.mark.parametrize(
    "command",
    [
        "cp FILE OUT",
        "cat FILE > OUT",
        "dd bs=64 status=none < FILE > OUT",
        "dd bs=1M status=none < FILE > OUT",
        "tar -C DIR -cf - bar2 | tar -xOf - > OUT",
        "tar -C DIR -cSf - bar2 | tar -xOf - > OUT",
        "python3 -c 'import sys, shutil; shutil.copyfile(*sys.argv[1:])' FILE OUT",
    ],
    ids=["cp", "cat", "dd-64", "dd-1M", "tar", "tar-S", "shutil"],
)
def test_tools_copy_exactly(tmp_path: Path, command: str) -> None:
    with rig(tmp_path, options="mapping=off", text=PLAIN) as found:
        with opened(found.device / "bar2") as fd:
            content = os.urandom(0x1000)
            assert os.pwrite(fd, content, 0) == len(content)
        found.accesses()
        out = tmp_path / "out"
        places = {"FILE": found.device / "bar2", "DIR": found.device, "OUT": out}
        script = " ".join(str(places.get(word, word)) for word in command.split(" "))
        subprocess.run(["bash", "-ec", script], check=True)
        assert out.read_bytes() == content
        # Each word once, in order, and nothing that was not asked for.
        assert found.accesses() == [("r", "bar2", at, 4) for at in range(0, 0x1000, 4)]


def test_copies_between_files_of_one_mount(demo: Rig) -> None:
    """cp and shutil go by copy_file_range there, and then by plain reads and writes."""
    source, target = demo.device / "bar2", demo.other / "bar2"
    commands: list[list[str | Path]] = [
        ["cp", source, target],
        [sys.executable, "-c", COPYFILE, source, target],
    ]
    for number, command in enumerate(commands):
        content = os.urandom(1 << 20)
        content = bytes([number]) + content[1:]
        with opened(source) as fd:
            assert os.pwrite(fd, content, 0) == len(content)
        subprocess.run(command, check=True)
        with opened(target) as fd:
            assert os.pread(fd, 1 << 20, 0) == content
    assert demo.accesses() == []


COPYFILE = "import shutil, sys; shutil.copyfile(sys.argv[1], sys.argv[2])"


def test_the_rest_of_the_system_calls(demo: Rig) -> None:
    """Forwarded to pyfuse3, which has none of them; the kernel then does what it does by itself."""
    with opened(demo.device / "bar0") as fd:
        os.fsync(fd)
        os.fdatasync(fd)
        assert os.lseek(fd, 0, os.SEEK_END) == 0x10000
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0x10000
        # Not posix_fallocate(), which glibc replaces by reads and writes.
        command = ["fallocate", "-l", "0x20000", str(demo.device / "bar0")]
        assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode != 0
        with pytest.raises(OSError, match=r"not supported|No data"):
            os.getxattr(fd, "user.barf")
        os.ftruncate(fd, 0)
        assert os.fstat(fd).st_size == 0x10000
    assert demo.accesses() == []


# ---- Interrupts ---------------------------------------------------------------------------------

CLIENT = """\
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
print("opened", flush=True)
if sys.argv[2] == "r":
    print(len(os.pread(fd, int(sys.argv[4]), int(sys.argv[3]))), flush=True)
else:
    os.pwrite(fd, bytes(int(sys.argv[4])), int(sys.argv[3]))
"""


@contextlib.contextmanager
def client(path: Path, direction: str, offset: int, count: int) -> Iterator[subprocess.Popen[str]]:
    """A process that waits in the kernel for its request on a region."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT, path, direction, str(offset), str(count)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "opened\n"
        wchan = Path(f"/proc/{process.pid}/wchan")
        wait_until(lambda: wchan.read_text() == "request_wait_answer", "the request")
        yield process
    finally:
        process.kill()
        ended(process)
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("direction", ["r", "w"])
def test_a_client_that_is_killed_in_a_long_transfer(
    tmp_path: Path, number: signal.Signals, direction: str
) -> None:
    with rig(tmp_path, text=PLAIN, options="timeout=60") as found:
        with client(found.device / "bar0", direction, 0, 1 << 20) as process:
            wait_until(lambda: bool(found.server.log.read_text()), "the first access")
            process.send_signal(number)
            start = time.monotonic()
            ended(process)
            assert time.monotonic() - start < BRIEF
            brief(lambda: not found.accesses())
        # It was stopped where it was: the device is idle, and answers.
        with opened(found.device / "bar0") as fd:
            brief(lambda: os.pread(fd, 4, 0))
            last = found.accesses()[-1]
        assert last == ("r", "bar0", 0, 4)
        assert len(found.accesses()) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_queued_request_of_a_killed_client(tmp_path: Path, number: signal.Signals) -> None:
    """It never reaches the device, and its client does not wait for the one before it."""
    with rig(tmp_path, options="timeout=60") as found:
        bar0 = found.device / "bar0"
        with opened(bar0) as fd:
            os.pwrite(fd, (3000).to_bytes(4, "little"), DELAY)
        found.accesses()
        slow = threading.Thread(target=read_at, args=(bar0, DELAY))
        slow.start()
        # The device writes an access down when it answers; that it came is seen in the client.
        place = Path(f"/proc/self/task/{slow.native_id}/wchan")
        wait_until(lambda: place.read_text() == "request_wait_answer", "the slow read")
        with client(bar0, "w", 4, 4) as process:
            process.send_signal(number)
            start = time.monotonic()
            ended(process)
            assert time.monotonic() - start < BRIEF
            assert slow.is_alive()
        slow.join()
        read_at(bar0, 0x10)
        assert found.accesses() == [("r", "bar0", DELAY, 4), ("r", "bar0", 0x10, 4)]


def read_at(path: Path, offset: int, count: int = 4) -> bytes:
    with opened(path, os.O_RDONLY) as fd:
        return os.pread(fd, count, offset)


def error_of(read: "Future[bytes]") -> int | None:
    problem = read.exception()
    assert problem is None or isinstance(problem, OSError)
    return problem.errno if problem else None


def test_a_queue_whose_requests_are_answered_is_not_late(tmp_path: Path) -> None:
    """However long it is, for a device that is slow; one that hangs is given up by all in time."""
    clients, pause = 8, 300
    with (
        rig(tmp_path, options=f"timeout=1,trace={tmp_path / 'trace'}") as found,
        opened(found.device / "bar0") as fd,
        ThreadPoolExecutor(clients) as threads,
    ):

        def ask(milliseconds: int) -> tuple[list[int | None], float]:
            os.pwrite(fd, milliseconds.to_bytes(4, "little"), DELAY)
            start = time.monotonic()
            asked = [threads.submit(os.pread, fd, 4, DELAY) for _ in range(clients)]
            return [error_of(read) for read in asked], time.monotonic() - start

        errors, took = ask(pause)
        assert errors == [None] * clients
        assert took > clients * pause / 1000 > 2
        errors, took = ask(60_000)
        assert errors == [errno.ETIMEDOUT] * clients
        assert 0.9 < took < 1.7


# ---- Long and short -----------------------------------------------------------------------------


def test_a_long_transfer_delays_no_short_one(tmp_path: Path) -> None:
    with rig(tmp_path, text=PLAIN, options="timeout=60") as found:
        bar0 = found.device / "bar0"
        with (
            client(bar0, "r", 0, 1 << 20) as process,
            opened(bar0) as fd,
            opened(found.other / "bar0") as other,
            opened(found.device / "bar2") as neighbour,
        ):
            for _round in range(5):
                brief(lambda: os.pread(other, 4, 0))
                brief(lambda: os.pread(fd, 4, 0x100000))
                brief(lambda: os.pwrite(fd, b"1234", 0x100000))
                brief(lambda: os.pread(fd, 4, 4))
                brief(lambda: os.pwrite(fd, b"1234", 8))
                brief(lambda: os.pread(neighbour, 4, 0))
                brief(lambda: os.listdir(found.device))
                brief(lambda: subprocess.run(["ls", "-l", found.device], stdout=-3, check=True))
                brief(lambda: read_at(found.other / "config", 0))
                brief(lambda: (found.device / "vendor").read_text())
            assert process.poll() is None, "the long one was over before"
            assert process.stdout is not None


def test_a_long_transfer_holds_no_lock_at_the_machine_s_mercy(demo: Rig) -> None:
    """Its thread shares the interpreter's lock and the device's with those of short requests. Under
    SCHED_IDLE, a busy machine kept it from running, and them, for seconds."""
    assert len(read_at(demo.device / "bar0", 0x4000, 0x4000)) == 0x4000
    tasks = os.listdir(f"/proc/{demo.mount.process.pid}/task")
    found = {
        (os.sched_getscheduler(int(task)), os.getpriority(os.PRIO_PROCESS, int(task)))
        for task in tasks
    }
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    assert found == {(os.SCHED_OTHER, nice), (os.SCHED_BATCH, min(nice + 19, 19))}
