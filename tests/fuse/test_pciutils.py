# SPDX-License-Identifier: MIT
"""lspci and setpci on a software device, which no kernel knows."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import Mounted, Served, mounted, served

DEMO = """\
0000:05:00.0 ff00: 1234:ba5f (rev 01)
	Subsystem: 1234:0001
	Control: I/O+ Mem+ BusMaster- SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR- FastB2B- \
DisINTx-
	Status: Cap+ 66MHz- UDF- FastB2B- ParErr- DEVSEL=fast >TAbort- <TAbort- <MAbort- >SERR- <PERR- \
INTx-
	Region 0: Memory at e0000000 (32-bit, non-prefetchable) [size=64K]
	Region 2: Memory at 3800000000 (64-bit, prefetchable) [size=1M]
	Region 4: I/O ports at c000 [size=64]
	Expansion ROM at e0014000 [disabled] [size=4K]
	Capabilities: [40] Express (v2) Root Complex Integrated Endpoint, MSI 00
	Capabilities: [80] MSI-X: Enable- Count=4 Masked-
		Vector table: BAR=0 offset=00002000
		PBA: BAR=0 offset=00002800
"""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("device")) as found:
        yield found


@pytest.fixture(scope="module")
def mount(device: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted(tmp_path_factory.mktemp("mount"), f"{device.name},bdf=05:00.0") as found:
        yield found


def pciutils(program: str, mount: Mounted, *words: str) -> str:
    result = subprocess.run(
        [program, "-A", "linux-sysfs", "-O", f"sysfs.path={mount.path}", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in result.stderr.splitlines() if "libkmod" not in line]
    assert (result.returncode, complaints) == (0, [])
    return result.stdout


def setpci(mount: Mounted, *registers: str) -> list[str]:
    return pciutils("setpci", mount, "-s", "05:00.0", *registers).split()


def test_lspci_decodes_the_device(mount: Mounted) -> None:
    shown = pciutils("lspci", mount, "-Dnvvvxxxx", "-s", "05:00.0")
    # pciutils 3.11 calls the interrupt of a capability so.
    lines = re.sub(r"\bIntMsgNum 0\b", "MSI 00", shown).splitlines()
    found = iter(lines)
    missing = [line for line in DEMO.splitlines() if line not in found]
    assert not missing, "\n".join(lines)
    (config,) = mount.path.glob("bus/*/config")
    data = bytes.fromhex(
        "".join(line[4:] for line in lines if line[3:5] == ": " or line[2:4] == ": ")
    )
    assert data == config.read_bytes()
    assert len(data) == 4096


def test_setpci_reads_bytes_words_and_longs(mount: Mounted) -> None:
    registers = ["REVISION", "VENDOR_ID", "0.L", "CAP_MSIX+2.W", "BASE_ADDRESS_0", "2.B"]
    assert setpci(mount, *registers) == ["01", "1234", "ba5f1234", "0003", "e0000000", "5f"]


@pytest.mark.parametrize(
    ("register", "width", "offset", "value", "result"),
    [
        ("COMMAND", 2, 0x04, "0103:0100", "0103"),
        ("COMMAND", 2, 0x04, "0000:0002", "0001"),
        ("INTERRUPT_LINE", 1, 0x3C, "5a", "5a"),
        ("LATENCY_TIMER", 1, 0x0D, "40:f0", "40"),
        ("CAP_MSIX+2.W", 2, 0x82, "8000:8000", "8003"),
        ("BASE_ADDRESS_0", 4, 0x10, "ffffffff", "ffff0000"),
        ("VENDOR_ID", 2, 0x00, "ffff", "1234"),
    ],
)
def test_setpci_writes(
    mount: Mounted, device: Served, register: str, width: int, offset: int, value: str, result: str
) -> None:
    (before,) = setpci(mount, register)
    device.accesses()
    setpci(mount, f"{register}={value}")
    writes = [line.split() for line in device.accesses() if line.startswith("w config ")]
    assert [(line[2], line[3]) for line in writes] == [(f"{offset:#x}", str(width))]
    assert setpci(mount, register) == [result]
    setpci(mount, f"{register}={before}")
    assert setpci(mount, register) == [before]


def test_a_mount_that_is_read_only_keeps_setpci_away(tmp_path: Path) -> None:
    with served(tmp_path) as device, mounted(tmp_path, device.name, options="ro") as mount:
        words = ["setpci", "-A", "linux-sysfs", "-O", f"sysfs.path={mount.path}"]
        config = mount.device() / "config"
        device.accesses()
        result = subprocess.run(
            [*words, "-s", config.parent.name, "COMMAND=0"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.stderr == f"pcilib: Cannot open {config}\n".replace("/bus/", "/devices/")
        assert device.accesses() == []
