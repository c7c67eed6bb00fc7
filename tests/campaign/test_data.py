# SPDX-License-Identifier: MIT
"""Reads return what was written: random requests against a model, and fio with checksums.

On memory whose windows and gaps alternate (ram.toml), through a mount.
"""

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import mounted, require, served

from .conftest import Campaign

RAM = Path(__file__).with_name("ram.toml")
OPTIONS = (
    "width=4",
    "width=8,mapping=contiguous",
    "width=1",
    "width=2,mapping=contiguous",
    "width=4,msix=carve",
)


class Exerciser:
    """The first `size` bytes of a file, descriptors of it, and a copy of what it must hold."""

    def __init__(self, path: Path, source: random.Random, size: int, longest: int) -> None:
        self._path = path
        self._source = source
        self._longest = longest
        self._size = size
        self._at_end = path.stat().st_size == size
        self._fds = [os.open(path, os.O_RDWR) for _ in range(3)]
        self._model = bytearray(size)
        self._history: list[str] = []

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)

    def step(self) -> None:
        operations: tuple[Callable[[], None], ...] = (self._read, self._write, self._change_files)
        self._source.choices(operations, (50, 50, 1))[0]()

    def check_all(self) -> None:
        self._compare(os.pread(self._fds[0], self._size, 0), 0)

    def _place(self) -> tuple[int, int]:
        """Mostly short; often at the edge of a page, where windows and gaps meet."""
        source = self._source
        longest = source.choice((8, 64, 64, 512, self._longest))
        count = source.randint(1, longest)
        offset = source.randrange(self._size)
        if source.random() < 0.3:
            offset = max(0, (offset & ~0xFFF) - source.randrange(count + 1))
        # Across the end of the region, but not out of a part of it.
        return offset, count if self._at_end else min(count, self._size - offset)

    def _compare(self, found: bytes, offset: int) -> None:
        expected = self._model[offset : offset + len(found)]
        if found != expected:
            at = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
            pytest.fail(
                f"{self._path.name}: byte {offset + at:#x} is {found[at]:#x}, not "
                f"{expected[at]:#x}; the last requests: {', '.join(self._history[-20:])}"
            )

    def _read(self) -> None:
        offset, count = self._place()
        self._history.append(f"r {offset:#x}+{count:#x}")
        found = os.pread(self._source.choice(self._fds), count, offset)
        assert len(found) == min(count, self._size - offset)
        self._compare(found, offset)

    def _write(self) -> None:
        offset, count = self._place()
        self._history.append(f"w {offset:#x}+{count:#x}")
        data = self._source.randbytes(count)
        done = os.pwrite(self._source.choice(self._fds), data, offset)
        assert done == min(count, self._size - offset)
        self._model[offset : offset + done] = data[:done]

    def _change_files(self) -> None:
        """Operations that must not change the contents: another descriptor, truncations."""
        number = self._source.randrange(len(self._fds))
        os.close(self._fds[number])
        flags = self._source.choice((0, os.O_TRUNC))
        self._fds[number] = os.open(self._path, os.O_RDWR | flags)
        os.ftruncate(self._fds[number], self._source.randrange(self._size))


@pytest.mark.parametrize("seed", range(5))
def test_random_requests_against_a_model(campaign: Campaign, tmp_path: Path, seed: int) -> None:
    source = random.Random(seed)
    count, started = campaign.size(200, 20_000), time.monotonic()
    with (
        served(tmp_path, RAM) as device,
        mounted(tmp_path, device.name, options=OPTIONS[seed]) as mount,
    ):
        files = [
            Exerciser(mount.device() / "bar0", source, 0x8000, 1024),
            Exerciser(mount.device() / "bar2", source, 0x800000, 1 << 20),
        ]
        for _operation in range(count):
            source.choice(files).step()
        for file in files:
            file.check_all()
            file.close()
    campaign.report(
        f"data is intact, {OPTIONS[seed]}",
        f"{count} operations, no byte differs ({time.monotonic() - started:.0f} s)",
    )


@pytest.mark.parametrize(("region", "block"), [("bar0", 1536), ("bar2", 24 << 10)])
def test_fio_verifies_its_checksums(
    campaign: Campaign, tmp_path: Path, region: str, block: int
) -> None:
    require("fuse", shutil.which("fio") is not None, "fio is not installed; apt install fio")
    rounds = campaign.size(1, 10)
    output = tmp_path / "fio.json"
    with served(tmp_path, RAM) as device, mounted(tmp_path, device.name) as mount:
        path = mount.device() / region
        size = path.stat().st_size // block * block
        escaped = str(path).replace(":", "\\:")  # which separates files for fio
        words = f"""
            --name=campaign --filename={escaped} --ioengine=psync --thread --rw=randwrite
            --bs={block} --size={size} --loops={rounds} --verify=crc32c --verify_fatal=1
            --allow_file_create=0 --overwrite=1 --fallocate=none --invalidate=0
            --output-format=json --output={output}
        """
        result = subprocess.run(
            ["fio", *words.split()], capture_output=True, text=True, check=False, cwd=tmp_path
        )
    assert (result.returncode, result.stderr) == (0, "")
    (job,) = json.loads(output.read_text())["jobs"]
    written, verified = job["write"]["io_bytes"], job["read"]["io_bytes"]
    assert job["error"] == 0
    assert written == verified == rounds * size
    campaign.report(
        f"fio with checksums, {region} by {block} bytes",
        f"{written >> 10} KiB written and verified, no error",
    )
