# SPDX-License-Identifier: MIT
"""How fast commands start."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from barfs.attached.mounts import MountInfo
from bench_lib.client import run
from bench_lib.figures import Figure, Sample
from bench_lib.processes import Mount

_BARFS = str(Path(sys.executable).with_name("barfs"))

_STARTS: Mapping[str, Callable[[Path], Sequence[str]]] = {
    "--version": lambda _file: ["--version"],
    "md": lambda file: ["md", str(file), "0x0"],
    "layout": lambda file: ["layout", _device_of(file)],
}

FIGURES: Mapping[str, Figure] = {
    **{f"start-{name}": Figure(f"barfs {name}; python3 -I -c pass", "ms", 3) for name in _STARTS},
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
