# SPDX-License-Identifier: MIT
"""Kernel VFIO, in the guest of scripts/vm-test.

A gap, through the mount and from C directly: two of the guest's edu devices are alike; barfs mounts
one with `mapping=off`, and the C client reads the descriptor of the other.

Many devices: eight nvme devices are opened and closed, and one. In emulation Python takes seconds
to start, so only the opening and closing are measured.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from barfs.device import Options
from barfs.opening import DeviceName, close_all, open_all
from bench_lib.client import client
from bench_lib.figures import HEAD, Figure, Result, Sample, table
from bench_lib.processes import HERE, barfs_mount, build, c_mount, pinned
from tests.support.guest import find_all, inside
from tests.vm.vfio import opened, region_info

ROUNDS = 9
READS = 2000
MANY = 8

_GAP = Figure("pread of a kernel-VFIO gap; the device's descriptor", "ns")
_FUSE = Figure("the same; memory behind the C server", "ns")
_OPEN = Figure(f"opening {MANY} nvme devices takes longer than one", "ms", 300)
_CLOSE = Figure(f"closing {MANY} nvme devices takes longer than one", "ms", 300)


def run_in_guest() -> int:
    """Boot the guest and measure in it; returns the exit status."""
    build("client")
    build("server")
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    command = f"PYTHONPATH=scripts XDG_CACHE_HOME={caches} {sys.executable} -m bench_lib.guest"
    vm_test = HERE.parent / "vm-test"
    words = [str(vm_test), "--nvmes", str(MANY), "--exec", command]
    return subprocess.run(words, check=False).returncode


def _open_and_close(names: Sequence[DeviceName]) -> tuple[float, float]:
    """The milliseconds of each."""
    start = time.perf_counter()
    devices = open_all(names, Options())
    opened = time.perf_counter()
    close_all(devices)
    return (opened - start) * 1e3, (time.perf_counter() - opened) * 1e3


def _many() -> list[Result]:
    names = [DeviceName.parse(bdf) for bdf in find_all("nvme")][:MANY]
    assert len(names) == MANY
    _open_and_close(names[:1])  # imports
    rounds = [(_open_and_close(names[:1]), _open_and_close(names)) for _ in range(ROUNDS)]
    return [
        Result(figure, [Sample(many[step] - one[step]) for one, many in rounds])
        for step, figure in enumerate((_OPEN, _CLOSE))
    ]


def main() -> None:
    assert inside()
    mounted_bdf, bare_bdf, *_others = find_all("edu")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bare = stack.enter_context(opened(bare_bdf))
        sources = ["-o", "mapping=off", mounted_bdf]
        mount = stack.enter_context(barfs_mount(folder, "mnt", sources, pinned()))
        c = stack.enter_context(c_mount(folder, prefix=pinned()))
        bare_target = f"fd:{bare}@{region_info(bare, 0).offset}"
        targets = mount.target(), bare_target, c.target()
        rounds = [
            client("latency", "read", READS, *targets, prefix=pinned(), pass_fds=[bare])
            for _ in range(ROUNDS)
        ]
    to_bare = [Sample(barfs["p50"], device["p50"]) for barfs, device, _ in rounds]
    to_c = [Sample(barfs["p50"], server["p50"]) for barfs, _, server in rounds]
    rows = [Result(_GAP, to_bare).row(), Result(_FUSE, to_c).row()]
    print(table([row[:6] for row in ([*HEAD[:3], "", *HEAD[4:]], *rows)]), flush=True)
    print(table([HEAD, *(result.row() for result in _many())]), flush=True)


if __name__ == "__main__":
    main()
