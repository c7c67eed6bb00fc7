# SPDX-License-Identifier: MIT
"""The measured processes: each is started, awaited, and ended by its pid."""

import contextlib
import hashlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
DESCRIPTION = HERE / "device.toml"
BARFS = [sys.executable, "-m", "barfs"]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "barfs" / "bench"

_DEADLINE = 60.0
_POLL = 0.002


class BenchError(Exception):
    """The measurement cannot run; one line."""


def pinned() -> list[str]:
    """The words before a command that pin it to one CPU: the last that this process may use."""
    return ["taskset", "-c", str(max(os.sched_getaffinity(0)))]


def build(name: str) -> Path:
    """Build NAME.c with -O2, once; returns the program."""
    source = HERE / f"{name}.c"
    key = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    program = CACHE / f"{name}-{key}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        unfinished = program.with_suffix(f".{os.getpid()}")
        fuse = shlex.split(_output(["pkg-config", "--cflags", "--libs", "fuse3"]))
        warnings = ["-Wall", "-Wextra", "-Wconversion"]
        _output(["gcc", "-std=gnu11", "-O2", *warnings, str(source), "-o", str(unfinished), *fuse])
        unfinished.rename(program)
    return program


def _output(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BenchError(f"{shlex.join(command)}: {result.stderr.strip()}")
    return result.stdout


@dataclass(frozen=True, slots=True)
class Process:
    """A process that is ready, and the seconds it took to get there."""

    pid: int
    seconds: float


@contextlib.contextmanager
def running(command: Sequence[str], ready: Callable[[], bool], log: Path) -> Iterator[Process]:
    """Run a command and wait until it is ready; end it by SIGTERM, or SIGKILL if need be."""
    with log.open("w") as stream:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        while not ready():
            if process.poll() is not None or time.perf_counter() > start + _DEADLINE:
                raise BenchError(f"{shlex.join(command)[:200]}: {log.read_text().strip()}")
            time.sleep(_POLL)
        yield Process(process.pid, time.perf_counter() - start)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def mounted(
    command: Sequence[str], mountpoint: Path, sign: str, prefix: Sequence[str]
) -> Iterator[Process]:
    """Run a file system in the foreground; `sign` is a name that exists once it answers."""
    mountpoint.mkdir()
    try:
        with running(
            [*prefix, *command, str(mountpoint)],
            (mountpoint / sign).exists,
            mountpoint.with_suffix(".log"),
        ) as process:
            yield process
    finally:
        if os.path.ismount(mountpoint):
            subprocess.run(["fusermount3", "-u", "-z", "--", str(mountpoint)], check=False)


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount and its process. `files` are 1 MiB of memory each, mapped windows in barfs."""

    process: Process
    files: Sequence[Path]

    def target(self, number: int = 0, offset: int = 0) -> str:
        """A file in the client's notation, with the process whose CPU time counts."""
        return f"{self.files[number]}@{offset}@{self.process.pid}"


@contextlib.contextmanager
def c_mount(folder: Path, *, prefix: Sequence[str] = (), threads: bool = False) -> Iterator[Mount]:
    """The C server with four files; with `threads` it runs fuse_session_loop_mt."""
    mountpoint = folder / ("c-threads" if threads else "c")
    command = [str(build("server")), *(["-m"] if threads else []), "-n", "4"]
    with mounted(command, mountpoint, "file0", prefix) as process:
        yield Mount(process, [mountpoint / f"file{number}" for number in range(4)])


@contextlib.contextmanager
def device(folder: Path, name: str, prefix: Sequence[str] = ()) -> Iterator[str]:
    """A software device in its own process; yields its name for barfs."""
    socket = folder / f"{name}.sock"
    command = [*prefix, *BARFS, "serve", "--socket", str(socket), str(DESCRIPTION)]
    log = folder / f"{name}.log"
    with running(command, lambda: "listening" in log.read_text(), log):
        yield f"vfio-user:{socket}"


@contextlib.contextmanager
def devices(folder: Path, name: str, count: int) -> Iterator[list[str]]:
    """As `device`, but several in one process."""
    sockets = [str(folder / f"{name}-{number}.sock") for number in range(count)]
    log = folder / f"{name}.log"
    command = [sys.executable, "-m", "bench_lib.devices", str(DESCRIPTION), *sockets]
    with running(command, lambda: "listening" in log.read_text(), log):
        yield [f"vfio-user:{socket}" for socket in sockets]


@contextlib.contextmanager
def barfs_mount(
    folder: Path,
    name: str,
    sources: Sequence[str],
    prefix: Sequence[str] = (),
    options: Sequence[str] = (),
) -> Iterator[Mount]:
    """Devices mounted by barfs; `files` are bar0 to bar4 of the last one."""
    mountpoint = folder / name
    command = [*BARFS, "mount", "-f", *options, *sources]
    with mounted(command, mountpoint, ".barfs", prefix) as process:
        last = max((mountpoint / "bus").iterdir())
        yield Mount(process, [last / f"bar{number}" for number in range(5)])


def rss_anon(pid: int) -> int:
    """Anonymous resident memory of a process, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise BenchError(f"/proc/{pid}/status has no RssAnon")
