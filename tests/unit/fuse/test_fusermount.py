# SPDX-License-Identifier: MIT
"""The process of a mount that does not answer."""

from pathlib import Path

import pytest

from barfs.fuse.fusermount import is_stopped, process_of

HELPER = ("fusermount3", "-o", "auto_unmount", "--", "/mnt/a b")


def process(proc: Path, pid: int, stat: str, *command: str) -> None:
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "cmdline").write_text("".join(f"{word}\0" for word in command))
    (folder / "stat").write_text(f"{pid} (a) b) {stat} 0 -1 0\n")


@pytest.mark.parametrize(
    ("helper", "open_file", "found"),
    [
        (HELPER, "/dev/fuse", 40),
        (("/usr/bin/fusermount3", *HELPER[1:]), "/dev/fuse", 40),
        (HELPER, "/dev/null", None),
        (("fusermount3", "-u", "--", "/mnt/a b"), "/dev/fuse", None),
        (("fusermount3", "--", "/mnt/a"), "/dev/fuse", None),
        (("cat", "--", "/mnt/a b"), "/dev/fuse", None),
        ((), "/dev/fuse", None),
    ],
)
def test_the_parent_of_the_helper(
    tmp_path: Path, helper: tuple[str, ...], open_file: str, found: int | None
) -> None:
    process(tmp_path, 40, "T 1 40 40", "barfs")
    (tmp_path / "40/fd").mkdir()
    (tmp_path / "40/fd/5").symlink_to(open_file)
    process(tmp_path, 41, "S 40 40 40", *helper)
    (tmp_path / "42").mkdir()  # has just ended
    assert process_of(Path("/mnt/a b"), tmp_path) == found
    assert is_stopped(40, tmp_path)
    assert not is_stopped(41, tmp_path)
    assert not is_stopped(42, tmp_path)
