# SPDX-License-Identifier: MIT
"""Runs the C client and parses its output."""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence

from bench_lib.processes import BenchError, build

Measured = dict[str, float]
"""The figures of one target: p50, p99, cpu in ns; or mib_s; or ops_s."""


def client(
    *words: str | int, prefix: Sequence[str] = (), pass_fds: Sequence[int] = ()
) -> list[Measured]:
    """Run the client; returns one object per target. client.c documents the words."""
    command = [*prefix, str(build("client")), *map(str, words)]
    return [dict(item) for item in json.loads(run(command, pass_fds))]


def read32_ns(prefix: Sequence[str]) -> float:
    """Nanoseconds of one read32 of the Python API."""
    return float(run([*prefix, sys.executable, "-m", "bench_lib.api"]))


def run(command: Sequence[str], pass_fds: Sequence[int] = ()) -> str:
    """The output of a command. Raises BenchError if it fails."""
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        pass_fds=pass_fds,
    )
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines()
        raise BenchError(f"{shlex.join(command)}: {lines[-1] if lines else result.returncode}")
    return result.stdout
