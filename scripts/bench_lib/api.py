# SPDX-License-Identifier: MIT
"""`python -m bench_lib.api`: nanoseconds of one `read32` of a window, in process."""

import itertools
import statistics
import time

import barfs

_CALLS = 20000
_BLOCKS = 15


def main() -> None:
    with barfs.open("demo") as device:
        read32 = device["bar2"].read32
        costs = []
        for _ in range(_BLOCKS):
            start = time.perf_counter_ns()
            for _ in itertools.repeat(None, _CALLS):
                read32(0)
            costs.append((time.perf_counter_ns() - start) / _CALLS)
        print(statistics.median(costs))


if __name__ == "__main__":
    main()
