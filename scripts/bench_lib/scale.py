# SPDX-License-Identifier: MIT
"""The cost of a mount as the number of devices grows."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench_lib.client import client
from bench_lib.figures import table
from bench_lib.processes import Mount, barfs_mount, devices, pinned, rss_anon

COUNTS = (1, 16, 256)

MUST = {256: 1.0}
"""The most seconds until a mount of so many devices answers."""

_HEAD = ["devices", "mounted, s", "must", "RssAnon, MB", "per device, kB", "4-byte pread p50, ns"]


@dataclass(frozen=True, slots=True)
class Row:
    """A mount of `devices` devices; `p50` is of the last one's bar0."""

    devices: int
    seconds: float
    rss_anon: int
    p50: float

    @property
    def is_met(self) -> bool:
        return self.seconds <= MUST.get(self.devices, self.seconds)


def measure(folder: Path, reads: int) -> list[Row]:
    """One mount per count, all at once; read them in turns on one CPU."""
    with contextlib.ExitStack() as stack:
        mounts: list[Mount] = []
        for count in COUNTS:
            sources = stack.enter_context(devices(folder, f"scale-{count}", count))
            mounts.append(stack.enter_context(barfs_mount(folder, f"mnt-{count}", sources)))
        memory = [rss_anon(mount.process.pid) for mount in mounts]
        for mount in mounts:
            _pin(mount.process.pid)
        targets = [mount.target() for mount in mounts]
        measured = client("latency", "read", reads, *targets, prefix=pinned())
    return [
        Row(count, mount.process.seconds, resident, latency["p50"])
        for count, mount, resident, latency in zip(COUNTS, mounts, memory, measured, strict=True)
    ]


def _pin(pid: int) -> None:
    cpu = max(os.sched_getaffinity(0))
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), {cpu})


def text(rows: Sequence[Row]) -> str:
    first = rows[0]
    lines = [_HEAD]
    for row in rows:
        more = row.devices - first.devices
        each = f"{(row.rss_anon - first.rss_anon) / more / 1e3:.0f}" if more else ""
        memory = f"{row.rss_anon / 1e6:.1f}"
        most = MUST.get(row.devices)
        must = "" if most is None else f"<= {most:.2f} {'ok' if row.is_met else 'MISS'}"
        mounted = f"{row.seconds:.2f}"
        lines.append([str(row.devices), mounted, must, memory, each, f"{row.p50:.0f}"])
    return table(lines)


def to_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    return [asdict(row) for row in rows]
