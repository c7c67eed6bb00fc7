# SPDX-License-Identifier: MIT
"""`barfs run` on kernel VFIO: what programs map are the device's own registers and memory."""

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support import BARFS, DEADLINE, Mounted, ended, guest, require
from tests.support.guest import HostSharedMemory, bound, mount_options, sparse
from tests.support.programs import PEEK, ROOT, compiled, run_mapped

from .mounts import MIB, PAGE, mounted, read, word, write
from .test_memory_decode import set_decode

IDENTITY, LIVENESS = 0x010000ED, 4
INVERTED = 0xFFFFFFFF


@pytest.fixture(scope="module")
def peek(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(PEEK, tmp_path_factory.mktemp("programs"))


@pytest.fixture
def edu(tmp_path: Path) -> Iterator[tuple[Path, Mounted]]:
    """The bar0 of an edu, of which all but its second page is a window."""
    with (
        sparse("edu", [(0, PAGE), (2 * PAGE, MIB - 2 * PAGE)]) as bdf,
        mounted(tmp_path, bdf, options=mount_options("map")) as mount,
    ):
        yield mount.device(bdf) / "bar0", mount


def output(*command: str | Path) -> str:
    result = run_mapped(*command)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_tools_read_and_write_registers(edu: tuple[Path, Mounted], peek: Path) -> None:
    bar0, _ = edu
    assert output(peek, bar0, "0", "4") == f"{IDENTITY:#x}\n"
    output(peek, bar0, str(LIVENESS), "4", "0x12345678")
    assert read(bar0, LIVENESS, 4) == word(INVERTED ^ 0x12345678)
    write(bar0, LIVENESS, word(0xCAFE))
    assert output(peek, bar0, str(LIVENESS), "4") == f"{INVERTED ^ 0xCAFE:#x}\n"
    require("memtool", shutil.which("memtool") is not None, "memtool is not installed")
    shown = output("memtool", "md", "-s", bar0, "0x0+0x8").split()
    assert shown[:3] == ["00000000:", f"{IDENTITY:08x}", f"{INVERTED ^ 0xCAFE:08x}"]


def test_a_gap_is_no_part_of_a_mapping(edu: tuple[Path, Mounted], peek: Path) -> None:
    bar0, _ = edu
    result = run_mapped(peek, bar0, hex(PAGE), "4")
    assert result.returncode == 1
    hint = (
        f"barfs run: bar0 has no window there, and cannot be mapped; read it with: barfs md {bar0}"
    )
    assert result.stderr == f"{hint} 0x1000\nmmap: No such device\n"

    code = (
        "import sys; from tests.support.mapped import *\n"
        f"base = map_file(sys.argv[1], {MIB}); print(hex(load(base)), flush=True)\n"
        f"load(base + {PAGE + 8})"
    )
    result = run_mapped(sys.executable, "-c", code, bar0)
    assert (result.returncode, result.stdout) == (-signal.SIGSEGV, f"{IDENTITY:#x}\n")
    assert result.stderr == (
        "barfs run: SIGSEGV: bar0+0x1008 is in a gap, which cannot be mapped; read it with: "
        f"barfs md {bar0} 0x1008\n"
    )


def test_a_device_that_does_not_answer_is_told(edu: tuple[Path, Mounted], peek: Path) -> None:
    bar0, mount = edu
    config = bar0.with_name("config")
    set_decode(config, on=False)
    try:
        result = run_mapped(peek, bar0, str(LIVENESS), "4")
    finally:
        set_decode(config, on=True)
    assert result.returncode == -signal.SIGBUS
    assert result.stderr == (
        "barfs run: SIGBUS: the device did not answer at bar0+0x4; for the reason: "
        f"barfs md {bar0} 0x4\n"
    )
    assert mount.process.poll() is None
    assert output(peek, bar0, "0", "4") == f"{IDENTITY:#x}\n"


PYTHON = """
import mmap, sys
with open(sys.argv[1], "r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as bar2:
    print(len(bar2), bar2[0x1000:0x1008])
    bar2[0x200000:0x200008] = b"the bar!"
    bar2.flush()
"""


def test_memory_is_shared_with_the_host(
    tmp_path: Path, host_shared_memory: HostSharedMemory, peek: Path
) -> None:
    with (
        bound("ivshmem") as bdf,
        mounted(tmp_path, bdf, options=mount_options("map")) as mount,
    ):
        bar2 = mount.device(bdf) / "bar2"
        host_shared_memory.write(0x1000, b"the host")
        assert output(sys.executable, "-c", PYTHON, bar2) == f"{4 * MIB} b'the host'\n"
        assert host_shared_memory.read(0x200000, 8) == b"the bar!"
        host_shared_memory.write(0x3000, bytes(0x100))
        for width in (1, 2, 4, 8):
            output(peek, bar2, hex(0x3000 + 16 * width), str(width), "0x8877665544332211")
            found = host_shared_memory.read(0x3000 + 16 * width, 8)
            assert found == bytes.fromhex("1122334455667788")[:width] + bytes(8 - width)


NUMPY = """
import sys, numpy
bar2 = numpy.memmap(sys.argv[1], dtype="<u4", mode="r+")
print(len(bar2), hex(bar2[0x5000 // 4]))
bar2[0x5004 // 4] = 0x79706D6E
bar2.flush()
"""


def test_numpy_maps_the_memory_of_the_host(
    tmp_path: Path, host_shared_memory: HostSharedMemory
) -> None:
    require("numpy", find_spec("numpy") is not None, "numpy is not installed")
    with (
        bound("ivshmem") as bdf,
        mounted(tmp_path, bdf, options=mount_options("map")) as mount,
    ):
        host_shared_memory.write(0x5000, word(0xCAFE))
        bar2 = mount.device(bdf) / "bar2"
        assert output(sys.executable, "-c", NUMPY, bar2) == f"{MIB} 0xcafe\n"
        assert host_shared_memory.read(0x5004, 4) == b"nmpy"


def test_the_kernel_has_a_device_back_when_programs_have_unmapped_it(
    edu: tuple[Path, Mounted], tmp_path: Path
) -> None:
    bar0, mount = edu
    bdf = bar0.parent.name
    code = (
        "import sys; from tests.support.mapped import *\n"
        f"base = map_file(sys.argv[1], {PAGE}); print(hex(load(base)), flush=True); input()"
    )
    program = subprocess.Popen(
        [*BARFS, "run", sys.executable, "-c", code, bar0],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    unbind = threading.Thread(target=guest.bind, args=(bdf, None))
    with program.stdin, program.stdout:
        assert program.stdout.readline() == f"{IDENTITY:#x}\n"
        unbind.start()
        program.stdin.write("\n")
    assert ended(program) == 0
    unbind.join(DEADLINE)
    assert not unbind.is_alive()
    assert guest.driver(bdf) is None
    assert mount.process.poll() is None
