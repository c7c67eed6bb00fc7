# SPDX-License-Identifier: MIT
"""Processes that write at the same time: no write is lost, and none is torn.

Each has registers of its own, four bytes wide and next to those of the others, in windows and in
gaps; and it is alone in writing them, so that what it reads there is what it wrote last. Others
read and write long ranges of the same files meanwhile, and see each register whole.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.support import mounted, served

from .conftest import Campaign

RAM = Path(__file__).with_name("ram.toml")
WRITERS = 8
PLACES = (
    ("bar0", 0x1FC0),
    ("bar0", 0x2FC0),
    ("bar0", 0x8000),
    ("bar2", 0x3FEFC0),
    ("bar2", 0x8000),
)
"""At each, every writer has 16 registers: across the edges of windows, in a gap, in a window."""
REGISTERS = 16
LONG = 1 << 20
LONG_READS = (0, 0x400000 - LONG)
"""Megabytes of bar2 with registers in them; the second ends with the gap between its windows."""
LONG_WRITE = 0x600000

# A register holds its own number in the upper half, the round in the lower: both the same twice
# over, so that halves and bytes of different rounds can be told apart.
WRITER = """
import os, sys
folder, number, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
places, writers, registers = json.loads(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6])
fds = {name: os.open(f"{folder}/{name}", os.O_RDWR) for name, _start in places}
bad = done = 0
last = {}
for round in range(rounds):
    for name, start in places:
        register = round % registers
        offset = start + 4 * (register * writers + number)
        value = bytes([number << 4 | register, round & 0xFF, round & 0xFF, number << 4 | register])
        if os.pread(fds[name], 4, offset) != last.get((name, offset), bytes(4)):
            bad += 1
        if os.pwrite(fds[name], value, offset) != 4:
            bad += 1
        last[name, offset] = value
        done += 1
for (name, offset), value in last.items():
    if os.pread(fds[name], 4, offset) != value:
        bad += 1
print(json.dumps([done, bad, [[*where, value.hex()] for where, value in last.items()]]))
"""

# A long read returns all zeros, or whole registers.
READER = """
import os, sys
folder, stop, size, offset = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
fd = os.open(f"{folder}/bar2", os.O_RDWR)
bad = done = 0
while not os.path.exists(stop):
    data = os.pread(fd, size, offset)
    if len(data) != size:
        bad += 1
    for value in set(memoryview(data).cast("I")):
        a, b, c, d = value.to_bytes(4, sys.byteorder)
        if a != d or b != c:
            bad += 1
    done += 1
print(json.dumps([done, bad, []]))
"""

CHANGER = """
import os, sys
folder, stop, size, offset = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
fd = os.open(f"{folder}/bar2", os.O_RDWR)
bad = done = 0
while not os.path.exists(stop):
    data = os.urandom(size)
    if os.pwrite(fd, data, offset) != size or os.pread(fd, size, offset) != data:
        bad += 1
    done += 1
print(json.dumps([done, bad, []]))
"""


def process(program: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", f"import json\n{program}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )


def outcome(worker: "subprocess.Popen[str]") -> tuple[int, int, list[tuple[str, int, str]]]:
    """The operations it did, those that went wrong, and the registers as it left them."""
    output, _ = worker.communicate(timeout=600)
    assert worker.returncode == 0
    done, bad, last = json.loads(output)
    return done, bad, last


def test_no_write_is_lost_and_none_is_torn(campaign: Campaign, tmp_path: Path) -> None:
    rounds, started = campaign.size(200, 5_000), time.monotonic()
    stop = tmp_path / "stop"
    with (
        served(tmp_path, RAM) as device,
        mounted(tmp_path, device.name, options="timeout=60") as mount,
    ):
        folder = mount.device()
        layout = json.dumps(PLACES), WRITERS, REGISTERS
        readers = [process(READER, folder, stop, LONG, start) for start in LONG_READS]
        changer = process(CHANGER, folder, stop, LONG, LONG_WRITE)
        writers = [process(WRITER, folder, n, rounds, *layout) for n in range(WRITERS)]
        try:
            results = [outcome(writer) for writer in writers]
        finally:
            stop.touch()
            reads = [outcome(reader) for reader in readers]
            changes = outcome(changer)
        for _done, _bad, last in results:
            for name, offset, value in last:
                with (folder / name).open("rb", buffering=0) as file:
                    assert os.pread(file.fileno(), 4, offset).hex() == value
    assert sum(bad for _done, bad, _last in (*results, *reads, changes)) == 0
    assert all(done > 0 for done, _bad, _last in (*reads, changes))
    campaign.report(
        "concurrent writers",
        f"{sum(done for done, *_ in results)} writes by {WRITERS} processes beside "
        f"{sum(done for done, *_ in reads)} reads and {changes[0]} writes of 1 MiB: none lost, "
        f"none torn ({time.monotonic() - started:.0f} s)",
    )
