# SPDX-License-Identifier: MIT
"""The processes that still have a device, by what /proc shows of them."""

import os
from pathlib import Path

import pytest

from barfs.host.device_clients import Process, still_holding

FILE = "anon_inode:[vfio-device]"
MAPPED = f"7f00-7f01 rw-s 00000000 00:0f 1027 {' ' * 20}{FILE}\n"


class Processes:
    def __init__(self, proc: Path) -> None:
        self.proc = proc

    def add(
        self, pid: int, *, parent: int = 1, started: int = 5, maps: str = "", fd: str = ""
    ) -> None:
        folder = self.proc / str(pid)
        (folder / "fd").mkdir(parents=True)
        name = "odd) name"
        fields = " ".join(["0"] * 17)
        (folder / "stat").write_text(f"{pid} ({name}) S {parent} {fields} {started} 0 0\n")
        (folder / "maps").write_text("00-01 r--p 0 0:0 0\n" + maps)
        if fd:
            (folder / "fd" / "3").symlink_to(fd)

    def holding(self, *clients: int) -> list[str]:
        known = [Process(pid, 1, 5, "odd) name") for pid in clients]
        return [str(found) for found in still_holding(FILE, known, self.proc)]


@pytest.fixture
def processes(tmp_path: Path) -> Processes:
    return Processes(tmp_path)


def test_a_client_with_a_mapping_or_a_descriptor(processes: Processes) -> None:
    processes.add(10, maps=MAPPED)
    processes.add(11, fd=FILE)
    processes.add(12)
    assert processes.holding(10, 11, 12) == ["10 (odd) name)", "11 (odd) name)"]


@pytest.mark.parametrize("marked", ["", " (deleted)"])
def test_the_node_of_a_character_device_goes(processes: Processes, marked: str) -> None:
    node = "/dev/vfio/devices/vfio0"
    processes.add(10, maps=MAPPED.replace(FILE, f"{node} (deleted)"))
    processes.add(11, fd=f"{node} (deleted)")
    processes.add(12, fd=node)
    processes.add(13, fd="/dev/vfio/devices/vfio1 (deleted)")
    clients = [Process(pid, 1, 5, "") for pid in range(10, 14)]
    found = still_holding(f"{node}{marked}", clients, processes.proc)
    assert [process.pid for process in found] == [10, 11, 12]


def test_only_clients_and_their_descendants(processes: Processes) -> None:
    processes.add(10)
    processes.add(20, parent=10)
    processes.add(30, parent=20, maps=MAPPED)
    processes.add(31, maps=MAPPED)
    assert processes.holding(10) == ["30 (odd) name)"]


def test_a_number_that_another_process_has_now(processes: Processes) -> None:
    processes.add(10, started=6, maps=MAPPED)
    assert processes.holding(10, 99) == []


def test_this_process(tmp_path: Path) -> None:
    own = Process.find(os.getpid())
    assert own is not None
    assert own.parent == os.getppid()
    file = tmp_path / "held"
    assert still_holding(str(file), [own]) == []
    with file.open("w"):
        assert still_holding(str(file), [own]) == [own]
