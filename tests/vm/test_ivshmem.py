# SPDX-License-Identifier: MIT
"""ivshmem's BAR 2 is memory that the host shares: what arrives there is what was written."""

import functools
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import barfs
from tests.support.guest import HostSharedMemory, bound, sparse

from .mounts import MIB, layout_rows, mounted, read, write

# Windows at 0x1000..0x2000 and 0x4000..0x5000; the second area begins in the middle of a page.
AREAS = ((0x1000, 0x1000), (0x3800, 0x1800), (0x100000, 0x200000))
SPAN = 0x6000

# (offset, count) across the edges of windows and gaps, aligned and not
REQUESTS = (
    (0xFFC, 8),
    (0xFFF, 2),
    (0xFF9, 0x1011),
    (0x1FF0, 0x40),
    (0x1FFE, 4),
    (0x37FF, 3),
    (0x3FFE, 5),
    (0x4FFD, 0x13),
    (0x7FF, 0x5000),
)


def test_dd_of_all_the_memory(tmp_path: Path, host_shared_memory: HostSharedMemory) -> None:
    data = random.Random(1).randbytes(4 * MIB)
    (tmp_path / "data").write_bytes(data)
    with bound("ivshmem") as bdf, mounted(tmp_path, bdf) as mount:
        bar2 = mount.device(bdf) / "bar2"
        assert layout_rows(bar2) == [(0, 4 * MIB, "mmap", "-")]
        dd(tmp_path / "data", bar2)
        assert host_shared_memory.read(0, 4 * MIB) == data

        host_shared_memory.write(MIB - 3, b"the host was here")
        dd(bar2, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == host_shared_memory.read(0, 4 * MIB)


def dd(source: Path, target: Path) -> None:
    command = ["dd", f"if={source}", f"of={target}", "bs=1M", "count=4", "status=none"]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def sparse_ivshmem() -> Iterator[str]:
    with sparse("ivshmem", AREAS, bar=2) as bdf:
        yield bdf


def test_across_edges_windows_and_pread_agree(
    sparse_ivshmem: str, tmp_path: Path, host_shared_memory: HostSharedMemory
) -> None:
    results = []
    for mapping in ("separate", "off"):
        with mounted(tmp_path, sparse_ivshmem, options=f"mapping={mapping}") as mount:
            bar2 = mount.device(sparse_ivshmem) / "bar2"
            mapped = any(access == "mmap" for _, _, access, _ in layout_rows(bar2))
            assert mapped == (mapping == "separate")
            reader, writer = functools.partial(read, bar2), functools.partial(write, bar2)
            results.append(cross_edges(reader, writer, host_shared_memory))
    assert results[0] == results[1]


def test_across_edges_of_a_contiguous_mapping(
    sparse_ivshmem: str, host_shared_memory: HostSharedMemory
) -> None:
    with barfs.open(sparse_ivshmem, mapping="contiguous") as device:
        bar2 = device["bar2"]
        assert bar2.layout.windows
        cross_edges(bar2.read, bar2.write, host_shared_memory)


def cross_edges(
    read_at: Callable[[int, int], bytes],
    write_at: Callable[[int, bytes], int],
    memory: HostSharedMemory,
) -> list[bytes]:
    """Write and read over the edges, held against the host's memory; returns what was read."""
    source = random.Random(2)
    memory.write(0, bytes(SPAN))
    model = bytearray(SPAN)
    seen = []
    for offset, count in REQUESTS:
        data = source.randbytes(count)
        assert write_at(offset, data) == count
        model[offset : offset + count] = data
        assert memory.read(0, SPAN) == model
    for offset, count in REQUESTS:
        seen.append(read_at(offset, count))
        assert seen[-1] == model[offset : offset + count]
    return seen
