# SPDX-License-Identifier: MIT
"""Runs the clients and parses their output."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from barfs.attached.client import ask
from bench_lib.processes import BenchError, build

Measured = dict[str, float]
"""The figures of one target: p50, p99, cpu in ns; or mib_s; or ops_s."""


def client(
    *words: str | int, prefix: Sequence[str] = (), pass_fds: Sequence[int] = ()
) -> list[Measured]:
    """Run the client; returns one object per target. client.c documents the words."""
    command = [*prefix, str(build("client")), *map(str, words)]
    return [dict(item) for item in json.loads(run(command, pass_fds))]


def read32_ns(directory: Path, prefix: Sequence[str]) -> Measured:
    """Nanoseconds of one read32 of the Python API, by the way to the device (bench_lib.api)."""
    text = run([*prefix, sys.executable, "-m", "bench_lib.api", str(directory)])
    return dict(json.loads(text))


def load_ns(count: int, region: Path, prefix: Sequence[str]) -> list[float]:
    """Nanoseconds of a load in C: of the descriptor that a mount hands out for the region, and of
    the same memory, opened anew."""
    root = os.open(region.parents[2], os.O_PATH)
    granted = ask(root, region.stat().st_ino)
    window = granted.reply.windows[0]
    fds = [granted.fds[window.descriptor]]
    fds += [os.open(f"/proc/self/fd/{fds[0]}", os.O_RDWR)]
    try:
        targets = [f"{fd}@{window.fd_offset}" for fd in fds]
        text = run([*prefix, str(build("loads")), str(count), *targets], pass_fds=fds)
        return list(json.loads(text))
    finally:
        for fd in {root, *granted.fds, *fds}:
            os.close(fd)
        if granted.connection is not None:
            granted.connection.close()


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
