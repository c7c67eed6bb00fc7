# SPDX-License-Identifier: MIT
"""lspci and setpci see on a mount what they see on the machine."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import Mounted
from tests.support.guest import DEVICES, find, find_physical_function

from .mounts import mounted

SYSFS = Path("/sys/bus/pci/devices")


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """One of each kind, and one that has virtual functions."""
    bdfs = [find(name) for name in DEVICES]
    with mounted(tmp_path_factory.mktemp("mount"), *bdfs, find_physical_function()) as found:
        yield found


def pciutils(program: str, mount: Mounted | None, *words: str) -> str:
    """What the program prints on the mount, or on the machine; it has nothing to complain about."""
    options = ["-A", "linux-sysfs", "-O", f"sysfs.path={mount.path}"] if mount else []
    result = subprocess.run(
        [program, *options, *words], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.mark.parametrize("number", range(len(DEVICES) + 1))
def test_lspci_prints_the_same(mount: Mounted, number: int) -> None:
    """Every line: header, BARs with their real addresses, capabilities, group, driver, modules, and
    all bytes of configuration space. VFIO makes up parts of that space (the command register, the
    BARs, MSI and MSI-X), but from what the function has, and nothing is set up differently yet."""
    bdf = sorted(path.name for path in (mount.path / "bus").iterdir())[number]
    words = ["-Dnnvvvxxxx", "-s", bdf]
    shown = pciutils("lspci", mount, *words)
    assert shown.splitlines() == pciutils("lspci", None, *words).splitlines()
    for promised in (": Memory at ", "IOMMU group: ", "Kernel driver in use: vfio-pci"):
        assert promised in shown


def test_lspci_lists_the_devices_of_the_mount(mount: Mounted) -> None:
    on_machine = pciutils("lspci", None, "-D").splitlines()
    expected = [line for line in on_machine if (mount.path / "bus" / line.split()[0]).exists()]
    assert pciutils("lspci", mount, "-D").splitlines() == expected
    assert len(expected) == len(DEVICES) + 1


def test_texts_and_links_are_those_of_sysfs(mount: Mounted) -> None:
    for device in (mount.path / "bus").iterdir():
        texts = [
            path for path in device.iterdir() if path.is_file() and not path.stat().st_mode & 0o200
        ]
        names = {path.name for path in texts} - {"rom"}
        names = {name for name in names if not name.endswith(".layout")}
        assert {"vendor", "resource", "irq", "modalias", "numa_node"} <= names
        for name in names:
            assert (device / name).read_text() == (SYSFS / device.name / name).read_text()
        for name in ("driver", "iommu_group"):
            assert (device / name).is_dir()
            real = SYSFS / device.name / name
            assert (device / name).resolve().name == real.resolve().name


def both(mount: Mounted, bdf: str, *registers: str) -> list[list[str]]:
    """The values on the mount and on the machine."""
    return [pciutils("setpci", on, "-s", bdf, *registers).split() for on in (mount, None)]


def test_setpci_reads_bytes_words_and_longs(mount: Mounted) -> None:
    registers = "REVISION VENDOR_ID DEVICE_ID CLASS_DEVICE 0.L CAP_EXP+8.W CAP_MSIX+2.W 2.B".split()  # noqa: SIM905
    on_mount, on_machine = both(mount, find("nvme"), *registers)
    assert on_mount == on_machine
    assert on_mount[:3] == ["02", "1b36", "0010"]


def test_setpci_writes_through_to_the_function(mount: Mounted) -> None:
    """Memory decode and interrupt disable are the function's own: the machine sees them, too."""
    bdf = find("nvme")
    ((before,), _) = both(mount, bdf, "COMMAND")
    for bit in (0x0002, 0x0400):
        flipped = int(before, 16) ^ bit
        pciutils("setpci", mount, "-s", bdf, f"COMMAND={flipped:04x}:{bit:04x}")
        try:
            assert both(mount, bdf, "COMMAND") == [[f"{flipped:04x}"]] * 2
        finally:
            pciutils("setpci", mount, "-s", bdf, f"COMMAND={before}:{bit:04x}")
        assert both(mount, bdf, "COMMAND") == [[before]] * 2


def test_setpci_writes_what_vfio_keeps_to_itself(mount: Mounted) -> None:
    """The interrupt line is a note that software leaves: VFIO gives each user a page of its own."""
    bdf = find("nvme")
    ((before,), (real,)) = both(mount, bdf, "INTERRUPT_LINE")
    pciutils("setpci", mount, "-s", bdf, "INTERRUPT_LINE=05:0f")
    try:
        assert both(mount, bdf, "INTERRUPT_LINE") == [["05"], [real]]
    finally:
        pciutils("setpci", mount, "-s", bdf, f"INTERRUPT_LINE={before}")
    assert both(mount, bdf, "INTERRUPT_LINE") == [[before], [real]]
