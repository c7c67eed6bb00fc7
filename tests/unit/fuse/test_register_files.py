# SPDX-License-Identifier: MIT
"""Which thread accesses a register whose file is read."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import barfs
from barfs.fuse import register_files
from barfs.fuse.register_files import OpenRegister, RegisterFiles
from barfs.fuse.tree import RegisterFile
from barfs.region import Region
from barfs.registers.access import BoundRegister

DESCRIPTION = """
addrmap two {
    default sw = rw;
    default regwidth = 32;
    reg { field {} f[32]; } gap @ 0x4;
    reg { field {} f[32]; } window @ 0x1300;
};
"""


class Reads:
    """Reads of registers of the demo device, by the files of a mount."""

    def __init__(self, device: barfs.Device, monkeypatch: pytest.MonkeyPatch) -> None:
        self._files = RegisterFiles()
        self._registers = device.registers
        self._text_of = register_files._text_of
        self.delay = 0.0
        self.threads: list[int] = []
        monkeypatch.setattr(register_files, "_text_of", self._text)

    def _text(self, bound: BoundRegister) -> bytes:
        self.threads.append(threading.get_ident())
        time.sleep(self.delay)
        return self._text_of(bound)

    def in_the_event_loop(self, name: str) -> bool:
        """Read the register, and say whether the event loop's thread did."""
        bound = self._registers[name]
        assert isinstance(bound, BoundRegister)
        assert isinstance(bound.region, Region)
        node = RegisterFile(1, 0o600, device=1, name=b"r", parent=1, bound=bound)
        assert trio.run(self._files.read, OpenRegister(node), 0, 100) == b"0x00000000\n"
        return self.threads[-1] == threading.get_ident()


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reads]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(register_files, "_QUICK", 10.0)
    description = tmp_path / "two.rdl"
    description.write_text(DESCRIPTION)
    with barfs.open("demo", registers={"bar0": description}) as device:
        yield Reads(device, monkeypatch)


def test_quick_windows_are_read_by_the_event_loop(reads: Reads) -> None:
    assert not reads.in_the_event_loop("window")
    assert reads.in_the_event_loop("window")
    assert reads.in_the_event_loop("window")


def test_a_gap_is_not(reads: Reads) -> None:
    assert [reads.in_the_event_loop("gap") for _ in range(3)] == [False] * 3


def test_a_window_that_becomes_slow_holds_the_event_loop_up_once(
    reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not reads.in_the_event_loop("window")
    monkeypatch.setattr(register_files, "_QUICK", 0.01)
    reads.delay = 0.02
    assert [reads.in_the_event_loop("window") for _ in range(4)] == [True, False, False, False]
    monkeypatch.setattr(register_files, "_QUICK", 10.0)
    assert [reads.in_the_event_loop("window") for _ in range(2)] == [False, True]
