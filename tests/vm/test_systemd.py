# SPDX-License-Identifier: MIT
"""scripts/systemd/barfs@.service, and fstab's `x-systemd.automount`, under a real systemd.

It is PID 1 of a PID namespace of its own, since virtme's init is the guest's, with a mount
namespace for its `/proc`. That one stands for the machine here: what the tests see through
`Machine.root` is what everybody outside the unit sees.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import BARFS, DEADLINE, require, served, wait_until
from tests.support.guest import VFIO_PCI, bind, find_all

from .mounts import read, word

GENERATOR = Path("/usr/lib/systemd/system-generators/systemd-fstab-generator")
UNIT = Path(__file__).parents[2] / "scripts/systemd/barfs@.service"
SYSTEMD = Path("/lib/systemd/systemd")
IDENTITY = word(0x010000ED)
OTHERS = (
    *("sysinit.target", "basic.target", "shutdown.target"),
    *("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket"),
)
TARGET = "[Unit]\nRequires=systemd-journald.socket systemd-journald-dev-log.socket\n"
START = """
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /var/log
exec "$0" --system --unit=test.target --show-status=no
"""


@dataclass(frozen=True)
class Machine:
    """A running systemd: its PID out here, the folder of its units, that of their `.conf`."""

    pid: int
    units: Path
    settings: Path

    @property
    def root(self) -> Path:
        """The root directory as PID 1 sees it."""
        return Path(f"/proc/{self.pid}/root")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        inside = ["nsenter", "--target", str(self.pid), "--mount", "--pid", *command]
        return subprocess.run(inside, capture_output=True, text=True, check=False, timeout=DEADLINE)

    def property(self, unit: str, name: str) -> str:
        return self.run("systemctl", "show", "--property", name, "--value", unit).stdout.strip()

    def processes(self, unit: str) -> list[int]:
        """PIDs out here, the oldest first."""
        group = self.property(unit, "ControlGroup")
        procs = self.root / f"sys/fs/cgroup{group}/cgroup.procs"
        return sorted(map(int, procs.read_text().split()))

    def opens(self, unit: str, device: Path) -> bool:
        """Whether root may open a device node from within the unit's control group."""
        group = self.property(unit, "ControlGroup")
        join = f"echo $$ >/sys/fs/cgroup{group}/cgroup.procs || exit 0"
        return self.run("sh", "-c", f"{join}; : <{device}").returncode == 0

    def mounts(self) -> list[Path]:
        """Where barfs has mounted, and nobody took it down."""
        lines = Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()
        found = [line.split()[4] for line in lines if " - fuse.barfs " in line]
        return [Path(path.replace("\\134", "\\")) for path in found]

    def identity(self, mountpoint: Path, bdf: str) -> bytes:
        return read(self.root / f"{str(mountpoint)[1:]}/bus/{bdf}/bar0", 0, 4)

    def add(self, unit: str, setting: str) -> None:
        """As `systemctl edit` does."""
        folder = self.units / f"{unit}.d"
        folder.mkdir()
        (folder / "override.conf").write_text(f"[Service]\n{setting}\n")
        assert self.run("systemctl", "daemon-reload").returncode == 0

    def start(self, unit: str) -> None:
        result = self.run("systemctl", "start", unit)
        log = self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}").stdout
        assert result.returncode == 0, result.stderr + log


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    for program in (str(SYSTEMD), "nsenter", "unshare"):
        require("systemd", shutil.which(program) is not None, f"{program} is missing; apt install")
    subprocess.run(["modprobe", "-q", "autofs4"], check=False)  # systemd looks for it once
    units, settings = (tmp_path_factory.mktemp(name) for name in ("units", "settings"))
    for name in OTHERS:
        shutil.copy(SYSTEMD.parent / "system" / name, units)
    (units / "test.target").write_text(TARGET)
    text = UNIT.read_text().replace("/usr/bin/barfs", " ".join(BARFS))
    (units / UNIT.name).write_text(text.replace("/etc/barfs/", f"{settings}/"))
    command = ["unshare", "--fork", "--kill-child", "--pid", "--mount", "--mount-proc"]
    with subprocess.Popen(
        [*command, "sh", "-c", START, str(SYSTEMD)],
        env={"PATH": os.environ["PATH"], "container": "barfs", "SYSTEMD_UNIT_PATH": str(units)},
    ) as outside:
        children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children")
        try:
            wait_until(lambda: bool(children.read_text()), "PID 1")
            found = Machine(int(children.read_text()), units, settings)
            wait_until(
                lambda: found.property("test.target", "ActiveState") == "active", "systemd's start"
            )
            yield found
        finally:
            outside.kill()  # and with it, its child; and with that one, all of them


@contextlib.contextmanager
def started(machine: Machine, unit: str) -> Iterator[None]:
    machine.start(unit)
    try:
        yield
    finally:
        assert machine.run("systemctl", "stop", unit).returncode == 0
    assert machine.property(unit, "Result") == "success"


def test_the_mount_is_there_for_everybody_while_the_service_runs(machine: Machine) -> None:
    bdf = find_all("edu")[0]
    unit, path = f"barfs@{bdf}.service", Path("/run/barfs", bdf)
    with started(machine, unit):
        assert machine.identity(path, bdf) == IDENTITY
        assert machine.mounts() == [path]
        assert machine.property(unit, "StatusText") == f"{bdf} on {path}"
        daemon = machine.processes(unit)[0]
        assert machine.opens(unit, Path("/dev/fuse"))
        assert not machine.opens(unit, Path("/dev/kmsg"))
        assert os.readlink(f"/proc/{daemon}/ns/mnt") == os.readlink(f"/proc/{machine.pid}/ns/mnt")
    assert machine.mounts() == []
    bind(bdf, None)  # which waits for as long as somebody has it
    bind(bdf, VFIO_PCI)


def test_a_killed_mount_comes_back(machine: Machine) -> None:
    bdf = find_all("edu")[0]
    unit, path = f"barfs@{bdf}.service", Path("/run/barfs", bdf)
    with started(machine, unit):
        os.kill(machine.processes(unit)[0], signal.SIGKILL)
        wait_until(
            lambda: (
                machine.property(unit, "NRestarts") == "1"
                and machine.property(unit, "ActiveState") == "active"
            ),
            "the restart",
        )
        assert machine.identity(path, bdf) == IDENTITY
        assert machine.mounts() == [path]


@contextlib.contextmanager
def table_of_mounts(machine: Machine, folder: Path, text: str) -> Iterator[Path]:
    """mount(8)'s table, with /etc/mtab a file of its own: fusermount3 has mount(8) and umount(8)
    keep both, each in a child that it makes root by setuid(2).

    libfuse asks in mtab_needs_update() (lib/mount_util.c): 3.14 for a regular /etc/mtab, 3.15 and
    newer for no more than a writable one, 3.17.4 and newer for /run/mount/utab besides.
    """
    table = machine.root / "run/mount/utab"
    table.parent.mkdir(exist_ok=True)
    table.write_text(text)
    script = """
        mkdir "$0/real" "$0/etc"
        mount --bind /etc "$0/real"
        for file in "$0"/real/*; do ln -s "$file" "$0/etc/"; done
        rm "$0/etc/mtab"
        : >"$0/etc/mtab"
        mount --bind "$0/etc" /etc
    """
    result = machine.run("sh", "-euc", script, str(folder))
    assert result.returncode == 0, result.stderr
    try:
        yield table
    finally:
        assert machine.run("umount", "/etc", f"{folder}/real").returncode == 0
        table.unlink()


def test_the_mount_comes_and_goes_where_mount_8_keeps_a_table(
    machine: Machine, tmp_path: Path
) -> None:
    """umount(8) takes out what an earlier mount left there."""
    bdf = find_all("edu")[0]
    unit, path = f"barfs@{bdf}.service", Path("/run/barfs", bdf)
    other = "SRC=none TARGET=/srv ROOT=/ OPTS=x-other\n"
    left = f"SRC=none TARGET={path} ROOT=/ OPTS=x-left\n"
    with table_of_mounts(machine, tmp_path, left + other) as table:
        with started(machine, unit):
            assert machine.identity(path, bdf) == IDENTITY
            table.write_text(left + other)
            os.kill(machine.processes(unit)[0], signal.SIGKILL)
            wait_until(
                lambda: (
                    machine.property(unit, "NRestarts") == "1"
                    and machine.property(unit, "ActiveState") == "active"
                ),
                "the restart",
            )
            assert table.read_text() == other
            assert machine.mounts() == [path]
            table.write_text(left + other)
        assert table.read_text() == other
        assert machine.mounts() == []


def test_settings_and_a_stale_mount(machine: Machine, tmp_path: Path) -> None:
    """With the helper killed too, nobody but the unit can clear the mount away."""
    first, second = find_all("edu")[:2]
    unit, path = "barfs@both.service", tmp_path / "mnt"
    (machine.settings / "both.conf").write_text(
        f"DEVICES={first} {second}\nOPTIONS=ro,width=8\nMOUNTPOINT={path}\n"
    )
    machine.add(unit, "Restart=no")
    machine.start(unit)
    assert machine.identity(path, second) == IDENTITY
    layout = machine.root / f"{str(path)[1:]}/bus/{first}/bar0.layout"
    assert "\nwidth  8\n" in layout.read_text()
    assert layout.stat().st_mode & 0o222 == 0
    daemon, helper = machine.processes(unit)
    os.kill(helper, signal.SIGKILL)
    os.kill(daemon, signal.SIGKILL)
    wait_until(lambda: machine.property(unit, "ActiveState") == "failed", "the service's end")
    assert machine.mounts() == []


def test_a_failure_is_told_in_the_journal_and_leaves_others_alone(machine: Machine) -> None:
    """Its mount point is another's: that one's mount does not suffer."""
    first, second = find_all("edu")[:2]
    path, unit = Path("/run/barfs", first), f"barfs@{second}.service"
    (machine.settings / f"{second}.conf").write_text(f"MOUNTPOINT={path}\n")
    machine.add(unit, "Restart=no")
    with started(machine, f"barfs@{first}.service"):
        assert machine.run("systemctl", "start", unit).returncode != 0
        journal = ["journalctl", "--no-pager", "--output=cat", f"--unit={unit}", "--priority=err"]
        line = f"barfs: {path} is already a barfs mount; run: barfs umount {path}"
        wait_until(lambda: line in machine.run(*journal).stdout.splitlines(), "the journal")
        assert machine.mounts() == [path]
        assert machine.identity(path, first) == IDENTITY


def test_all_devices_and_one_that_comes_later(machine: Machine) -> None:
    """The kernel tells of it in the unit's own network namespace, too."""
    later, present = find_all("edu")[:2]
    unit, path = "barfs@all.service", Path("/run/barfs/all")
    (machine.settings / "all.conf").write_text("DEVICES=--all\n")
    bind(later, None)
    try:
        with started(machine, unit):
            assert machine.identity(path, present) == IDENTITY
            bus = machine.root / f"{str(path)[1:]}/bus"
            assert later not in os.listdir(bus)
            bind(later, VFIO_PCI)
            wait_until(lambda: later in os.listdir(bus), "the device")
            assert machine.identity(path, later) == IDENTITY
    finally:
        bind(later, VFIO_PCI)


def test_any_device_is_an_instance_when_escaped(machine: Machine, tmp_path: Path) -> None:
    """And may do what the unit's head says that an override allows."""
    with served(tmp_path) as device:
        instance = machine.run("systemd-escape", device.name).stdout.strip()
        unit = f"barfs@{instance}.service"
        machine.add(unit, "SystemCallFilter=sched_setscheduler setpriority")
        with started(machine, unit):
            path = Path("/run/barfs", instance)
            assert machine.mounts() == [path]
            bar0 = machine.root / f"{str(path)[1:]}/bus/ffff:00:00.0/bar0"
            assert read(bar0, 0, 0x1000)[:4] == b"barf"
            threads = map(int, os.listdir(f"/proc/{machine.processes(unit)[0]}/task"))
            assert os.SCHED_BATCH in map(os.sched_getscheduler, threads)


@pytest.fixture(scope="module")
def automounts(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine on which `barfs` is a command."""
    require("systemd", Path("/dev/autofs").exists(), "this kernel has no autofs")
    folder = tmp_path_factory.mktemp("bin")
    (folder / "barfs").write_text(f'#!/bin/sh\nexec {sys.executable} -m barfs "$@"\n')
    (folder / "barfs").chmod(0o755)
    assert machine.run("mount", "--bind", str(folder), "/usr/local/bin").returncode == 0
    return machine


class Line:
    """A line of fstab, made into units and waited on."""

    def __init__(self, machine: Machine, folder: Path, device: str, options: str) -> None:
        self.machine = machine
        self.path = folder / "mnt"
        fstab = folder / "fstab"
        fstab.write_text(
            f"{device} {self.path} fuse.barfs noauto,x-systemd.automount,{options} 0 0\n"
        )
        subprocess.run(
            [GENERATOR, folder, folder, folder], check=True, env={"SYSTEMD_FSTAB": str(fstab)}
        )
        (automount,) = folder.glob("*.automount")
        self.unit = automount.stem
        for kind in ("automount", "mount"):
            shutil.copy(folder / f"{self.unit}.{kind}", machine.units)
        assert machine.run("systemctl", "daemon-reload").returncode == 0
        machine.start(automount.name)

    def state(self) -> str:
        return self.machine.property(f"{self.unit}.mount", "ActiveState")

    def read(self, file: str) -> subprocess.CompletedProcess[str]:
        """From inside: an automount point lets nobody in who is outside the PID namespace."""
        return self.machine.run("od", "-An", "-tx4", "-N4", "-w4", f"{self.path}/bus/{file}")


def test_who_looks_gets_the_device(automounts: Machine, tmp_path: Path) -> None:
    bdf = find_all("edu")[0]
    line = Line(automounts, tmp_path, bdf, "ro,width=8,x-systemd.idle-timeout=2")
    assert line.state() == "inactive"
    assert automounts.mounts() == []

    found = line.read(f"{bdf}/bar0")
    assert (found.stdout.split(), found.stderr) == (["010000ed"], "")
    assert automounts.mounts() == [line.path]
    assert automounts.run("findmnt", "-n", "-o", "SOURCE", "-t", "fuse.barfs").stdout == f"{bdf}\n"
    layout = automounts.run("cat", f"{line.path}/bus/{bdf}/bar0.layout").stdout
    assert "\nwidth  8\n" in layout

    wait_until(lambda: line.state() == "inactive", "the end of a mount that nobody uses")
    assert automounts.mounts() == []
    bind(bdf, None)  # which waits for as long as somebody has it
    bind(bdf, VFIO_PCI)
    assert line.read(f"{bdf}/bar0").stdout.split() == ["010000ed"]
    assert automounts.run("systemctl", "stop", f"{line.unit}.automount").returncode == 0
    wait_until(lambda: automounts.mounts() == [], "the end of the mount")


def test_who_looks_for_a_device_that_is_not_there_is_told(
    automounts: Machine, tmp_path: Path
) -> None:
    line = Line(automounts, tmp_path, "fffe:1f:1f.7", "nofail")
    found = line.read("fffe:1f:1f.7/bar0")
    assert found.returncode != 0
    assert found.stderr.endswith(": No such device\n")
    journal = ["journalctl", "--no-pager", "--output=cat", f"--unit={line.unit}.mount"]
    told = "barfs: fffe:1f:1f.7: no such PCI device; barfs list shows those present"
    wait_until(lambda: told in automounts.run(*journal).stdout.splitlines(), "the journal")


def test_an_address_where_it_is_a_files_name(automounts: Machine, tmp_path: Path) -> None:
    """mount(8) makes a path of it, and knows the mount by that."""
    bdf = find_all("edu")[0]
    script = f"cd /sys/bus/pci/devices; mount -t fuse.barfs {bdf} {tmp_path}"
    found = automounts.run("sh", "-c", script)
    assert (found.returncode, found.stderr) == (0, "")
    try:
        assert automounts.identity(tmp_path, bdf) == IDENTITY
        source = automounts.run("findmnt", "-n", "-o", "SOURCE", str(tmp_path)).stdout.strip()
        assert source == str(Path("/sys/bus/pci/devices", bdf).resolve())
    finally:
        assert automounts.run("umount", str(tmp_path)).returncode == 0
