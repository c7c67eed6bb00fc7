# SPDX-License-Identifier: MIT
"""list, doctor, bind, unbind on a real kernel: what they say is so, what they do is undone."""

import json
import logging
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from barfs.cli import main
from tests.support import BARFS, DEADLINE, guest, wait_until
from tests.support.guest import SCRATCH, SPARSE_VFIO_PCI, VFIO_PCI

NOBODY = 65534
IDENTITY = 0x010000ED

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs a command in this process (a new one takes 5 s here): exit code, output, errors."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(*words: str) -> tuple[int, str, str]:
        return main(words), *capsys.readouterr()

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


def lspci() -> dict[str, tuple[int, str]]:
    """Class (base and sub) and ids of each function, as pciutils see them."""
    text = subprocess.run(["lspci", "-Dn"], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^(\S+) ([0-9a-f]{4}): ([0-9a-f]{4}:[0-9a-f]{4})", text, re.MULTILINE)
    return {bdf: (int(kind, 16), ids) for bdf, kind, ids in found}


def override(bdf: str) -> str:
    return Path("/sys/bus/pci/devices", bdf, "driver_override").read_text().strip()


@pytest.fixture
def edu() -> Iterator[str]:
    """An edu without a driver, which comes to vfio-pci again afterwards."""
    with guest.bound("edu", None) as bdf:
        yield bdf


def test_list_agrees_with_lspci(command: Command) -> None:
    code, text, errors = command("list", "--json")
    assert (code, errors) == (0, "")
    listed = {
        entry["bdf"]: (entry["class"] >> 8, f"{entry['vendor']:04x}:{entry['device']:04x}")
        for entry in json.loads(text)
    }
    assert listed == lspci()
    for entry in json.loads(text):
        assert entry["driver"] == guest.driver(entry["bdf"])

    _, table, _ = command("list")
    assert [line.split()[0] for line in table.splitlines()] == ["BDF", *lspci()]
    (line,) = (line for line in table.splitlines() if line.startswith(guest.find("edu")))
    assert "vfio-pci" in line
    assert "/dev/vfio/" in line
    assert line.endswith("  -")


def test_doctor_agrees_with_lspci(command: Command) -> None:
    code, text, errors = command("doctor")
    assert (code, errors) == (0, "")
    assert {line.split()[0] for line in text.splitlines()} <= {"ok", "note"}
    for bdf, (kind, _ids) in lspci().items():
        code, text, _ = command("doctor", bdf)
        driver = guest.driver(bdf)
        if kind >> 8 == 0x06:
            assert f"FAIL  {bdf} is a bridge" in text
        elif driver in (VFIO_PCI, SPARSE_VFIO_PCI):
            assert f"ok    {bdf}: bound to {driver}" in text
        else:
            assert re.search(rf"^FAIL  {bdf} (is bound to {driver}|has no driver)", text, re.M)
        assert (code == 0) == ("FAIL" not in text)


def test_a_foreign_driver_in_the_group_is_named(command: Command) -> None:
    if guest.vfio_path() == "noiommu":
        pytest.skip("without an IOMMU every device is a group of its own")
    driver = foreign_driver()
    first, second = (bdf for bdf in guest.find_all("edu") if ":1a." in bdf)
    assert guest.iommu_group(first) == guest.iommu_group(second)
    guest.bind(second, driver)
    try:
        code, text, _ = command("doctor", first)
        assert code == 1
        assert (
            f"is not viable: {second} is bound to {driver}: barfs bind --group-members {first}"
            in text
        )
        _, table, _ = command("list")
        assert f"is not viable: {second} is bound to {driver}" in table
    finally:
        guest.bind(second, VFIO_PCI)


def foreign_driver() -> str:
    """A driver that takes any function, and that VFIO does not tolerate in a group."""
    driver = "uio_pci_generic"
    subprocess.run(["modprobe", "-q", driver], check=False)
    if not Path("/sys/bus/pci/drivers", driver).exists():
        pytest.skip(f"this kernel has no {driver}")
    return driver


@pytest.mark.parametrize("driver", [VFIO_PCI, SPARSE_VFIO_PCI])
def test_unbind_gives_back_what_was_there(edu: str, command: Command, driver: str) -> None:
    code, planned, _ = command("bind", "--dry-run", edu, "--driver", driver)
    assert code == 0
    assert f"echo {driver} > " in planned
    assert (guest.driver(edu), override(edu)) == (None, "(null)")

    code, said, errors = command("bind", edu, "--driver", driver)
    assert (code, errors) == (0, "")
    assert said.startswith(f"{edu} is bound to {driver}: /dev/vfio/")
    assert guest.driver(edu) == driver

    code, said, errors = command("unbind", edu)
    assert (code, said, errors) == (0, f"{edu} has no driver\n", "")
    assert (guest.driver(edu), override(edu)) == (None, "(null)")


def test_a_disk_comes_back_to_its_driver_and_is_kept_while_in_use(command: Command) -> None:
    subprocess.run(["modprobe", "-q", "nvme"], check=False)
    if not Path("/sys/bus/pci/drivers/nvme").exists():
        pytest.skip("this kernel has no nvme driver")
    with guest.bound("nvme", "nvme") as bdf:
        disk = wait_for_disk()
        subprocess.run(["mkswap", disk], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["swapon", disk], check=True)
        try:
            code, _, errors = command("bind", bdf)
            assert code == 1
            assert f"{bdf} backs swap (on {disk.name}); free it first" in errors
            assert guest.driver(bdf) == "nvme"
        finally:
            subprocess.run(["swapoff", disk], check=True)
        before = override(bdf)
        assert command("bind", bdf)[0] == 0
        assert guest.driver(bdf) == VFIO_PCI
        assert command("unbind", bdf)[:2] == (0, f"{bdf} is bound to nvme\n")
        assert (guest.driver(bdf), override(bdf)) == ("nvme", before)
        wait_for_disk()


def wait_for_disk() -> Path:
    disk = Path("/dev/nvme0n1")
    wait_until(disk.exists, "the disk")
    return disk


def test_bind_refuses_bridges_and_what_the_guest_runs_on(command: Command) -> None:
    before = {bdf: guest.driver(bdf) for bdf in lspci()}
    bridges = [bdf for bdf, (kind, _ids) in lspci().items() if kind >> 8 == 0x06]
    assert bridges
    for bdf in bridges:
        code, _, errors = command("bind", bdf)
        assert code == 1
        assert errors == (
            f"barfs: {bdf} is a bridge, which VFIO does not support; bind the devices behind it\n"
        )
    shares = [bdf for bdf, (_kind, ids) in lspci().items() if ids in ("1af4:1009", "1af4:1049")]
    assert shares
    for bdf in shares:
        code, _, errors = command("bind", bdf)
        assert code == 1
        assert re.fullmatch(rf"barfs: {bdf} backs /\S* \(9p\); free it .* --force\n", errors)
    code, _, errors = command("bind", guest.find("edu"), "fffe:1f:1f.7")
    assert code == 1
    assert errors.startswith("barfs: fffe:1f:1f.7: no such PCI device")
    assert {bdf: guest.driver(bdf) for bdf in lspci()} == before


@pytest.fixture
def home() -> Path:
    """A directory of a user who is nobody."""
    path = SCRATCH / "nobody"
    (path / "mnt").mkdir(parents=True)
    os.chown(path, NOBODY, NOBODY)
    os.chown(path / "mnt", NOBODY, NOBODY)
    return path


def as_nobody(home: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    ids = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return subprocess.run(
        ["setpriv", *ids, "--inh-caps=-all", *map(str, words)],
        env={**os.environ, "HOME": str(home), "XDG_STATE_HOME": str(home), "TMPDIR": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
        check=False,
    )


def test_a_normal_user_mounts_reads_and_unmounts(edu: str, home: Path, command: Command) -> None:
    if guest.vfio_path() == "noiommu":
        pytest.skip("noiommu takes CAP_SYS_RAWIO")
    refused = as_nobody(home, *BARFS, "bind", edu)
    assert (refused.returncode, guest.driver(edu)) == (1, None)
    assert refused.stderr.startswith("barfs: barfs bind must run as root, to change drivers; ")

    assert command("bind", "--user", str(NOBODY), edu)[0] == 0
    try:
        doctor = as_nobody(home, *BARFS, "doctor", edu)
        assert doctor.returncode == 0, doctor.stdout + doctor.stderr
        mount = as_nobody(home, *BARFS, "mount", edu, home / "mnt")
        assert (mount.returncode, mount.stdout, mount.stderr) == (0, "", "")
        bar0 = home / "mnt/bus" / edu / "bar0"
        read = as_nobody(home, "od", "-An", "-tx4", "-N4", "-w4", bar0)
        assert read.stdout.split() == [f"{IDENTITY:08x}"]

        # Root sees the mount, and does not take the device from under it.
        assert f"{home}/mnt" in command("list")[1]
        code, _, errors = command("unbind", edu)
        assert code == 1
        assert re.search(r"is in use: process \d+ \(.*\) has /dev/vfio/\S+", errors)

        umount = as_nobody(home, *BARFS, "umount", home / "mnt")
        assert (umount.returncode, umount.stderr) == (0, "")
    finally:
        subprocess.run(["umount", "-q", home / "mnt"], check=False)
    assert command("unbind", edu)[0] == 0
    assert guest.driver(edu) is None
