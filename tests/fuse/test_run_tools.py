# SPDX-License-Identifier: MIT
"""`barfs run`: tools and libraries that map, as they are."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support import BARFS, Mounted, mounted, require
from tests.support.programs import PEEK, ROOT, compiled, run_mapped


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted(tmp_path_factory.mktemp("tools"), "demo", options="map") as mount:
        yield mount


@pytest.fixture
def bar0(mount: Mounted) -> Path:
    return mount.device() / "bar0"


@pytest.fixture(scope="module")
def peek(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(PEEK, tmp_path_factory.mktemp("programs"))


def output(*command: str | Path) -> str:
    result = run_mapped(*command)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def read(bar0: Path, offset: int, count: int) -> bytes:
    with bar0.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), count, offset)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_tool_that_maps_a_page_reads_and_writes(bar0: Path, peek: Path, width: int) -> None:
    value = int.from_bytes(bytes(range(1, 9))[:width], "little")
    assert output(peek, bar0, "0x1000", str(width)) == f"{0x166726162 & (1 << 8 * width) - 1:#x}\n"
    assert output(peek, bar0, f"{0x1F00 + 8 * width:#x}", str(width), hex(value)) == ""
    assert read(bar0, 0x1F00 + 8 * width, 8) == value.to_bytes(8, "little")


def test_such_a_tool_fails_in_a_gap_as_it_does_on_any_file(bar0: Path, peek: Path) -> None:
    result = run_mapped(peek, bar0, "0x2000", "4")
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "barfs run: bar0 has no window there, and cannot be mapped; read it with: "
        f"barfs md {bar0} 0x2000",
        "mmap: No such device",
    ]


def test_memtool(bar0: Path) -> None:
    require("memtool", shutil.which("memtool") is not None, "memtool is not installed")
    lines = output("memtool", "md", "-s", bar0, "0x1000+0x20").splitlines()
    assert [line.split()[:5] for line in lines] == [
        ["00001000:", "66726162", "00000001", "00000000", "00000000"],
        ["00001010:", "66726162", "65642073", "203a6f6d", "73696874"],
    ]
    output("memtool", "mw", "-d", bar0, "0x1e00", "0x12345678")
    assert read(bar0, 0x1E00, 4) == bytes.fromhex("78563412")


PYTHON = """
import mmap, os, sys
with open(sys.argv[1], "r+b", buffering=0) as file:
    with mmap.mmap(file.fileno(), 0) as bar0:
        print(len(bar0), bar0[0x1000:0x1004], bar0[0x3000:0x3003])
        bar0[0x1D00:0x1D04] = b"mmap"
        bar0.flush()
        words = memoryview(bar0)[0x1000:0x2000].cast("I")
        print(hex(words[0]))
        words.release()
"""


def test_the_module_mmap_of_python(bar0: Path) -> None:
    expected = "65536 b'barf' b'The'\n0x66726162\n"
    assert output(sys.executable, "-c", PYTHON, bar0) == expected
    assert read(bar0, 0x1D00, 4) == b"mmap"


NUMPY = """
import sys, numpy
bar0 = numpy.memmap(sys.argv[1], dtype="<u4", mode="r+", shape=0x10000 // 4)
print(hex(bar0[0x1000 // 4]))
bar0[0x1C00 // 4] = 0x79706D6E
bar0.flush()
print(numpy.memmap(sys.argv[1], dtype="<u4", mode="r", offset=0x1000, shape=2))
"""


def test_memmap_of_numpy(bar0: Path) -> None:
    require("numpy", find_spec("numpy") is not None, "numpy is not installed")
    assert output(sys.executable, "-c", NUMPY, bar0) == "0x66726162\n[1718772066          1]\n"
    assert read(bar0, 0x1C00, 4) == b"nmpy"


WRITER = """
import sys; from tests.support.mapped import *
base = map_file(sys.argv[1], 0x1000, 0x3000); own = base + 0x800 + 4 * int(sys.argv[2])
for n in range(1, 20001):
    store(own, n)
    if load(own) != n: sys.exit(f"lost {n}")
"""


def test_no_store_of_many_processes_is_lost(bar0: Path) -> None:
    """Each on its own register, while the mount reads them all."""
    command = [*BARFS, "run", sys.executable, "-c", WRITER, str(bar0)]
    programs = [
        subprocess.Popen([*command, str(n)], cwd=ROOT, stderr=subprocess.PIPE) for n in range(8)
    ]
    before = [0] * 8
    while any(program.poll() is None for program in programs):
        data = read(bar0, 0x3800, 32)
        words = [int.from_bytes(data[n : n + 4], "little") for n in range(0, 32, 4)]
        assert all(old <= new for old, new in zip(before, words, strict=True))
        before = words
    assert [program.communicate()[1] for program in programs] == [b""] * 8
    assert read(bar0, 0x3800, 32) == (20000).to_bytes(4, "little") * 8
