# SPDX-License-Identifier: MIT
"""`barfs run`: what ends a program that maps a region, and what it is told before."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support import BARFS, Mounted, mounted, wait_until
from tests.support.programs import ROOT, compiled, run_mapped

PROGRAMS = Path(__file__).parent / "programs"
PRELUDE = "import os, sys; from tests.support.mapped import *; bar0 = sys.argv[1]\n"
BASE = "fd = os.open(bar0, os.O_RDWR); base = map_file(fd, 0x12000)\n"
WINDOW, GAP = 0x1000, 0x2005


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted(tmp_path_factory.mktemp("faults"), "demo", options="map") as mount:
        yield mount


@pytest.fixture
def bar0(mount: Mounted) -> Path:
    return mount.device() / "bar0"


@pytest.fixture(scope="module")
def handlers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(PROGRAMS / "handlers.c", tmp_path_factory.mktemp("programs"))


def ended(*command: str | Path) -> tuple[int, str, str]:
    result = run_mapped(*command)
    return -result.returncode, result.stdout, result.stderr


def python(code: str, *arguments: str | Path) -> tuple[int, str, str]:
    return ended(sys.executable, "-c", PRELUDE + code, *arguments)


def in_gap(bar0: Path, offset: int = GAP, name: str = "SIGSEGV") -> str:
    return (
        f"barfs run: {name}: bar0+{offset:#x} is in a gap, which cannot be mapped; "
        f"read it with: barfs md {bar0} {offset & ~3:#x}\n"
    )


@pytest.mark.parametrize("touch", ["load(base + 0x2005)", "store(base + 0x2005, 1)"])
def test_a_touch_of_a_gap_names_the_command_that_reads_it(bar0: Path, touch: str) -> None:
    assert python(BASE + touch, bar0) == (signal.SIGSEGV, "", in_gap(bar0))


def test_the_offset_is_that_in_the_region(bar0: Path) -> None:
    code = "base = map_file(bar0, 0x4000, 0x1000); load(base + 0x1ffc)"
    assert python(code, bar0) == (signal.SIGSEGV, "", in_gap(bar0, 0x2FFC))


def test_a_gap_that_was_made_accessible_is_none_the_more_readable(bar0: Path) -> None:
    code = BASE + "protect(base, 0x12000, READ | WRITE); print(load(base + 0x1000), flush=True)\n"
    identity = f"{int.from_bytes(b'barf', 'little')}\n"
    assert python(code + "load(base + 0x2005)", bar0) == (
        signal.SIGBUS,
        identity,
        in_gap(bar0, name="SIGBUS"),
    )


def test_a_touch_behind_the_end_is_told(bar0: Path) -> None:
    line = "barfs run: SIGSEGV: bar0+0x10004 is past the end of the region, 0x10000\n"
    assert python(BASE + "load(base + 0x10004)", bar0) == (signal.SIGSEGV, "", line)


def test_the_part_above_a_hole_is_still_known(bar0: Path) -> None:
    code = BASE + "unmap(base + 0x2000, 0x1000); unmap(base, 0x1000); "
    assert python(code + "load(base + 0x4000)", bar0) == (
        signal.SIGSEGV,
        "",
        in_gap(bar0, 0x4000),
    )


@pytest.mark.parametrize(
    "code",
    [
        "load(8)",
        "unmap(base + 0x2000, 0x1000); load(base + 0x2000)",
        "unmap(base, 0x12000); load(base + 0x2000)",
        "protect(base + 0x1000, 0x1000, READ); store(base + 0x1000, 1)",
        "os.kill(os.getpid(), 11)",
        "libc['raise'](11)",
    ],
)
def test_other_ends_are_as_silent_as_without_the_library(bar0: Path, code: str) -> None:
    assert python(BASE + code, bar0) == (signal.SIGSEGV, "", "")


def test_a_program_without_a_region_has_no_handler(tmp_path: Path) -> None:
    code = (
        "lines = open('/proc/self/status').read().split('\\n')\n"
        "print([line for line in lines if line.startswith('SigCgt')])"
    )
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended(sys.executable, "-c", code) == (0, plain.stdout, "")


@pytest.mark.parametrize("mode", ["before", "after"])
def test_a_handler_of_the_program_stays(bar0: Path, handlers: Path, mode: str) -> None:
    caught = f"caught {signal.SIGSEGV:d}\n" * 3
    assert ended(handlers, mode, bar0, "0x2005") == (0, caught, "")
    assert ended(handlers, mode, bar0, "0x1000") == (0, "read 98\n" * 3, "")


def test_a_handler_may_call_the_one_before_it(bar0: Path, handlers: Path) -> None:
    assert ended(handlers, "chained", bar0, "0x2005") == (
        signal.SIGSEGV,
        "chained\n",
        in_gap(bar0),
    )


@pytest.mark.parametrize("mode", ["resigns", "raises"])
def test_a_handler_that_gives_up_is_followed_by_the_line(
    bar0: Path, handlers: Path, mode: str
) -> None:
    """As those of Rust's runtime, and of programs that report their crashes."""
    assert ended(handlers, mode, bar0, "0x2005") == (
        signal.SIGSEGV,
        "resigned\n",
        in_gap(bar0),
    )


def test_a_handler_may_be_put_back(bar0: Path, handlers: Path) -> None:
    assert ended(handlers, "restored", bar0, "0x2005") == (signal.SIGSEGV, "", in_gap(bar0))


@pytest.mark.parametrize("mode", ["elsewhere", "sent"])
def test_other_faults_and_signals_end_the_program_silently(
    bar0: Path, handlers: Path, mode: str
) -> None:
    assert ended(handlers, mode, bar0, "0x2005") == (signal.SIGSEGV, "", "")


def test_faulthandler_says_what_it_says(bar0: Path) -> None:
    code, _, errors = ended(
        sys.executable, "-X", "faulthandler", "-c", f"{PRELUDE}{BASE}load(base + 0x2005)", bar0
    )
    assert code == signal.SIGSEGV
    assert errors.startswith("Fatal Python error: Segmentation fault\n")


def test_a_line_is_never_written_to_a_region(bar0: Path) -> None:
    """As descriptor 2, if the program has closed its standard error."""
    code = BASE + "os.dup2(fd, 2); os.lseek(2, 0x1800, 0); load(base + 0x2005)"
    assert python(code, bar0) == (signal.SIGSEGV, "", "")
    with bar0.open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 16, 0x1800) == bytes(16)


# The device's memory is not sealed, so that it can be taken away, as decode can.
UNSEALED = [
    sys.executable,
    "-c",
    "import fcntl, sys; fcntl.F_SEAL_SHRINK = 0; from barfs.__main__ import main; sys.exit(main())",
]


def test_a_window_that_does_not_answer_is_told(tmp_path: Path) -> None:
    with mounted(tmp_path, "demo", options="map", command=UNSEALED) as mount:
        fds = Path(f"/proc/{mount.process.pid}/fd")
        memory = next(fd for fd in fds.iterdir() if "barfs-device" in os.readlink(fd))
        bar0 = mount.device() / "bar0"
        code = BASE + "print(load(base + 0x1000) > 0, flush=True); input(); load(base + 0x1006)"
        program = subprocess.Popen(
            [*BARFS, "run", sys.executable, "-c", PRELUDE + code, bar0],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert program.stdout is not None
        assert program.stdout.readline() == "True\n"
        os.truncate(memory, 0)
        _, errors = program.communicate("\n")
        assert -program.returncode == signal.SIGBUS
        assert errors == (
            "barfs run: SIGBUS: the device did not answer at bar0+0x1006; for the reason: "
            f"barfs md {bar0} 0x1004\n"
        )


def test_a_mapping_outlives_the_mount(tmp_path: Path) -> None:
    with mounted(tmp_path, "demo", options="map") as mount:
        code = BASE + (
            "print(load(base + 0x1000), flush=True); input(); print(load(base + 0x1000))\n"
            "print(error_of(map_file, fd, 0x1000, 0x1000))"
        )
        program = subprocess.Popen(
            [*BARFS, "run", sys.executable, "-c", PRELUDE + code, mount.device() / "bar0"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert program.stdout is not None
        first = program.stdout.readline()
        mount.process.kill()
        mount.process.wait()
        output, _ = program.communicate("\n")
        assert output == f"{first}ENODEV\n"
        assert program.returncode == 0


def test_a_program_that_is_killed_while_it_asks_harms_no_other(mount: Mounted, bar0: Path) -> None:
    code = PRELUDE + "print('asks', flush=True); map_file(int(sys.argv[2]), 0x1000, 0x1000)"
    fd = os.open(bar0, os.O_RDWR)
    command = [*BARFS, "run", sys.executable, "-c", code, str(bar0), str(fd)]
    for _ in range(3):
        os.kill(mount.process.pid, signal.SIGSTOP)
        try:
            program = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, pass_fds=[fd], text=True
            )
            with program:
                assert program.stdout is not None
                assert program.stdout.readline() == "asks\n"
                wait_until(partial(_waits, program.pid), "the question")
                program.kill()
        finally:
            os.kill(mount.process.pid, signal.SIGCONT)
    os.close(fd)
    assert python("print(load(map_file(bar0, 0x1000, 0x1000)) > 0)", bar0) == (0, "True\n", "")


def _waits(pid: int) -> bool:
    """Whether a process waits for the mount: for its link, or at its socket."""
    places = ("fuse", "request_wait_answer", "unix_")
    try:
        found = Path(f"/proc/{pid}/wchan").read_text()
    except PermissionError:
        return False
    return any(place in found for place in places)
