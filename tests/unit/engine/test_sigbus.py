# SPDX-License-Identifier: MIT
"""Memory that goes away under an access ends the transfer, and nothing else.

What may kill the process runs in a process of its own, and its exit status is the result.
"""

import faulthandler
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest

from barfs import engine
from barfs.errors import BusFault
from tests.support.engine_bench import PAGE, memfd, memory_table

PRELUDE = """
    import ctypes, faulthandler, mmap, os, signal, sys, threading
    from barfs import engine
    from barfs.errors import BusFault

    fd = os.memfd_create("window")
    os.ftruncate(fd, engine.PAGE_SIZE)
    mapping = engine.Mapping(fd, 0, engine.PAGE_SIZE)
    entry = engine.TableEntry(0, engine.PAGE_SIZE, True, True, 8, engine.Memory(mapping))
    table = engine.Table(engine.InFlight(), engine.PAGE_SIZE, 4, [entry])

    def fault(times=1):
        os.ftruncate(fd, 0)
        for _ in range(times):
            try:
                table.load32(0)
            except BusFault:
                continue
            raise SystemExit("no fault")
        os.ftruncate(fd, engine.PAGE_SIZE)
        assert table.load32(0) == 0

    def foreign_fault():
        other = os.memfd_create("foreign")
        os.ftruncate(other, mmap.PAGESIZE)
        memory = mmap.mmap(other, mmap.PAGESIZE)
        os.ftruncate(other, 0)
        return memory[0]
"""


def run(body: str, *flags: str) -> subprocess.CompletedProcess[str]:
    program = textwrap.dedent(PRELUDE) + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, *flags, "-c", program], capture_output=True, text=True, timeout=60
    )


def survives(body: str, *flags: str) -> str:
    """What `body` wrote to stderr, having ended well."""
    result = run(body, *flags)
    assert result.returncode == 0, result.stderr
    return result.stderr


@pytest.fixture
def window() -> Iterator[tuple[int, engine.Table]]:
    with memfd(4 * PAGE, bytes(range(256))) as fd, memory_table(fd, 4 * PAGE) as table:
        yield fd, table


def test_faults_are_errors_and_short_counts(window: tuple[int, engine.Table]) -> None:
    fd, table = window
    os.ftruncate(fd, PAGE)
    assert len(table.read(PAGE - 10, 100)) == 10
    assert table.write(PAGE - 3, b"abcdef") == 3
    for attempt in (
        lambda: table.read(PAGE, 4),
        lambda: table.write(3 * PAGE, b"x"),
        lambda: table.load(PAGE, 8),
        lambda: table.store(PAGE, 2, 1),
    ):
        with pytest.raises(BusFault):
            attempt()
    assert table.in_flight.inside == 0
    os.ftruncate(fd, 4 * PAGE)
    assert table.read(PAGE - 3, 6) == b"abc\0\0\0"
    assert table.write(PAGE, b"again") == 5


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_the_count_is_exact_at_every_width(width: int) -> None:
    with memfd(PAGE) as fd, memory_table(fd, 2 * PAGE, width=width) as table:
        for start in range(PAGE - 17, PAGE):
            assert len(table.read(start, 64)) == PAGE - start
            assert table.write(start, bytes(64)) == PAGE - start


def test_ten_thousand_faults(window: tuple[int, engine.Table]) -> None:
    fd, table = window
    os.ftruncate(fd, 0)
    for _ in range(10_000):
        with pytest.raises(BusFault):
            table.load32(0)


def test_threads_against_truncations() -> None:
    size = 16 * PAGE
    deadline = time.monotonic() + 1.5
    with memfd(size) as fd, memory_table(fd, size, width=8) as table:

        def read() -> None:
            while time.monotonic() < deadline:
                buffer = bytearray(b"\xee" * size)  # which the window never holds
                try:
                    done = table.read_into(0, buffer)
                except BusFault:
                    done = 0
                    faults[0] += 1
                ends[done < size] += 1
                # The count is exact wherever in a page the fault came.
                assert (done % 8, buffer.find(0xEE)) == (0, done if done < size else -1)

        def write() -> None:
            while time.monotonic() < deadline:
                try:
                    assert table.write(0, bytes(size)) % 8 == 0
                except BusFault:
                    faults[1] += 1

        ends, faults = [0, 0], [0, 0]
        threads = [threading.Thread(target=target) for target in [read, write] * 4]
        for thread in threads:
            thread.start()
        while time.monotonic() < deadline:
            for length in (0, size, PAGE * 3, size):
                os.ftruncate(fd, length)
        for thread in threads:
            thread.join()
        assert min(ends) > 0


class TestOtherHandlers:
    def test_faulthandler_enabled_before(self) -> None:
        assert survives("fault(1000)", "-X", "faulthandler") == ""

    def test_faulthandler_enabled_after(self) -> None:
        assert survives("fault(); faulthandler.enable(); fault(1000)") == ""

    def test_faulthandler_enabled_and_disabled(self) -> None:
        assert survives("fault(); faulthandler.enable(); faulthandler.disable(); fault(9)") == ""

    def test_faulthandler_enabled_before_and_disabled_after(self) -> None:
        assert survives("fault(); faulthandler.disable(); fault(9)", "-X", "faulthandler") == ""

    def test_faulthandler_on_top_of_the_guard_costs_its_report_only(self) -> None:
        # A thread in C, such as the gate's, does not pass the Python face that would re-arm.
        report = survives(
            """
            from barfs.engine import sigbus
            fault()
            faulthandler.enable()
            sigbus.seen_faulthandler = True
            fault(1000)
            """
        )
        assert report.count("Fatal Python error: Bus error") == 1

    def test_a_removed_handler_comes_back_on_request(self) -> None:
        body = "fault(); signal.signal(signal.SIGBUS, signal.SIG_DFL); engine.arm_guard(); fault()"
        assert survives(body) == ""

    def test_blocked_in_the_thread(self) -> None:
        survives(
            """
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGBUS])
            thread = threading.Thread(target=fault, args=(9,))
            thread.start()
            thread.join()
            fault(9)
            print("done")
            """
        )

    def test_pytest_runs_with_faulthandler(self) -> None:
        assert faulthandler.is_enabled()


class TestForeignFaults:
    def test_the_default_kills(self) -> None:
        result = run("fault(); foreign_fault()")
        assert result.returncode == -signal.SIGBUS
        assert result.stderr == ""

    @pytest.mark.parametrize(
        "change",
        [
            "",
            "faulthandler.disable(); fault(); faulthandler.enable()",
            "faulthandler.disable(); faulthandler.enable(); engine.arm_guard()",
        ],
    )
    def test_faulthandler_reports_and_kills(self, change: str) -> None:
        result = run(f"fault(); {change}\nfault(); foreign_fault()", "-X", "faulthandler")
        assert result.returncode == -signal.SIGBUS
        assert "Fatal Python error: Bus error" in result.stderr
        assert "in foreign_fault" in result.stderr

    @pytest.mark.parametrize(
        "change",
        [
            "faulthandler.disable(); fault()",  # its handler is below ours, and does nothing
            "signal.signal(signal.SIGBUS, signal.SIG_IGN); engine.arm_guard()",
            # Python's handlers only note the signal: the access would fault for ever.
            "signal.signal(signal.SIGBUS, lambda *_: None); engine.arm_guard()",
        ],
    )
    def test_a_handler_that_does_nothing_does_not_hang(self, change: str) -> None:
        result = run(f"fault(); {change}\nforeign_fault()", "-X", "faulthandler")
        assert result.returncode == -signal.SIGBUS

    def test_a_handler_that_mends_is_left_to_mend(self) -> None:
        survives(
            """
            libc = ctypes.CDLL(None, use_errno=True)
            libc.mmap.restype = ctypes.c_void_p
            libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [
                ctypes.c_long]
            mended = []

            @ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.POINTER(ctypes.c_long), ctypes.c_void_p)
            def mend(number, info, context):
                address = info[2]  # siginfo_t.si_addr
                libc.mmap(address & ~4095, 4096, 3, 0x32, -1, 0)
                mended.append(address)

            class Action(ctypes.Structure):
                _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_ulong * 16),
                            ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p)]

            action = Action(ctypes.cast(mend, ctypes.c_void_p), flags=4)  # SA_SIGINFO
            assert libc.sigaction(signal.SIGBUS, ctypes.byref(action), None) == 0
            engine.arm_guard()
            fault()
            assert foreign_fault() == 0
            assert len(mended) == 1
            fault()
            """
        )

    def test_a_signal_that_was_sent_kills_as_ever(self) -> None:
        result = run("fault(); os.kill(os.getpid(), signal.SIGBUS)")
        assert result.returncode == -signal.SIGBUS

    def test_a_signal_that_was_sent_and_ignored(self) -> None:
        survives(
            """
            signal.signal(signal.SIGBUS, signal.SIG_IGN)
            engine.arm_guard()
            os.kill(os.getpid(), signal.SIGBUS)
            fault()
            """
        )

    def test_a_signal_that_was_sent_reaches_a_python_handler(self) -> None:
        survives(
            """
            seen = []
            signal.signal(signal.SIGBUS, lambda *_: seen.append(1))
            engine.arm_guard()
            for n in range(2000):
                os.kill(os.getpid(), signal.SIGBUS)
            fault()
            assert seen
            """
        )


def test_an_external_abort_without_an_address() -> None:
    """The signal that arm64 sends for one, to a thread whose access waits in a userfaultfd."""
    survives(
        """
        import struct

        libc = ctypes.CDLL(None, use_errno=True)
        userfaultfd, sigqueueinfo = {"x86_64": (323, 129), "aarch64": (282, 138)}[
            os.uname().machine
        ]
        UFFD_API, UFFDIO_API, UFFDIO_REGISTER = 0xAA, 0xC018AA3F, 0xC020AA00
        MODE_MISSING, BUS_OBJERR = 1, 3

        watch = libc.syscall(userfaultfd, os.O_CLOEXEC)

        def ask(request, *values):
            buffer = ctypes.create_string_buffer(struct.pack(f"{len(values)}Q", *values))
            assert libc.ioctl(watch, ctypes.c_ulong(request), buffer) == 0

        ask(UFFDIO_API, UFFD_API, 0, 0)
        ask(UFFDIO_REGISTER, mapping.address, engine.PAGE_SIZE, MODE_MISSING, 0)
        os.ftruncate(fd, 0)  # the page that the mapping was made with
        os.ftruncate(fd, engine.PAGE_SIZE)

        outcome = []

        def access():
            try:
                outcome.append(table.load32(0))
            except BusFault as error:
                outcome.append(error)

        thread = threading.Thread(target=access, daemon=True)
        thread.start()
        os.read(watch, 32)
        abort = struct.pack("iiiiQ", signal.SIGBUS, 0, BUS_OBJERR, 0, 0).ljust(128, b"\\0")
        # A fault's code can be sent only to the own process: the other thread is to get the signal.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGBUS])
        assert libc.syscall(sigqueueinfo, os.getpid(), int(signal.SIGBUS), abort) == 0
        thread.join(30)
        os.close(watch)
        assert isinstance(outcome[0], BusFault), outcome
        assert table.load32(0) == 0
        """
    )
