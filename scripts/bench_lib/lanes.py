# SPDX-License-Identifier: MIT
"""The lanes: each runs both sides once, in turns, and returns samples for its figures.

Rule 1: everything runs on one CPU, except in lanes that measure several.
Rule 2: a lane's client alternates between both sides in short blocks; a ratio compares samples of
        one round.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_lib import commands, registers
from bench_lib.client import client, load_ns, read32_ns
from bench_lib.figures import Figure, Sample
from bench_lib.processes import Mount, other_cpu, rss_anon

GAP = 0x100000
"""The start of bar4's gap; see device.toml."""

PAGE = 0x1000


@dataclass(frozen=True, slots=True)
class Slow:
    """A slow device: how slow.py accesses it, and the request that keeps it busy.

    `delay_ns` is what each access sleeps; without it, the kernel answers from /proc at once.
    """

    kind: str
    delay_ns: int = 0
    size: int = 8
    offset: int = PAGE - 4  # two accesses, each of a page of its own


SLOW: Mapping[str, Slow] = {
    "1 us, descriptor": Slow("descriptor", size=64, offset=0),
    "100 us, descriptor": Slow("descriptor", 100_000),
    "100 us, window": Slow("window", 100_000),
    "50 ms, descriptor": Slow("descriptor", 50_000_000),
    "50 ms, window": Slow("window", 50_000_000),
}

LOADS = 10_000_000

FIGURES: Mapping[str, Figure] = {
    "read-p50": Figure("4-byte pread, p50", "ns", 1.10),
    "read-p99": Figure("4-byte pread, p99", "ns", 1.5),
    "read-cpu": Figure("4-byte pread, server CPU", "ns", 1.2),
    "write-p50": Figure("4-byte pwrite, p50", "ns", 1.10),
    "write-p99": Figure("4-byte pwrite, p99", "ns", 1.5),
    "write-cpu": Figure("4-byte pwrite, server CPU", "ns", 1.2),
    "open-p50": Figure("open + pread + close, p50", "ns", 1.25),
    "read-mib": Figure("1 MiB preads", "MiB/s", 0.95, more_is_better=True),
    "write-mib": Figure("1 MiB pwrites", "MiB/s", 0.95, more_is_better=True),
    "one-file": Figure("4 clients, one file", "op/s", 0.95, more_is_better=True),
    "four-files": Figure("4 clients, 4 files, any CPU; loop_mt", "op/s", 0.9, more_is_better=True),
    "gap-p50": Figure("4-byte pread of a vfio-user gap, p50", "ns", 3.5),
    "busy-p99": Figure("pread p99 while a gap is read; idle", "ns", 3),
    "busy-p50": Figure("pread p50 while a gap is read; idle", "ns"),
    "busy-any-p99": Figure("pread p99 while a gap is read, any CPU; idle", "ns"),
    **{
        f"slow-{name}-{figure}": Figure(f"pread {figure} beside {name}; idle", "ns", must)
        for name in SLOW
        for figure, must in (("p50", 1.5), ("p99", 3))
    },
    **{
        f"slow-c-{figure}": Figure(f"pread {figure} beside 100 us, loop_mt; idle", "ns")
        for figure in ("p50", "p99")
    },
    "api": Figure("Python API: read32 of a window", "ns", 350),
    **{
        f"placed-{client}-{side}": Figure(f"slow runs, server on any CPU, client {where}{of}", "%")
        for client, where in (("pinned", "pinned"), ("free", "on any CPU"))
        for side, of in (("barfs", ""), ("c", "; the C server"))
    },
    "api-attach": Figure("the same by barfs.attach; barfs.open", "ns", 1.1),
    "api-plain": Figure("the same by barfs.open; memoryview of an mmap", "ns"),
    "load": Figure("4-byte load of a handed out window; plain mmap", "ns", 1.02),
    "memory": Figure("RssAnon, 8 devices, after use", "MB", 50),
    **registers.FIGURES,
    **commands.FIGURES,
}


@dataclass(frozen=True, slots=True)
class Bench:
    """The mounts: both sides pinned, and both on any CPU. `size` scales counts.

    `spare` are two devices that a lane mounts below `folder`.
    """

    folder: Path
    spare: Sequence[str]
    prefix: Sequence[str]
    c: Mount
    barfs: Mount
    c_threads: Mount
    c_anywhere: Mount
    barfs_anywhere: Mount
    slow: Mapping[str, Mount]
    c_slow: Mount
    eight: Mount
    size: float

    def count(self, full: int) -> int:
        return max(int(full * self.size), 8)


def _latency(bench: Bench, operation: str) -> dict[str, Sample]:
    barfs, c = client(
        "latency",
        operation,
        bench.count(20000),
        bench.barfs.target(),
        bench.c.target(),
        prefix=bench.prefix,
    )
    return {
        f"{operation}-{figure}": Sample(barfs[figure], c[figure])
        for figure in ("p50", "p99", "cpu")
    }


def _open(bench: Bench) -> dict[str, Sample]:
    targets = bench.barfs.target(), bench.c.target()
    barfs, c = client("latency", "open", bench.count(6000), *targets, prefix=bench.prefix)
    return {"open-p50": Sample(barfs["p50"], c["p50"])}


def _stream(bench: Bench, operation: str) -> dict[str, Sample]:
    targets = bench.barfs.target(), bench.c.target()
    barfs, c = client("stream", operation, bench.count(600), *targets, prefix=bench.prefix)
    return {f"{operation}-mib": Sample(barfs["mib_s"], c["mib_s"])}


def _one_file(bench: Bench) -> dict[str, Sample]:
    targets = bench.barfs.target(), bench.c.target()
    barfs, c = client("many", 4, bench.count(6000), *targets, prefix=bench.prefix)
    return {"one-file": Sample(barfs["ops_s"], c["ops_s"])}


def _four_files(bench: Bench) -> dict[str, Sample]:
    sides = bench.barfs_anywhere, bench.c_threads
    targets = [",".join(map(str, side.files[:4])) for side in sides]
    barfs, c = client("many", 4, bench.count(6000), *targets)
    return {"four-files": Sample(barfs["ops_s"], c["ops_s"])}


def _gap(bench: Bench) -> dict[str, Sample]:
    targets = bench.barfs.target(4, GAP), bench.c.target()
    barfs, c = client("latency", "read", bench.count(2000), *targets, prefix=bench.prefix)
    return {"gap-p50": Sample(barfs["p50"], c["p50"])}


def _busy(bench: Bench) -> dict[str, Sample]:
    targets = bench.barfs.target(4, GAP), bench.barfs.target()
    idle, busy = client("busy", bench.count(2000), 1 << 20, -1, *targets, prefix=bench.prefix)
    samples = {f"busy-{figure}": Sample(busy[figure], idle[figure]) for figure in ("p50", "p99")}
    targets = bench.barfs_anywhere.target(4, GAP), bench.barfs_anywhere.target()
    idle, busy = client("busy", bench.count(2000), 1 << 20, -1, *targets)
    return {**samples, "busy-any-p99": Sample(busy["p99"], idle["p99"])}


def _slow(bench: Bench) -> dict[str, Sample]:
    """What is slow, and its client, are on another CPU than the measuring client."""
    samples: dict[str, Sample] = {}
    for name, slow in SLOW.items():
        mount = bench.slow[name]
        samples |= _beside(bench, f"slow-{name}", mount, slow)
    return samples | _beside(bench, "slow-c", bench.c_slow, SLOW["100 us, descriptor"])


def _beside(bench: Bench, name: str, mount: Mount, slow: Slow) -> dict[str, Sample]:
    idle, busy = client(
        "busy",
        bench.count(8000),
        slow.size,
        other_cpu(),
        mount.target(0, slow.offset),
        mount.target(1),
        prefix=bench.prefix,
    )
    return {f"{name}-{figure}": Sample(busy[figure], idle[figure]) for figure in ("p50", "p99")}


def _placed(bench: Bench) -> dict[str, Sample]:
    """The share of runs whose median is above twice that of runs with everything pinned."""

    def run(mount: Mount, prefix: Sequence[str]) -> float:
        return client("latency", "read", 2000, mount.target(), prefix=prefix)[0]["p50"]

    sides = {"barfs": (bench.barfs, bench.barfs_anywhere), "c": (bench.c, bench.c_anywhere)}
    clients: Mapping[str, Sequence[str]] = {"pinned": bench.prefix, "free": ()}
    medians: dict[str, list[float]] = {}
    for _ in range(bench.count(15)):
        for side, (together, anywhere) in sides.items():
            medians.setdefault(side, []).append(run(together, bench.prefix))
            for name, prefix in clients.items():
                medians.setdefault(f"placed-{name}-{side}", []).append(run(anywhere, prefix))
    samples = {}
    for side in sides:
        limit = 2 * statistics.median(medians[side])
        for name in clients:
            runs = medians[f"placed-{name}-{side}"]
            slow = sum(median > limit for median in runs)
            samples[f"placed-{name}-{side}"] = Sample(100 * slow / len(runs))
    return samples


def _api(bench: Bench) -> dict[str, Sample]:
    costs = read32_ns(bench.barfs.files[0].parent, bench.prefix)
    return {
        "api": Sample(costs["open"]),
        "api-attach": Sample(costs["attach"], costs["open"]),
        "api-plain": Sample(costs["open"], costs["plain"]),
    }


def _load(bench: Bench) -> dict[str, Sample]:
    count = max(bench.count(LOADS), 100_000)
    handed_out, plain = load_ns(count, bench.barfs.files[0], bench.prefix)
    return {"load": Sample(handed_out, plain)}


def _registers(bench: Bench) -> dict[str, Sample]:
    return registers.measure(bench.folder, bench.spare, bench.count(6000), bench.prefix)


def _memory(bench: Bench) -> dict[str, Sample]:
    for file in bench.eight.files[0].parent.parent.glob("*/bar[0-4]"):
        client("stream", "read", 1, f"{file}@0")
        client("stream", "write", 1, f"{file}@0")
    return {"memory": Sample(rss_anon(bench.eight.process.pid) / 1e6)}


LANES: Mapping[str, Callable[[Bench], dict[str, Sample]]] = {
    "read": lambda bench: _latency(bench, "read"),
    "write": lambda bench: _latency(bench, "write"),
    "open": _open,
    "stream-read": lambda bench: _stream(bench, "read"),
    "stream-write": lambda bench: _stream(bench, "write"),
    "one-file": _one_file,
    "four-files": _four_files,
    "gap": _gap,
    "busy": _busy,
    "slow": _slow,
    "api": _api,
    "load": _load,
    "registers": _registers,
    "start": lambda bench: commands.starts(bench.barfs, bench.prefix, bench.count(9)),
    "script": lambda bench: commands.script(bench.barfs, bench.prefix, bench.count(100_000)),
}

AT_THE_END: Mapping[str, Callable[[Bench], dict[str, Sample]]] = {
    "placed": _placed,
    "memory": _memory,
}
"""Measured once: further rounds would only repeat the result."""
