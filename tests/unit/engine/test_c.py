# SPDX-License-Identifier: MIT
"""The C of the engine by itself: its warnings, its sanitizers, and the code that comes out."""

import platform
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from barfs.engine import build
from tests.support.compiler import STRICT

SOURCES = build.HERE.parent
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="cc is not installed")
needs_objdump = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64") or not shutil.which("objdump"),
    reason="objdump is not installed, or knows neither x86-64 nor AArch64 as its own",
)


# What the constructors of the gate call, and what undoes it.
WRAPPED = [
    *("calloc", "free"),
    *("pthread_mutex_init", "pthread_mutex_destroy", "pthread_cond_init", "pthread_cond_destroy"),
]


def run_sanitized(folder: Path, name: str, *options: str) -> None:
    program = folder / name
    ours = [path for room in ("engine", "fuse") for path in sorted((SOURCES / room).glob("*.c"))]
    sources = [Path(__file__).with_name(f"{name}.c"), *ours]
    command = ["cc", *STRICT, *SANITIZERS, "-O1", "-g", *options, *map(str, sources)]
    built = subprocess.run([*command, "-o", program], capture_output=True, text=True)
    if "cannot find" in built.stderr and "san" in built.stderr:
        pytest.skip("the compiler's sanitizer libraries are not installed")
    assert built.returncode == 0, built.stderr
    run = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")


@needs_compiler
@pytest.mark.parametrize("name", ["engine_stress", "gate_stress"])
def test_c_threads_under_the_sanitizers(tmp_path: Path, name: str) -> None:
    run_sanitized(tmp_path, name)


@needs_compiler
def test_a_gate_that_cannot_be_made_undoes_what_was_made(tmp_path: Path) -> None:
    run_sanitized(tmp_path, "gate_unwind", *(f"-Wl,--wrap={name}" for name in WRAPPED))


@needs_objdump
@pytest.mark.parametrize("direction", ["load", "store"])
@pytest.mark.parametrize("bits", [8, 16, 32, 64])
def test_an_access_is_one_instruction_of_its_width(direction: str, bits: int) -> None:
    # One on the device, one on the buffer.
    code = disassemble(f"{direction}{bits}")
    if platform.machine() == "x86_64":
        unit = {8: "BYTE", 16: "WORD", 32: "DWORD", 64: "QWORD"}[bits]
        assert re.findall(r"\b(\w+) PTR \[", code) == [unit, unit]
        assert not re.search(r"\b(rep\w*|movs[bwdq]|stos[bwdq]|call|[xyz]mm\d+)\b", code)
    else:
        accesses = re.findall(r"\t((?:ld|st)\w+)\t([wxqdshbv])\d+", code)
        suffix, register = {8: ("b", "w"), 16: ("h", "w"), 32: ("", "w"), 64: ("", "x")}[bits]
        assert accesses == [(f"ldr{suffix}", register), (f"str{suffix}", register)]
        assert not re.search(r"\t(bl|blr|b)\t", code)


@needs_compiler
@pytest.mark.parametrize(
    ("defined", "why"),
    [
        ("__BYTE_ORDER__=__ORDER_BIG_ENDIAN__", "barfs needs a little-endian processor"),
        ("__SIZEOF_POINTER__=4", "barfs needs a 64-bit processor"),
    ],
)
def test_other_processors_are_refused_at_build_time(defined: str, why: str) -> None:
    name = defined.partition("=")[0]
    command = ["cc", f"-U{name}", f"-D{defined}", "-I", str(SOURCES), "-E", "-x", "c", "-"]
    built = subprocess.run(
        command, input='#include "engine/common.h"\n', capture_output=True, text=True
    )
    assert built.returncode != 0
    assert f'#error "{why}' in built.stderr


def disassemble(function: str) -> str:
    library = find_spec("barfs.engine._engine")
    assert library is not None
    assert library.origin is not None
    syntax = ["-M", "intel"] if platform.machine() == "x86_64" else []
    command = ["objdump", "-d", *syntax, "--no-show-raw-insn", f"--disassemble={function}"]
    output = subprocess.run([*command, library.origin], capture_output=True, text=True, check=True)
    _, found, code = output.stdout.partition(f"<{function}>:")
    if not found:
        pytest.skip("the extension was stripped of its symbols")
    return "\n".join(line for line in code.splitlines() if "nop" not in line)
