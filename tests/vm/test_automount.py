# SPDX-License-Identifier: MIT
"""A line of fstab with `x-systemd.automount`, under a real systemd: who looks gets the device."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import require, wait_until

from .guest import SCRATCH, VFIO_PCI, bind, find_all
from .test_systemd import Machine, machine

__all__ = ["machine"]

GENERATOR = Path("/usr/lib/systemd/system-generators/systemd-fstab-generator")


@pytest.fixture(scope="module")
def _autofs() -> None:
    subprocess.run(["modprobe", "-q", "autofs4"], check=False)
    require("systemd", Path("/dev/autofs").exists(), "this kernel has no autofs")


@pytest.fixture(scope="module")
def automounts(_autofs: None, request: pytest.FixtureRequest) -> Machine:
    """A machine on which `barfs` is a command."""
    found: Machine = request.getfixturevalue("machine")
    folder = SCRATCH / "bin"
    folder.mkdir()
    (folder / "barfs").write_text(f'#!/bin/sh\nexec {sys.executable} -m barfs "$@"\n')
    (folder / "barfs").chmod(0o755)
    assert found.run("mount", "--bind", str(folder), "/usr/local/bin").returncode == 0
    return found


class Line:
    """A line of fstab, made into units and waited on."""

    def __init__(self, machine: Machine, folder: Path, device: str, options: str) -> None:
        self.machine = machine
        self.path = SCRATCH / folder.name / "mnt"
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
    told = "barfs: fffe:1f:1f.7: no such PCI device; lspci -D lists the devices there are"
    wait_until(lambda: told in automounts.run(*journal).stdout.splitlines(), "the journal")
