# SPDX-License-Identifier: MIT
"""How fast commands start, and how many accesses a second `barfs script` makes."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from barfs.attached.mounts import MountInfo
from bench_lib.client import run
from bench_lib.figures import Figure, Sample
from bench_lib.processes import Mount

_BARFS = str(Path(sys.executable).with_name("barfs"))
_WINDOW = 1 << 20

_STARTS: Mapping[str, Callable[[Path], Sequence[str]]] = {
    "--version": lambda _file: ["--version"],
    "md": lambda file: ["md", str(file), "0x0"],
    "layout": lambda file: ["layout", _device_of(file)],
}
_LINES: Mapping[str, Callable[[Path, int], str]] = {
    "md, one line": lambda file, _number: f"md {file} 0x100",
    "md, lines that differ": lambda file, number: f"md {file} {number * 4 % _WINDOW:#x}",
    "mw, lines that differ": lambda file, number: f"mw {file} {number * 4 % _WINDOW:#x} {number}",
}

FIGURES: Mapping[str, Figure] = {
    **{f"start-{name}": Figure(f"barfs {name}; python3 -I -c pass", "ms", 3) for name in _STARTS},
    **{
        f"script-{name}": Figure(f"barfs script: {name}", "op/s", 50_000, more_is_better=True)
        for name in _LINES
    },
}


def _device_of(file: Path) -> str:
    """The source of the device whose region `file` is: other mounts may have the same address."""
    info = MountInfo.read(file.parents[2])
    assert info is not None
    return info.devices[file.parent.name]


def starts(mount: Mount, prefix: Sequence[str], runs: int) -> dict[str, Sample]:
    """Medians of `runs` starts, in turns."""
    bare = [*prefix, "python3", "-I", "-c", "pass"]
    commands = {name: [*prefix, _BARFS, *words(mount.files[0])] for name, words in _STARTS.items()}
    times: dict[str, list[float]] = {}
    for _ in range(runs):
        for name, command in {"": bare, **commands}.items():
            start = time.perf_counter()
            run(command)
            times.setdefault(name, []).append((time.perf_counter() - start) * 1e3)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {f"start-{name}": Sample(medians[name], medians[""]) for name in commands}


def script(mount: Mount, prefix: Sequence[str], lines: int) -> dict[str, Sample]:
    """Accesses a second of a whole script, its start included."""
    samples = {}
    with tempfile.TemporaryDirectory(prefix="barfs-bench-") as folder:
        file = Path(folder) / "script"
        for name, line in _LINES.items():
            file.write_text("".join(f"{line(mount.files[0], n)}\n" for n in range(lines)))
            start = time.perf_counter()
            subprocess.run(
                [*prefix, _BARFS, "script", str(file)], check=True, stdout=subprocess.DEVNULL
            )
            samples[f"script-{name}"] = Sample(lines / (time.perf_counter() - start))
    return samples
