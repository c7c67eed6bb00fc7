# SPDX-License-Identifier: MIT
"""`python -m bench_lib.api DIRECTORY`: nanoseconds of one 4-byte read of a window, in process.

Prints a JSON object: `open` and `attach`, of the device in DIRECTORY, which a mount holds, and
`plain`, a memoryview of an mmap of the same memory. They take turns in short blocks.
"""

import itertools
import json
import mmap
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import barfs
from barfs.attached.client import ask

_CALLS = 20000
_BLOCKS = 15


def main(directory: Path) -> None:
    with barfs.open("demo") as device, barfs.attach(directory) as attached:
        words = _plain(directory / "bar0")
        reads: dict[str, Callable[[int], int]] = {
            "open": device["bar2"].read32,
            "attach": attached["bar0"].read32,
            "plain": words.__getitem__,
        }
        costs: dict[str, list[float]] = {name: [] for name in reads}
        for _ in range(_BLOCKS):
            for name, read in reads.items():
                costs[name].append(_cost(read))
        print(json.dumps({name: statistics.median(found) for name, found in costs.items()}))


def _cost(read32: Callable[[int], int]) -> float:
    start = time.perf_counter_ns()
    for _ in itertools.repeat(None, _CALLS):
        read32(0)
    return (time.perf_counter_ns() - start) / _CALLS


def _plain(region: Path) -> "memoryview[int]":
    root = os.open(region.parents[2], os.O_PATH)
    granted = ask(root, region.stat().st_ino)
    window = granted.reply.windows[0]
    memory = mmap.mmap(granted.fds[window.descriptor], window.size, offset=window.fd_offset)
    return memoryview(memory).cast("I")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
