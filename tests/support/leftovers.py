# SPDX-License-Identifier: MIT
"""Finding what a test has left behind on the machine."""

import os
from pathlib import Path

from tests.support import wait_until


def processes(word: str) -> list[str]:
    """The command lines of the other running processes that contain `word`."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # ended while we looked
        if word in line:
            found.append(line)
    return found


def assert_nothing_left(folder: Path) -> None:
    """No mount below `folder`, no process that has it in its command line, no socket in it."""
    wait_until(lambda: not processes(str(folder)), f"the end of {processes(str(folder))}")
    assert os.fsencode(folder) not in Path("/proc/self/mountinfo").read_bytes()
    assert not [path for path in folder.rglob("*") if path.is_socket()]
