# SPDX-License-Identifier: MIT
"""Names from pci.ids, as lspci reads them."""

import subprocess
from pathlib import Path

import pytest

from barfs.host.pci_ids import Ids, Names, find_pci_ids, names_of
from tests.support import require

TEXT = """\
# a comment
1b36  Red Hat, Inc.
\t0010  QEMU NVM Express Controller
\t\t1af4 1100  A subsystem
1234  Technical Corp.
\t11e8  QEMU Virtual Machine edu device
C 01  Mass storage controller
\t08  Non-Volatile memory controller
\t\t02  NVM Express
C ff  Unassigned class
"""
NVME = Ids(0x1B36, 0x0010, 0x010802)


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (
            NVME,
            Names("Red Hat, Inc.", "QEMU NVM Express Controller", "Non-Volatile memory controller"),
        ),
        (
            Ids(0x1234, 0x11E8, 0x00FF00),
            Names("Technical Corp.", "QEMU Virtual Machine edu device", None),
        ),
        (Ids(0x1234, 0x0010, 0xFF1200), Names("Technical Corp.", None, "Unassigned class")),
        (Ids(0x1AF4, 0x1100, 0x013000), Names(None, None, "Mass storage controller")),
    ],
)
def test_names(tmp_path: Path, ids: Ids, names: Names) -> None:
    file = tmp_path / "share/hwdata/pci.ids"
    file.parent.mkdir(parents=True)
    file.write_text(TEXT)
    assert names_of([ids, NVME], find_pci_ids(tmp_path))[ids] == names


def test_without_a_file_there_is_no_name(tmp_path: Path) -> None:
    assert names_of([NVME], find_pci_ids(tmp_path)) == {NVME: Names()}


@pytest.mark.parametrize("text", [b"", b"\t\xff\n\t\n\n1b36\n1b36  \xff\n", b"\0" * 100])
def test_a_damaged_file_is_read(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "pci.ids").write_bytes(text)
    assert names_of([NVME], tmp_path / "pci.ids")[NVME].device is None


def test_the_systems_file_says_what_lspci_says() -> None:
    file = find_pci_ids()
    require("pciutils", file is not None, "there is no pci.ids")
    names = names_of([NVME], file)[NVME]
    result = subprocess.run(
        ["lspci", "-F", "/dev/stdin"],
        input="00:00.0 Class 0108: 1b36:0010\n00: 36 1b 10 00\n08: 00 02 08 01\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{names.class_}: {names.vendor} {names.device}" in result.stdout
