# SPDX-License-Identifier: MIT
"""scripts/bench: mounts both sides, runs the lanes in rounds, prints the table."""

import argparse
import contextlib
import json
import os
import platform
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from types import FrameType

from bench_lib import guest, lanes, scale
from bench_lib.client import client
from bench_lib.figures import HEAD, Result, Sample, collect, table
from bench_lib.lanes import AT_THE_END, FIGURES, LANES, Bench
from bench_lib.processes import (
    BenchError,
    Mount,
    barfs_mount,
    c_mount,
    device,
    devices,
    other_cpu,
    pinned,
    slow_mount,
)

_EPILOG = f"""\
lanes for --only: {", ".join([*LANES, *AT_THE_END])}

"C" is the libfuse server in C, or in rows with a semicolon, what follows the semicolon. A ratio is
barfs / C: the median of the rounds' ratios. Exit status: 0 all figures meet their bounds, 1 one
does not, 2 the measurement failed.
"""


def main() -> int:
    choice = _parse()
    _let_signals_unwind()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if choice.guest:
        return guest.run_in_guest()
    report: dict[str, object] = {"machine": _machine()}
    with tempfile.TemporaryDirectory(prefix="barfs-bench-") as folder:
        if choice.scale:
            rows = scale.measure(Path(folder), 2000 if choice.quick else 20000)
            print(scale.text(rows))
            report["scale"] = scale.to_json(rows)
            met = all(row.is_met for row in rows)
        else:
            results = _measure(Path(folder), choice)
            met = all(result.is_met for result in results)
            print(table([HEAD, *(result.row() for result in results)]))
            report["figures"] = [result.to_json() for result in results]
            report["floor"] = floor = client("floor", "/dev/shm", prefix=pinned())[0]
            print(
                "floor: getppid {getppid} ns, memcpy of 1 MiB {memcpy} ns, "
                "4-byte pread on tmpfs {tmpfs} ns".format_map(floor)
            )
    if choice.json:
        choice.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if met else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures barfs against a libfuse server in C, in turns on one CPU.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [*LANES, *AT_THE_END]
    parser.add_argument("--rounds", type=int, default=9, help="default 9; 3 with --quick")
    parser.add_argument("--quick", action="store_true", help="a rough answer in half a minute")
    parser.add_argument("--only", metavar="LANE", action="append", choices=names, default=[])
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures to FILE")
    parser.add_argument("--scale", action="store_true", help="1, 16 and 256 devices instead")
    parser.add_argument("--guest", action="store_true", help="a kernel-VFIO gap in QEMU instead")
    choice = parser.parse_args()
    if choice.rounds < 1:
        parser.error("--rounds must be 1 or more")
    if choice.quick:
        choice.rounds = min(choice.rounds, 3)
    return choice


def _let_signals_unwind() -> None:
    """Clean up on the first SIGINT or SIGTERM, and ignore those that follow."""

    def end(number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(128 + number)

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)


def _machine() -> dict[str, object]:
    return {"kernel": platform.release(), "cpus": os.cpu_count(), "python": sys.version.split()[0]}


def _measure(folder: Path, choice: argparse.Namespace) -> list[Result]:
    chosen = choice.only or [*LANES, *AT_THE_END]
    rounds: list[dict[str, Sample]] = []
    with contextlib.ExitStack() as stack:
        bench = _mount_all(stack, folder, 0.2 if choice.quick else 1.0)
        for number in range(choice.rounds):
            start = time.monotonic()
            rounds.append(_one_round(bench, chosen))
            _progress(f"round {number + 1} of {choice.rounds}: {time.monotonic() - start:.1f} s")
        for name in AT_THE_END.keys() & set(chosen):
            rounds.append(AT_THE_END[name](bench))
    return collect(rounds, FIGURES)


def _mount_all(stack: contextlib.ExitStack, folder: Path, size: float) -> Bench:
    prefix = pinned()
    enter = stack.enter_context
    first = enter(device(folder, "device", prefix))
    second = enter(device(folder, "device-anywhere"))
    eight = enter(devices(folder, "devices", 8))
    slow = {
        name: _mount_slow(stack, folder, number, kind)
        for number, (name, kind) in enumerate(lanes.SLOW.items())
    }
    return Bench(
        folder=folder,
        spare=enter(devices(folder, "spare", 2)),
        prefix=prefix,
        c=enter(c_mount(folder, prefix=prefix)),
        c_anywhere=enter(c_mount(folder, name="c-anywhere")),
        c_threads=enter(c_mount(folder, name="c-threads", threads=True)),
        barfs=enter(barfs_mount(folder, "barfs", [first], prefix, ("-o", "map"))),
        barfs_anywhere=enter(barfs_mount(folder, "barfs-anywhere", [second])),
        eight=enter(barfs_mount(folder, "barfs-eight", eight)),
        slow=slow,
        c_slow=enter(c_mount(folder, name="c-slow", threads=True, delay_ns=100_000)),
        size=size,
    )


def _mount_slow(stack: contextlib.ExitStack, folder: Path, number: int, slow: lanes.Slow) -> Mount:
    """A slow device is on another CPU than what is measured."""
    pair = stack.enter_context(devices(folder, f"pair{number}", 2))
    cpu = other_cpu()
    if slow.kind == "window":
        how = f"window:{slow.delay_ns}:{cpu}"
    elif slow.delay_ns:
        behind = c_mount(
            folder,
            name=f"behind{number}",
            prefix=["taskset", "-c", str(cpu)],
            delay_ns=slow.delay_ns,
        )
        how = f"descriptor:{stack.enter_context(behind).files[0]}"
    else:
        how = "descriptor:/proc/version"
    return stack.enter_context(slow_mount(folder, f"slow{number}", how, pair))


def _one_round(bench: lanes.Bench, chosen: Collection[str]) -> dict[str, Sample]:
    samples: dict[str, Sample] = {}
    for name, lane in LANES.items():
        if name in chosen:
            samples |= lane(bench)
    return samples


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(2)
