# SPDX-License-Identifier: MIT
"""Real mounts and real software devices: each is a process, and each is ended by its pid."""

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from barfs.attached.mounts import MountError
from barfs.fuse.fusermount import unmount
from barfs.host.mountinfo import mounts

DEADLINE = 120.0 if "BARFS_VM_GUEST" in os.environ else 30.0
"""Seconds after which a test stops waiting, and fails. In an emulated guest on a busy machine,
Python alone takes twenty to start."""

BARFS = [sys.executable, "-m", "barfs"]


def require(what: str, present: bool, reason: str) -> None:
    """Skip a test with `reason`, or fail it if BARFS_REQUIRE names `what`."""
    if present:
        return
    if what in os.environ.get("BARFS_REQUIRE", "").split(","):
        pytest.fail(reason)
    pytest.skip(reason)


def require_fuse() -> None:
    require("fuse", os.access("/dev/fuse", os.R_OK | os.W_OK), "/dev/fuse cannot be opened")


def wait_until(condition: Callable[[], bool], what: str, timeout: float = DEADLINE) -> None:
    """Poll a condition until it holds. Fails the test after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {timeout} s for {what}")
        time.sleep(0.01)


def barfs(*arguments: str | Path, timeout: float = DEADLINE) -> subprocess.CompletedProcess[str]:
    """Run a command of barfs until it exits."""
    return subprocess.run(
        [*BARFS, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def ended(process: subprocess.Popen[str], timeout: float = DEADLINE) -> int:
    """Wait for a process and return its exit code. Kills one that does not end, and fails then."""
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        pytest.fail(f"{process.args!r} did not end within {timeout} s")


@dataclass(frozen=True)
class Mounted:
    """A mount in the foreground of `process`, which logs to `log`."""

    path: Path
    process: subprocess.Popen[str]
    log: Path

    def device(self, name: str | None = None) -> Path:
        """The directory of the device `name`; without a name, of the only device."""
        if name is not None:
            return self.path / "bus" / name
        (directory,) = (self.path / "bus").iterdir()
        return directory


def is_mounted(path: Path) -> bool:
    return any(entry.mountpoint == path for entry in mounts())


def shown_mount(path: Path) -> tuple[str, set[str]]:
    """The type of the only mount on a path, and its options, the file system's own included."""
    # As bytes: this machine may have mounts of any name.
    lines = (line.split(b" ") for line in Path("/proc/self/mounts").read_bytes().split(b"\n"))
    (found,) = (fields for fields in lines if fields[1:2] == [os.fsencode(path)])
    return found[2].decode(), set(found[3].decode().split(","))


@contextlib.contextmanager
def mounted(
    folder: Path, *devices: str, options: str = "", command: Sequence[str] = BARFS
) -> Iterator[Mounted]:
    """Mount devices below `folder`; unmounted and ended afterwards, whatever happens.

    `command` runs `barfs`. The log must not contain a traceback.
    """
    require_fuse()
    path = folder / "mnt"
    path.mkdir(exist_ok=True)
    log = folder / "mount.log"
    log.unlink(missing_ok=True)
    with log.open("a") as stream:  # so that a test may empty it
        process = subprocess.Popen(
            [*command, "mount", "-f", *(["-o", options] if options else []), *devices, str(path)],
            stderr=stream,
            stdin=subprocess.DEVNULL,
            text=True,
        )
    try:
        # Found in the mount only, and only once the mount answers.
        sign = path / ".barfs"
        wait_until(lambda: sign.exists() or process.poll() is not None, "the mount")
        if process.poll() is not None:
            pytest.fail(f"barfs mount ended with {process.returncode}: {log.read_text()}")
        os.stat(path / "bus")  # comes back when the mount answers
        yield Mounted(path, process, log)
    finally:
        if process.poll() is None:
            try:
                unmount(path)
            except MountError:
                process.terminate()
        ended(process)
        assert not is_mounted(path)
        assert "Traceback" not in log.read_text()


@dataclass(frozen=True)
class Served:
    """A software device behind a socket; `log` gets a line for each access by message."""

    socket: Path
    process: subprocess.Popen[str]
    log: Path

    @property
    def name(self) -> str:
        return f"vfio-user:{self.socket}"

    def accesses(self) -> list[str]:
        """The accesses since the last call: `r|w region offset width value`."""
        lines = self.log.read_text().splitlines()
        self.log.write_text("")
        return lines


@contextlib.contextmanager
def served(folder: Path, *description: Path | str, name: str = "device") -> Iterator[Served]:
    """Run a software device, the demo device by default, in a process of its own."""
    socket = folder / f"{name}.sock"
    log = folder / f"{name}.log"
    process = subprocess.Popen(
        [*BARFS, "serve", "--socket", str(socket), "--log", str(log), *map(str, description)],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as output:
        ready, _, _ = select.select([output], [], [], DEADLINE)
        try:
            if not ready or not output.readline():
                pytest.fail(f"the software device did not start: {process.poll()}")
            yield Served(socket, process, log)
        finally:
            process.terminate()
            ended(process)
    assert not socket.exists()
