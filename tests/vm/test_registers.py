# SPDX-License-Identifier: MIT
"""The commands for registers, the trace and a dump, on a device of a real kernel's VFIO."""

from pathlib import Path

from tests.support import barfs, served
from tests.support.guest import sparse

from .mounts import PAGE, mounted, read

IDENTITY = 0x010000ED


def test_commands_trace_and_dump(tmp_path: Path) -> None:
    trace, kept, again = (tmp_path / name for name in ("trace", "kept", "again"))
    with sparse("edu", [(0, PAGE)]) as bdf:
        with mounted(tmp_path, bdf, options=f"trace={trace}") as mount:
            shown = barfs("md", f"{bdf}:bar0", "0")
            assert (shown.stdout, shown.stderr) == (
                "00000000: 010000ed                               ....\n",
                "",
            )
            assert barfs("mw", f"{bdf}:bar0", "4", "0xffff0000").returncode == 0
            assert barfs("md", f"{bdf}:bar0", "4").stdout.split()[1] == "0000ffff"
            read(mount.device() / "bar0", PAGE, 8)  # one of 8 bytes, which is cut in a gap
            refused = barfs("md", "-q", f"{bdf}:bar0", f"{PAGE:#x}")
            assert refused.returncode == 2
            assert "must have at most 4 bytes, not 8; use -l" in refused.stderr
            dumped = barfs("dump", bdf, "-o", kept, "--skip", f"bar0:{PAGE:#x}-0xfffff")
            assert dumped.returncode == 0, dumped.stderr
        lines = [line.split()[4:] for line in trace.read_text().splitlines() if " bar0 " in line]
        assert lines[:6] == [
            ["r", "0x00000000", "4", "0x010000ed", "mmap"],
            ["w", "0x00000004", "4", "0xffff0000", "mmap"],
            ["r", "0x00000004", "4", "0x0000ffff", "mmap"],
            ["r", "0x00001000", "4", "0xffffffff", "pread"],
            ["r", "0x00001004", "4", "0xffffffff", "pread"],
            ["r", "0x00000000", "4", "0x010000ed", "mmap"],  # of the dump
        ]
        opened = barfs("md", f"{bdf}:bar0", "0")
        assert opened.stdout.split()[1] == f"{IDENTITY:08x}"
        assert opened.stderr == f"opened {bdf}: the kernel may reset it\n"
    with served(tmp_path, "--from", kept) as replica:
        assert barfs("md", f"{replica.name}:bar0", "0").stdout.split()[1] == f"{IDENTITY:08x}"
        barfs("dump", replica.name, "-o", again, "--skip", f"bar0:{PAGE:#x}-0xfffff")
    same = barfs("diff", kept, again)
    assert (same.returncode, same.stdout) == (0, "")
