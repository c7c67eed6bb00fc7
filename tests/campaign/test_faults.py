# SPDX-License-Identifier: MIT
"""Lost memory and bugs in barfs cost a request, never the daemon."""

import ctypes
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from barfs.emulated.demo import demo_device
from tests.campaign import broken_daemon
from tests.campaign.conftest import Campaign
from tests.campaign.rig import BAR2, GAP, Client, Memory, software
from tests.support import BARFS, ended, is_mounted, mounted, wait_until


def test_losing_the_memory_of_a_device(tmp_path: Path, campaign: Campaign, client: Client) -> None:
    wanted = campaign.size(5_000, 100_000)
    device = demo_device(sealed=False)
    memory = Memory.of(device, BAR2)
    with software(tmp_path, device) as name, mounted(tmp_path, name) as mount:
        found = client.run(
            "storm",
            *(wanted, campaign.size(30, 600)),
            *(memory.fd, memory.start, memory.end, mount.device() / "bar2"),
            pass_fds=(memory.fd,),
            timeout=campaign.size(60, 660),
        )
        assert mount.process.poll() is None
        # Nothing is damaged: the same mapping works as before.
        fd = os.open(mount.device() / "bar2", os.O_RDWR)
        try:
            content = os.urandom(1 << 20)
            assert os.pwrite(fd, content, 0) == len(content)
            assert os.pread(fd, len(content), 0) == content
        finally:
            os.close(fd)
    assert found["faults"] >= wanted
    assert found["whole"] > 0, "nothing was there to be lost"
    assert (found["wrong"], found["refused"]) == (0, 0)
    campaign.report(
        "losing the device's memory never kills the daemon",
        f"{found['faults']} faults in {found['requests']} requests of 8 readers and writers, "
        f"{found['truncations']} truncations: 0 deaths, {found['wrong']} wrong bytes",
    )


@pytest.mark.parametrize("faulthandler", [False, True], ids=["blocked", "faulthandler"])
def test_the_guard_of_a_mount_survives_its_surroundings(
    tmp_path: Path, campaign: Campaign, client: Client, faulthandler: bool
) -> None:
    """A daemon that was started with SIGBUS blocked, or with faulthandler for SIGBUS; the other
    cases need no mount (`tests/unit/engine/test_sigbus.py`)."""
    wanted = campaign.size(500, 10_000)
    device = demo_device(sealed=False)
    memory = Memory.of(device, BAR2)
    command = ["env", "--block-signal=BUS", *BARFS]
    if faulthandler:
        command = [sys.executable, "-X", "faulthandler", "-m", "barfs"]
    with software(tmp_path, device) as name, mounted(tmp_path, name, command=command) as mount:
        found = client.run(
            *("storm", wanted, campaign.size(30, 600), memory.fd, memory.start, memory.end),
            mount.device() / "bar2",
            pass_fds=(memory.fd,),
        )
        assert found["faults"] >= wanted
        assert (found["wrong"], found["refused"]) == (0, 0)
        assert "Bus error" not in mount.log.read_text()
        # A foreign SIGBUS still ends the process, reported by faulthandler if that is enabled.
        mount.process.send_signal(signal.SIGBUS)
        assert ended(mount.process) == -signal.SIGBUS
        wait_until(lambda: not is_mounted(mount.path), "the helper to unmount")
        assert ("Fatal Python error: Bus error" in mount.log.read_text()) == faulthandler
    how = "faulthandler enabled" if faulthandler else "SIGBUS blocked"
    campaign.report(
        "the guard survives its surroundings",
        f"{how}: {found['faults']} faults recovered, a foreign SIGBUS ends the daemon as ever",
    )


# ---- Mistakes -----------------------------------------------------------------------------------


def set_times(path: Path) -> None:
    os.utime(path, (1, 1))


def stat_anew(path: Path) -> None:
    """Stat without believing what the kernel remembers."""
    libc, found = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(256)
    if libc.statx(-1, os.fsencode(path), AT_STATX_FORCE_SYNC, STATX_BASIC, found):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def read_anew(path: Path) -> bytes:
    """Read a text without what the kernel has kept of it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.read(fd, 4096)
    finally:
        os.close(fd)


AT_STATX_FORCE_SYNC, STATX_BASIC = 0x2000, 0x7FF


def read_at(path: Path, offset: int) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, 4, offset)
    finally:
        os.close(fd)


def write_at(path: Path, offset: int) -> int:
    fd = os.open(path, os.O_WRONLY)
    try:
        return os.pwrite(fd, b"1234", offset)
    finally:
        os.close(fd)


REGISTER = "registers/bar0/SCRATCH"

UNHEARD = ("release", "releasedir")
"""Handlers whose errors the kernel tells no caller, which does not wait for them either."""

UNUSED = {"forget"}
"""The kernel sends it at a time of its own."""

USES: dict[str, list[Callable[[Path], object]]] = {
    "lookup": [lambda device: os.stat(device / "nothing")],
    "getattr": [stat_anew],
    "setattr": [lambda device: set_times(device / "bar0")],
    "readlink": [lambda device: os.readlink(device.parents[1] / "devices")],
    "opendir": [os.listdir],
    "readdir": [os.listdir],
    "open": [lambda device: (device / "vendor").read_text()],
    "read": [lambda device: read_anew(device / "vendor")],
    "statfs": [os.statvfs],
    "write": [lambda device: (device / REGISTER).write_text("1")],
    "release": [lambda device: (device / REGISTER).read_text()],
    "releasedir": [lambda device: os.listdir((device / REGISTER).parent)],
    "_refuse": [
        lambda device: os.mkdir(device / "new"),
        lambda device: os.mknod(device / "new"),
        lambda device: os.symlink("vendor", device / "new"),
        lambda device: os.link(device / "vendor", device / "new"),
        lambda device: os.rename(device / "vendor", device / "new"),
        lambda device: os.unlink(device / "vendor"),
        lambda device: os.rmdir(device),
        lambda device: os.close(os.open(device / "new", os.O_CREAT | os.O_WRONLY)),
    ],
    "Call.read": [lambda device: read_at(device / "bar0", GAP)],
    "Call.write": [lambda device: write_at(device / "bar0", GAP)],
}
"""User actions on a device's directory that reach each function of barfs."""


def error_of(use: Callable[[Path], object], device: Path) -> int:
    """The errno that it ends with; 0 where it works."""
    try:
        use(device)
    except OSError as error:
        return error.errno or -1
    return 0


def tracebacks(log: Path) -> int:
    return log.read_text().count("Traceback (most recent call last)")


def test_a_bug_fails_one_request(tmp_path: Path, campaign: Campaign) -> None:
    order, made = tmp_path / "order", tmp_path / "order.made"
    order.write_text("")
    command = ["env", f"BROKEN={order}", sys.executable, "-m", broken_daemon.__name__]
    assert set(USES) == (set(broken_daemon.handlers()) | {"Call.read", "Call.write"}) - UNUSED
    uses = dict(USES)
    if os.getuid():
        del uses["_refuse"]  # the kernel refuses these to everyone but root
    raised = 0
    with mounted(tmp_path, "demo", command=command) as mount:
        device = mount.device()
        for _round in range(campaign.size(1, 20)):
            for mistake in broken_daemon.MISTAKES:
                for place, actions in uses.items():
                    for use in actions:
                        order.write_text(f"{place} {mistake}")
                        expected = 0 if place in UNHEARD else errno.EIO
                        assert error_of(use, device) == expected, (place, mistake)
                        wait_until(made.exists, f"the mistake in {place}")
                        order.write_text("")
                        # More than one where the kernel asks again by itself.
                        times = made.read_text().count("\n")
                        wait_until(lambda: tracebacks(mount.log) > 0, "the traceback")
                        log = mount.log.read_text()
                        assert tracebacks(mount.log) == times > 0, log
                        assert log.count(f"\n{mistake}: ") + log.count(f"| {mistake}: ") == times
                        raised += times
                        mount.log.write_text("")
                        made.unlink()
                        assert error_of(use, device) in (0, errno.ENOENT, errno.EPERM)
        assert mount.process.poll() is None
    places = sum(map(len, uses.values()))
    campaign.report(
        "a bug fails one request",
        f"{raised} exceptions of {len(broken_daemon.MISTAKES)} types in {places} places: "
        "0 exits, EIO and one traceback each",
    )
