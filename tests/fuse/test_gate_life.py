# SPDX-License-Identifier: MIT
"""How a mount begins and ends with the gate in it: what holds it, what it holds, what it costs."""

import contextlib
import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from barfs.attached.mounts import MountError
from barfs.fuse.fusermount import unmount
from tests.support import BARFS, barfs, ended, is_mounted, mounted, require_fuse, served, wait_until

PATIENCE = 20.0


def run_python(code: str, *arguments: str | Path) -> str:
    """Run code of its own process; it must end, and well."""
    require_fuse()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail("it hangs")
    assert process.returncode == 0, output
    return output


NOTIFYING = """
import faulthandler, os, sys, threading
from pathlib import Path
import pyfuse3, trio
from barfs.fuse.gate import Gate
from barfs.fuse.filesystem import Filesystem
from barfs.fuse.fusermount import FuseMount, unmount
from barfs.fuse.tree import Tree

mountpoint = Path(sys.argv[1])
faulthandler.dump_traceback_later(20, exit=True)
asleep, go_on = trio.Event(), trio.Event()

class Sleeping(Filesystem):
    async def lookup(self, parent_inode, name, ctx):
        if name == b"slow":
            asleep.set()
            await go_on.wait()
            raise pyfuse3.FUSEError(2)
        return await super().lookup(parent_inode, name, ctx)

tree = Tree()
fuse = FuseMount(mountpoint, source="test")
gate = Gate(fuse.fd)
pyfuse3.init(Sleeping(tree, uid=os.getuid(), gid=os.getgid()), f"/dev/fd/{gate.libfuse_fd}", set())
found = []

def look():
    found.append(os.path.exists(mountpoint / "bus" / "slow"))

def notifying():
    # Whether a thread waits in the kernel for the lock that the lookup holds.
    return any(
        Path(f"/proc/self/task/{thread}/wchan").read_text() in PLACES
        for thread in os.listdir("/proc/self/task")
    )

PLACES = "fuse_reverse_inval_entry", "rwsem_down_write_slowpath"

async def main():
    token = trio.lowlevel.current_trio_token()
    async with trio.open_nursery() as nursery:
        gate.start(lambda: token.run_sync_soon(pyfuse3.terminate))
        nursery.start_soon(pyfuse3.main)
        looker = threading.Thread(target=look)
        looker.start()
        await asleep.wait()
        # The kernel holds the directory's lock for the lookup, and the notification wants it.
        pyfuse3.invalidate_entry_async(tree.bus.inode, b"slow")
        pyfuse3.invalidate_entry_async(tree.bus.inode, b"nothing")
        with trio.fail_after(10):
            while not notifying():
                await trio.sleep(0.01)
            names = await trio.to_thread.run_sync(os.listdir, mountpoint)
            assert sorted(names) == ["bus", "devices", "flat"], names
            go_on.set()
            await trio.to_thread.run_sync(looker.join)
        assert found == [False]
        await trio.to_thread.run_sync(unmount, mountpoint)
    assert await trio.to_thread.run_sync(gate.stop, 5.0)

trio.run(main)
pyfuse3.close(unmount=False)
gate.close()
fuse.close()
print("done")
"""


def test_a_notification_while_a_lookup_sleeps(tmp_path: Path) -> None:
    """It blocks in the kernel until the lookup is answered, and nothing else may wait for it."""
    path = tmp_path / "mnt"
    path.mkdir()
    try:
        assert run_python(NOTIFYING, path).endswith("done\n")
    finally:
        if is_mounted(path):
            # Nothing else frees who waits for whom then.
            subprocess.run(["umount", "-f", path], capture_output=True, check=False)
            with contextlib.suppress(MountError):
                unmount(path, lazy=True)


@contextlib.contextmanager
def foreground(folder: Path, *devices: str) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A mount that a test takes down in its own way."""
    require_fuse()
    path = folder / "mnt"
    path.mkdir()
    process = subprocess.Popen(
        [*BARFS, "mount", "-f", *devices, str(path)], stdin=subprocess.DEVNULL, text=True
    )
    try:
        sign = path / ".barfs"
        wait_until(lambda: sign.exists() or process.poll() is not None, "the mount")
        assert process.poll() is None
        yield path, process
    finally:
        if is_mounted(path):
            with contextlib.suppress(MountError):
                unmount(path, lazy=True)
        if process.poll() is None:
            process.terminate()
        ended(process)


def test_a_plain_unmount_with_files_open(tmp_path: Path) -> None:
    with foreground(tmp_path, "demo") as (path, process):
        region = next(path.glob("bus/*/bar0"))
        with region.open("rb", buffering=0) as file:
            result = subprocess.run(["umount", path], capture_output=True, text=True, check=False)
            assert result.returncode != 0
            assert "busy" in result.stderr
            assert file.read(4) == b"barf"
            assert process.poll() is None
        assert barfs("umount", path).returncode == 0
        assert ended(process) == 0


def test_a_lazy_unmount_with_files_open(tmp_path: Path) -> None:
    """The files stay good; when the last one is closed, it is over and the devices are free."""
    with served(tmp_path) as server, foreground(tmp_path, server.name) as (path, process):
        region = next(path.glob("bus/*/bar0"))
        with region.open("r+b", buffering=0) as file:
            unmount(path, lazy=True)
            assert not is_mounted(path)
            assert file.read(4) == b"barf"
            assert os.pwrite(file.fileno(), b"1234", 0x3000) == 4
            assert process.poll() is None
        assert ended(process, PATIENCE) == 0
        assert barfs("layout", server.name, "bar0").returncode == 0, "the device was given back"


@pytest.mark.skipif(os.getuid() != 0, reason="only root unmounts by force")
def test_a_forced_unmount_with_files_open(tmp_path: Path) -> None:
    with served(tmp_path) as server, foreground(tmp_path, server.name) as (path, process):
        region = next(path.glob("bus/*/bar0"))
        with region.open("r+b", buffering=0) as file:
            subprocess.run(["umount", "-f", path], capture_output=True, check=False)
            assert ended(process, PATIENCE) == 0
            with pytest.raises(OSError, match=r"not connected|aborted") as caught:
                file.read(4)
            assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
            assert barfs("layout", server.name, "bar0").returncode == 0
            assert not is_mounted(path)


def test_a_peer_that_is_killed(tmp_path: Path) -> None:
    with served(tmp_path) as server, mounted(tmp_path, server.name, "demo") as mount:
        lost, other = mount.device("ffff:00:00.0"), mount.device("ffff:00:01.0")
        fd = os.open(lost / "bar0", os.O_RDWR)
        try:
            server.process.kill()
            ended(server.process)
            server.socket.unlink(missing_ok=True)

            def refused() -> bool:
                try:
                    os.close(os.open(lost / "bar2", os.O_RDONLY))
                except OSError as error:
                    return error.errno == errno.ENXIO
                return False

            # Nobody accesses it: the mount sees by itself that the peer has hung up.
            wait_until(refused, "ENXIO", 5)
            for offset in (0, 0x1000, 0x4000):
                with pytest.raises(OSError, match="No such device") as caught:
                    os.pread(fd, 4, offset)
                assert caught.value.errno == errno.ENODEV
            with pytest.raises(OSError, match="No such device"):
                os.pwrite(fd, b"1234", 0x3000)
        finally:
            os.close(fd)
        with (other / "bar0").open("rb", buffering=0) as file:
            assert file.read(4) == b"barf"


def costs(pid: int) -> tuple[int, int]:
    """Ticks of CPU that a process has used, and how often its threads were woken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    switches = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                switches += int(line.split()[1])
    return int(fields[11]) + int(fields[12]), switches


def test_an_idle_mount_costs_nothing(tmp_path: Path) -> None:
    with served(tmp_path) as server, mounted(tmp_path, server.name, "demo") as mount:
        for device in mount.path.glob("bus/*"):
            for region in ("bar0", "config"):  # so that every thread there can be is there
                for count in (4, 4096):
                    with (device / region).open("rb", buffering=0) as file:
                        os.pread(file.fileno(), count, 0)
        seen: list[tuple[int, int]] = []

        def quiet() -> bool:
            """Whether a second went by in which no thread was woken."""
            before = costs(mount.process.pid)
            time.sleep(1)  # what is measured is this second
            seen.append(costs(mount.process.pid))
            return seen[-1] == before

        # The first seconds may hold what the reads above left to do.
        wait_until(quiet, f"a quiet second: {seen}", 6)
