# SPDX-License-Identifier: MIT
"""A software device that is made from a dump has the windows of the dumped one."""

from pathlib import Path

import pytest

from barfs.dump.file import Dump, new_dump
from barfs.dump.replay import spec_of
from barfs.emulated.spec import RegionSpec
from barfs.layout import Layout, PlanOptions, Segment, plan
from barfs.uapi import RegionInfo, SparseArea

PAGE = 0x1000
SIZE = 0x8000
CONFIG = Layout(
    "x", "config", 256, ("read", "write"), 4, None, (Segment(0, 256, "pread", "rw", 4),)
)
IO_BAR = 0x10


def layout_of(info: RegionInfo) -> Layout:
    return plan(info, device="x", options=PlanOptions(), page_size=PAGE, gap_width=8).merged()


def replica_of(folder: Path, shown: Layout, config: bytes = bytes(256)) -> RegionSpec:
    """Region 0 of what becomes of a dump of a device with that region."""
    with new_dump(folder / "dump") as writer:
        writer.add(shown, [(0, bytes(shown.size))], [])
        writer.add(CONFIG, [(0, config)], [])
    with Dump(folder / "dump") as dump:
        return spec_of(dump).by_index[0]


@pytest.mark.parametrize(
    "areas",
    [
        [],
        [(0, SIZE)],
        [(0, PAGE), (PAGE, PAGE)],
        [(0, 0x1800), (0x1800, 0x1800)],
        [(0, 0x1800), (0x1800, 0x800), (0x2000, 0x1000)],
        [(0x1000, 0x800), (0x1800, 0x1000), (0x2800, 0x1000), (0x3800, 0x800), (0x4000, PAGE)],
        [(0x800, 0x2000), (0x5800, 0x1000)],
    ],
)
def test_the_replica_has_the_same_layout(tmp_path: Path, areas: list[tuple[int, int]]) -> None:
    given = tuple(SparseArea(*area) for area in areas)
    shown = layout_of(RegionInfo(0, 7, SIZE, 0, areas=given))
    made = replica_of(tmp_path, shown).areas
    assert layout_of(RegionInfo(0, 7, SIZE, 0, areas=made)) == shown


def test_a_large_io_region_with_windows(tmp_path: Path) -> None:
    """As libvfio-user has them, unless they are flagged as memory."""
    config = bytes(IO_BAR) + b"\1" + bytes(256 - IO_BAR - 1)
    made = replica_of(tmp_path, layout_of(RegionInfo(0, 7, SIZE, 0)), config)
    assert (made.is_io, made.size, made.areas) == (True, SIZE, (SparseArea(0, SIZE),))
