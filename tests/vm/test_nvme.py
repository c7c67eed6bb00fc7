# SPDX-License-Identifier: MIT
"""nvme keeps its MSI-X table in BAR 0, between its registers and its pending bits."""

from pathlib import Path

from tests.support.guest import bound

from .mounts import layout_rows, layout_text, mounted, read

TABLE = 0x2000
BAR_SIZE = 0x4000
MSIX_LINE = "msix   table=0x2000+0x410 pba=0x3000+0x10\n"

# address, data and a set mask bit, as a reset leaves the first entry
FIRST_ENTRY = bytes(12) + b"\x01\0\0\0"


def test_by_default_the_table_reads_true_in_its_window(tmp_path: Path) -> None:
    with bound("nvme") as bdf, mounted(tmp_path, bdf) as mount:
        bar0 = mount.device(bdf) / "bar0"
        assert MSIX_LINE in layout_text(bar0)
        assert layout_rows(bar0) == [(0, BAR_SIZE, "mmap", "-")]
        assert read(bar0, TABLE, 16) == FIRST_ENTRY


def test_carve_takes_the_tables_page_out(tmp_path: Path) -> None:
    with bound("nvme") as bdf, mounted(tmp_path, bdf, options="msix=carve") as mount:
        bar0 = mount.device(bdf) / "bar0"
        assert MSIX_LINE in layout_text(bar0)
        assert layout_rows(bar0) == [
            (0, TABLE, "mmap", "-"),
            (TABLE, 0x3000, "pread", "msix-table"),
            (0x3000, BAR_SIZE, "mmap", "-"),
        ]
        # vfio_pci_core answers for the table itself, and for nothing else in its page.
        assert read(bar0, TABLE, 16) == b"\xff" * 16
        assert read(bar0, TABLE + 0x410, 16) == bytes(16)
        assert read(bar0, 0x3000, 16) == bytes(16)
