# SPDX-License-Identifier: MIT
"""A daemon holds no more after much use than before."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from barfs.attached.mounts import MountError
from barfs.emulated.demo import demo_device
from barfs.fuse.fusermount import unmount
from tests.campaign import mount_cycles
from tests.campaign.conftest import Campaign
from tests.campaign.rig import GAP, WINDOW, Client, Held, software
from tests.support import mounted, require_fuse, wait_until

MIB = 1 << 20


def assert_no_more(before: Held, after: Held) -> None:
    assert after.fds == before.fds
    # Fewer, where a worker of trio's has ended for want of work.
    assert after.threads <= before.threads
    assert after.rss - before.rss <= MIB


def difference(before: Held, after: Held) -> str:
    return (
        f"{before.fds} fds {after.fds - before.fds:+d}, "
        f"{before.threads} threads {after.threads - before.threads:+d}, "
        f"RSS {before.rss // 1024} KiB {(after.rss - before.rss) // 1024:+d} KiB"
    )


def open_each(folder: Path, times: int) -> int:
    """Open and close each file of a directory; returns how often that was."""
    files = [entry.path for entry in os.scandir(folder)]
    for path in files:
        for _time in range(times):
            os.close(os.open(path, os.O_RDONLY))
    return len(files) * times


def test_use_leaves_nothing_behind(tmp_path: Path, campaign: Campaign, client: Client) -> None:
    operations, opens = campaign.size(40_000, 1_000_000), campaign.size(50, 1_000)
    with software(tmp_path, demo_device()) as name, mounted(tmp_path, name, "demo") as mount:
        folders = [mount.device(f"ffff:00:0{number}.0") for number in range(2)]

        def use(operations: int, opens: int) -> int:
            for folder in folders:
                places = folder / "bar0", WINDOW, GAP, folder / "vendor"
                client.run("mixed", operations // 2, *places, timeout=600)
            return sum(open_each(folder, opens) for folder in folders)

        use(40_000, 50)  # after which nothing grows any more
        before = Held.by(mount.process.pid)
        opened = use(operations, opens)
        # The close of a file is told to the mount when it is over.
        wait_until(lambda: Held.by(mount.process.pid).fds <= before.fds, "the last release")
        after = Held.by(mount.process.pid)
    assert_no_more(before, after)
    what = f"{operations} operations, {opened} opens"
    campaign.report("no leaks", f"{what}: {difference(before, after)}")


def test_mounts_leave_nothing_behind(tmp_path: Path, campaign: Campaign) -> None:
    """In one process, which makes them, uses them and ends them."""
    require_fuse()
    cycles = campaign.size(20, 200)
    path = tmp_path / "mnt"
    path.mkdir()
    try:
        result = subprocess.run(
            [sys.executable, "-m", mount_cycles.__name__, str(path), str(cycles)],
            capture_output=True,
            text=True,
            timeout=campaign.size(60, 600),
            check=False,
        )
    finally:
        with contextlib.suppress(MountError):
            unmount(path, lazy=True)
    assert result.returncode == 0, result.stderr
    before, after = (Held(*map(int, line.split())) for line in result.stdout.splitlines())
    assert_no_more(before, after)
    assert not list(path.iterdir())
    campaign.report("no leaks", f"{cycles} mounts in one process: {difference(before, after)}")


def test_servers_that_restart_leave_nothing_behind(tmp_path: Path, campaign: Campaign) -> None:
    cycles = campaign.size(50, 1_000)
    with contextlib.ExitStack() as first:
        name = first.enter_context(software(tmp_path, demo_device()))
        with mounted(tmp_path, name, "demo", options="reconnect") as mount:
            bar0 = mount.device("ffff:00:00.0") / "bar0"

            def restart() -> None:
                assert len(bar0.read_bytes()) > 0
                first.close()
                wait_until(lambda: not os.path.exists(bar0), "the device to leave")
                first.enter_context(software(tmp_path, demo_device()))
                wait_until(lambda: os.path.exists(bar0), "the device to come back")

            for _cycle in range(10):  # after which nothing grows any more
                restart()
            before = Held.by(mount.process.pid)
            for _cycle in range(cycles):
                restart()
            wait_until(
                lambda: Held.by(mount.process.pid).fds <= before.fds, "the last one to be closed"
            )
            after = Held.by(mount.process.pid)
        campaign.report("servers that restart", f"{cycles} times: {difference(before, after)}")
    assert after.fds == before.fds
    assert after.threads <= before.threads
