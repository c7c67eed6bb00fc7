# SPDX-License-Identifier: MIT
"""What a description of 100,000 registers costs a mount: time, memory, and reads.

Two mounts, one with the description and one with `registers=off`, take turns.
"""

import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from barfs.registers import cache
from bench_lib.client import client
from bench_lib.figures import Figure, Sample
from bench_lib.processes import CACHE, BenchError, Mount, barfs_mount, rss_anon

_BLOCKS = 100
_REGISTERS = 1000
_FIELDS = (
    "field { sw = rw; } enable[0:0]; field { sw = rw; } count[15:8]; "
    "field { sw = rw; onwrite = woclr; } done[31:31];"
)

FIGURES = {
    "registers-mount": Figure("mount with 100,000 registers, longer by", "ms", 500),
    "registers-memory": Figure("the same, RssAnon after use, more by", "MB", 60),
    "registers-cat": Figure("cat of a register; of a text file", "us", 1.5),
    "registers-open": Figure("open + pread + close of it; of a cached text file", "ns"),
    "registers-read": Figure("4-byte pread of its region; without it", "ns", 1.05),
}


def description() -> Path:
    """A file of 100,000 registers, each with a name of its own, made once."""
    lines = ["addrmap card {", f"    reg kind {{ {_FIELDS} }};"]
    for block in range(_BLOCKS):
        lines.append("    regfile {")
        lines += [f"        kind r{number};" for number in range(_REGISTERS)]
        lines.append(f"    }} block{block};")
    text = "\n".join([*lines, "};", ""])
    path = CACHE / f"registers-{hashlib.sha256(text.encode()).hexdigest()[:16]}.rdl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path


def measure(
    folder: Path, sources: Sequence[str], count: int, prefix: Sequence[str]
) -> dict[str, Sample]:
    """One round, with two devices; the first compiles the description, if no earlier run has."""
    described, plain = sources
    path = description()
    cache.load(path)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        scratch = Path(name)
        options = ("-o", f"registers=bar0={path}")
        with (
            barfs_mount(scratch, "plain", [plain], prefix, ("-o", "registers=off")) as without,
            barfs_mount(scratch, "described", [described], prefix, options) as own,
        ):
            return _samples(own, without, count, prefix)


def _samples(own: Mount, without: Mount, count: int, prefix: Sequence[str]) -> dict[str, Sample]:
    bar0 = own.files[0]
    register = bar0.parent / "registers" / "bar0" / "block99" / "r999"
    layout = bar0.with_name("bar0.layout")
    opened, kept = client("latency", "open", count, f"{register}@0", f"{layout}@0", prefix=prefix)
    cat, text = _cat_us((register, layout), count // 20)
    read, before = client("latency", "read", count, own.target(), without.target(), prefix=prefix)
    longer = own.process.seconds - without.process.seconds
    more = rss_anon(own.process.pid) - rss_anon(without.process.pid)
    return {
        "registers-mount": Sample(longer * 1e3),
        "registers-memory": Sample(more / 1e6),
        "registers-cat": Sample(cat, text),
        "registers-open": Sample(opened["p50"], kept["p50"]),
        "registers-read": Sample(read["p50"], before["p50"]),
    }


def _cat_us(paths: Sequence[Path], count: int) -> list[float]:
    """The median time of the command cat for each file, in turns, on the CPU of the mounts."""
    cat = shutil.which("cat") or "cat"
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    samples: list[list[float]] = [[] for _ in paths]
    with open(os.devnull, "wb") as null:
        actions = [(os.POSIX_SPAWN_DUP2, null.fileno(), 1)]
        for _ in range(count):
            for path, own in zip(paths, samples, strict=True):
                start = time.perf_counter()
                child = os.posix_spawn(cat, ["cat", str(path)], os.environ, file_actions=actions)
                _pid, status = os.waitpid(child, 0)
                own.append((time.perf_counter() - start) * 1e6)
                if status:
                    raise BenchError(f"cat {path} failed")
    os.sched_setaffinity(0, allowed)
    return [statistics.median(own) for own in samples]
