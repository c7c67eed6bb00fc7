# SPDX-License-Identifier: MIT
"""The accesses that a request asks for are those that the device sees, every one, in order.

Two witnesses. For what goes by message: the device itself, which writes each access down with its
value. For windows, where no device could: the processor, which stops at each instruction that
touches the window (window_trace.c). `split` says what is right.
"""

import contextlib
import os
import platform
import random
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from barfs.engine import build
from tests.support.compiler import STRICT
from tests.support.engine_bench import Place, split
from tests.support.watched import Watched, opened, watched

from .conftest import Campaign

RAM = Path(__file__).with_name("ram.toml")
SIZE = 0x20000
WIDTHS = (1, 2, 4, 8)
OFFSETS = range(65)
COUNTS = range(1, 65)
BASES = {
    "in a gap": 0x8000,
    "into a window": 0x2000 - 64,
    "out of a window": 0x3000 - 64,
    "in a window": 0x5000,
    "an area that begins inside a page": 0x9800 - 64,
    "into a window, from an area": 0xA000 - 64,
    "the end of the region": SIZE - 64,
}
WINDOWS = (
    range(0x2000, 0x3000),
    range(0x4000, 0x7000),
    range(0xA000, 0xC000),
    range(0x10000, 0x18000),
)
SPECIAL = ((0, 4096), (1, 1), (4, 8), (7, 2), (3, 21))
"""Kinds of requests that no sample leaves out, beside the aligned ones."""

Request = tuple[str, int, int]


def requests(source: random.Random, bases: Iterable[int], sample: int) -> list[Request]:
    """Direction, offset and count of each; one in `sample` of all that there are."""
    found = [
        (way, base + offset, count)
        for base in bases
        for offset in OFFSETS
        for count in COUNTS
        for way in "rw"
        if not source.randrange(sample) or (sample > 1 and (offset, count) in ALIGNED)
    ]
    found += [(way, 0x8000 + offset, count) for offset, count in SPECIAL for way in "rw"]
    source.shuffle(found)
    return found


ALIGNED = {(offset, width) for width in WIDTHS for offset in (0, width, 64 - width)}


class Model:
    """The contents of the region, and the accesses that a request must become."""

    def __init__(self, places: list[Place], width: int, windows: tuple[range, ...]) -> None:
        self.memory = bytearray(SIZE)
        self._places = places
        self._width = width
        self._windows = windows

    def lines(self, request: Request) -> Iterator[str]:
        """The accesses by message, as the device writes them down."""
        way, offset, count = request
        for access in split(self._places, self._width, offset, count):
            if not any(access.offset in window for window in self._windows):
                value = int.from_bytes(self.memory[access.offset : access.end], "little")
                digits = 2 * access.width
                yield f"{way} bar0 {access.offset:#x} {access.width} 0x{value:0{digits}x}"


def perform(fd: int, source: random.Random, model: Model, request: Request) -> None:
    way, offset, count = request
    end = min(offset + count, SIZE)
    if way == "r":
        assert os.pread(fd, count, offset) == model.memory[offset:end]
    elif offset >= SIZE:
        with pytest.raises(OSError, match="large"):
            os.pwrite(fd, bytes(count), offset)
    else:
        data = source.randbytes(count)
        assert os.pwrite(fd, data, offset) == end - offset
        model.memory[offset:end] = data[: end - offset]


@pytest.mark.parametrize(
    ("width", "mapping"), [*((width, "separate") for width in WIDTHS), (4, "off")]
)
def test_the_device_sees_what_was_asked(
    campaign: Campaign, tmp_path: Path, width: int, mapping: str
) -> None:
    source = random.Random(width)
    # Without windows, one place of memory is like the other: those where windows were do.
    bases = BASES.values() if mapping == "separate" else (BASES["in a window"],)
    asked = requests(source, bases, campaign.size(200, 1))
    compared, started = 0, time.monotonic()
    with watched(tmp_path, f"width={width},mapping={mapping}", RAM) as device:
        model = Model(device.places(), width, WINDOWS if mapping == "separate" else ())
        for start in range(0, len(asked), 500):
            batch = asked[start : start + 500]
            expected: list[str] = []
            with opened(device.region()) as fd:
                for request in batch:
                    perform(fd, source, model, request)
                    expected += model.lines(request)
            found = device.server.accesses()
            assert_same(device, found, expected)
            compared += len(found)
    campaign.report(
        f"exact widths, width={width}, mapping={mapping}",
        f"{len(asked)} requests, {compared} accesses by message, all as asked "
        f"({time.monotonic() - started:.0f} s)",
    )


def assert_same(device: Watched, found: list[str], expected: list[str]) -> None:
    """As `found == expected`, but tells the first difference, not thousands of lines."""
    for number, (one, other) in enumerate(zip(found, expected, strict=False)):
        assert one == other, f"access {number}"
    assert len(found) == len(expected)


@contextlib.contextmanager
def traced(program: Path, *arguments: int) -> Iterator[Iterator[str]]:
    command = [str(program), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield iter(process.stdout)
    assert process.returncode == 0


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if platform.machine() != "x86_64" or not shutil.which("cc"):
        pytest.skip("cc is not installed, or the machine is not an x86_64")
    program = tmp_path_factory.mktemp("trace") / "window_trace"
    sources = [Path(__file__).with_name("window_trace.c"), *sorted(build.HERE.glob("*.c"))]
    subprocess.run(["cc", *STRICT, "-O2", *map(str, sources), "-o", str(program)], check=True)
    return program


@pytest.mark.parametrize("width", WIDTHS)
def test_the_processor_does_to_a_window_what_was_asked(
    campaign: Campaign, trace: Path, width: int
) -> None:
    """Requests that lie in a window of 64..192, and that come into it and leave it."""
    places = [Place(0, 64, 8), Place(64, 192, 8), Place(192, 256, 4)]
    asked = compared = touched = 0
    for base in (0, 64, 100, 128):
        with traced(trace, width, base, campaign.size(31, 1)) as lines:
            for line in lines:
                request, _colon, found = line.rstrip().partition(":")
                _way, offset, count = request.split()
                accesses = split(places, width, int(offset), int(count))
                assert found == "".join(f" {a.offset}+{a.width}" for a in accesses), request
                asked += 1
                compared += len(accesses)
                touched += sum(64 <= access.offset < 192 for access in accesses)
    assert touched > asked
    campaign.report(
        f"exact widths in windows, width={width}",
        f"{asked} requests, {compared} accesses, {touched} of them one instruction each",
    )
