# SPDX-License-Identifier: MIT
"""The other places of a file system are found, whatever this user may see of other processes."""

import os
from pathlib import Path

import pytest

from barfs.host.holders import holders

OURS = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
THEIRS = "30 1 0:52 /bus /mnt\\040x rw - fuse.barfs demo rw\n"


class Processes:
    def __init__(self, proc: Path) -> None:
        self.proc = proc

    def add(self, name: str, mountinfo: str, namespace: str | None = None) -> None:
        folder = self.proc / name
        (folder / "ns").mkdir(parents=True)
        (folder / "comm").write_text("sh\n")
        (folder / "mountinfo").write_text(mountinfo)
        if namespace is not None:
            (folder / "ns/mnt").symlink_to(f"mnt:[{namespace}]")

    def held(self) -> list[str]:
        return holders("0:52", self.proc)


@pytest.fixture
def processes(tmp_path: Path) -> Processes:
    return Processes(tmp_path)


def test_nothing_else(processes: Processes) -> None:
    processes.add("self", OURS, "1")
    processes.add("10", OURS, "1")
    processes.add("11", OURS, "2")
    assert processes.held() == []


def test_a_bind_mount(processes: Processes) -> None:
    processes.add("self", OURS + THEIRS, "1")
    processes.add("10", OURS + THEIRS, "1")
    assert processes.held() == ["at /mnt x (umount '/mnt x')"]


def test_processes_of_namespaces_in_order(processes: Processes) -> None:
    processes.add("self", OURS, "1")
    processes.add("9", OURS + THEIRS, "3")
    for pid in range(100, 107):
        processes.add(str(pid), OURS + THEIRS, "2")
    one, many = processes.held()
    assert one == (
        "at /mnt x in the mount namespace of process 9 (sh) (end it, or as root: "
        "nsenter -t 9 -m umount '/mnt x')"
    )
    assert "of processes 100 (sh), 101 (sh), 102 (sh), 103 (sh), 3 more (end them, or" in many


def test_namespaces_that_may_not_be_looked_up(processes: Processes) -> None:
    """Other users' processes that see the same mounts count as one namespace."""
    processes.add("self", OURS, "1")
    processes.add("10", OURS)
    processes.add("11", OURS + THEIRS)
    processes.add("12", OURS + THEIRS)
    (found,) = processes.held()
    assert "processes 11 (sh), 12 (sh) (" in found


def test_a_process_that_ends_meanwhile(processes: Processes) -> None:
    processes.add("self", OURS, "1")
    (processes.proc / "10").mkdir()
    os.symlink("/nowhere", processes.proc / "11")
    assert processes.held() == []
