# SPDX-License-Identifier: MIT
"""`md`, `mw`, `rmw` and `poll`: what they print, and the accesses that they make."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import Served, barfs, mounted, served

COUNTER = 0x08
GAP = 0x4000


@dataclass(frozen=True)
class Bench:
    server: Served
    bar0: Path
    """In a mount of the device."""

    def run(self, command: str, *words: str) -> tuple[int, str, str]:
        result = barfs(command, self.bar0, *words)
        return result.returncode, result.stdout, result.stderr

    def out(self, command: str, *words: str) -> str:
        code, output, errors = self.run(command, *words)
        assert (code, errors) == (0, "")
        return output

    def error(self, command: str, *words: str) -> tuple[int, str]:
        """The exit code and the message of a command that makes no access."""
        self.server.accesses()
        code, output, errors = self.run(command, *words)
        assert output == ""
        assert self.server.accesses() == []
        assert errors.startswith("barfs: ")
        assert errors.count("\n") == 1
        return code, errors.strip()


@pytest.fixture(scope="module")
def mounted_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("registers")
    with served(folder) as server, mounted(folder, server.name) as mount:
        yield Bench(server, mount.device() / "bar0")


@pytest.fixture
def bench(mounted_bench: Bench) -> Bench:
    mounted_bench.server.accesses()
    return mounted_bench


def test_md_prints_as_u_boot_does(bench: Bench) -> None:
    assert bench.out("md", "0x1000+0x14").splitlines() == [
        "00001000: 66726162 00000001 00000000 00000000    barf............",
        "00001010: 66726162                               barf",
    ]
    assert bench.out("md", "-b", "0x1010-0x1014") == (
        "00001010: 62 61 72 66 73                                     barfs\n"
    )
    assert bench.out("md", "-w", "0x1010+4") == (
        "00001010: 6162 6672                                  barf\n"
    )
    assert bench.out("md", "-q", "0x1010+8") == (
        "00001010: 6564207366726162                     barfs de\n"
    )
    assert bench.out("md", "0x1000[15:8]") == "00001000[15:8]: 61\n"
    assert bench.out("md", "4k[0]") == "00001000[0:0]: 0\n"


@pytest.mark.parametrize(("flag", "width"), [("-b", 1), ("-w", 2), ("-l", 4), ("-q", 8)])
def test_one_access_for_a_value(bench: Bench, flag: str, width: int) -> None:
    bench.out("mw", flag, f"{GAP:#x}", "1", "-2")
    bench.out("md", flag, f"{GAP:#x}+{2 * width}")
    high = (1 << 8 * width) - 2
    digits = 2 * width
    assert bench.server.accesses() == [
        f"{direction} bar0 {GAP + at * width:#x} {width} 0x{value:0{digits}x}"
        for direction in "wr"
        for at, value in enumerate((1, high))
    ]


def test_rmw_reads_once_and_writes_once(bench: Bench) -> None:
    bench.out("mw", "4", "0x11223344")
    bench.server.accesses()
    assert bench.out("rmw", "4", "0xff00", "0x1200") == "00000004: 11223344 -> 11221244\n"
    assert bench.out("rmw", "4[31:28]", "0xf") == "00000004: 11221244 -> f1221244\n"
    assert bench.server.accesses() == [
        "r bar0 0x4 4 0x11223344",
        "w bar0 0x4 4 0x11221244",
        "r bar0 0x4 4 0x11221244",
        "w bar0 0x4 4 0xf1221244",
    ]


def test_poll_until_it_counts(bench: Bench) -> None:
    first = int(bench.out("md", f"{COUNTER:#x}").split()[1], 16)
    wanted = (first + 3) & 0xFF
    assert int(bench.out("poll", f"{COUNTER}[7:0]", str(wanted)).split()[1], 16) & 0xFF == wanted
    code, output, errors = bench.run("poll", "0", "0xff", "0", "--timeout", "0.05")
    assert (code, output) == (1, "")
    assert "0x0 is 0x66726162 after 0.05 s; its bits 0xff are 0x62, not 0x0" in errors


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("-1", 0xFFFFFFFF),
        ("-0x1", 0xFFFFFFFF),
        ("-1k", 0xFFFFFC00),
        ("-0X80000000", 0x80000000),
        ("-0b10", 0xFFFFFFFE),
        ("-1_0", 0xFFFFFFF6),
    ],
)
def test_negative_values(bench: Bench, value: str, kept: int) -> None:
    bench.out("mw", "0x1100", value, value)
    assert bench.out("md", "0x1104").startswith(f"00001104: {kept:08x} ")
    assert bench.out("mw", "0x1100", "0", value, "-n").count("write") == 2
    assert bench.out("rmw", "0x1100", value, value).endswith(f" -> {kept:08x}\n")
    assert bench.out("poll", "0x1100", value, value) == f"00001100: {kept:08x}\n"


def test_negative_values_of_bits(bench: Bench) -> None:
    bench.out("mw", "-q", "0x1100", "0")
    assert bench.out("rmw", "0x1100[15:8]", "-0x2").endswith(" -> 0000fe00\n")
    assert bench.out("poll", "0x1100[15:8]", "-2") == "00001100: 0000fe00\n"
    assert bench.out("rmw", "-q", "0x1100[63]", "-1").endswith(" -> 800000000000fe00\n")


def test_json_has_64_bits_as_text(bench: Bench) -> None:
    number = (1 << 64) - 3
    as_both = {"offset": 0x1100, "offset_hex": "0x1100"}
    value = {"value": number, "value_hex": "0xfffffffffffffffd"}
    written = json.loads(bench.out("mw", "-q", "--json", "0x1100", f"{number:#x}"))
    assert written["written"] == [as_both | value]
    words = json.loads(bench.out("md", "-q", "--json", "0x1100"))
    assert words["values"] == [as_both | value]
    bits = json.loads(bench.out("md", "-q", "--json", "0x1100[63:1]"))
    assert (bits["value_hex"], bits["offset_hex"]) == ("0x7ffffffffffffffe", "0x1100")
    changed = json.loads(bench.out("rmw", "-q", "--json", "0x1100", "-1", "1"))
    assert (changed["old_hex"], changed["new_hex"]) == ("0xfffffffffffffffd", "0x1")
    polled = json.loads(bench.out("poll", "-q", "--json", "0x1100", "-1", "1"))
    assert polled["value_hex"] == "0x1"


def test_json(bench: Bench) -> None:
    words = json.loads(bench.out("md", "--json", "0x1000+8"))
    assert words["width"] == 4
    assert words["values"] == [
        {"offset": 0x1000, "offset_hex": "0x1000", "value": 0x66726162, "value_hex": "0x66726162"},
        {"offset": 0x1004, "offset_hex": "0x1004", "value": 1, "value_hex": "0x1"},
    ]
    assert json.loads(bench.out("md", "--json", "0x1000[15:8]"))["value"] == 0x61
    written = json.loads(bench.out("mw", "--json", "4", "7"))["written"]
    assert written == [{"offset": 4, "offset_hex": "0x4", "value": 7, "value_hex": "0x7"}]
    changed = json.loads(bench.out("rmw", "--json", "4", "1", "0"))
    assert (changed["old"], changed["new"]) == (7, 6)
    assert json.loads(bench.out("poll", "--json", "4", "1", "0"))["value"] == 6


def test_a_dry_run_makes_no_access(bench: Bench) -> None:
    assert bench.out("md", "-n", "0+8").splitlines() == [
        f"read 4 bytes at 0x0 of {bench.bar0}",
        f"read 4 bytes at 0x4 of {bench.bar0}",
    ]
    assert bench.out("mw", "-n", "4", "1") == f"write 0x00000001 at 0x4 of {bench.bar0}\n"
    assert "write (value & ~0xff00) | 0x1200 at 0x4" in bench.out("rmw", "-n", "4[15:8]", "0x12")
    assert "until value & 0x1 == 0x1" in bench.out("poll", "-n", "4", "1", "1")
    assert bench.server.accesses() == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("md", "0x1001"), "must be aligned 4-byte registers"),
        (("md", "0x1000+6"), "must be aligned 4-byte registers"),
        (("md", "0xfffc+8"), "exceeds the region, which has 0x10000 bytes"),
        (("md", "0x1000[32:0]"), "has bits \\[31:0\\]"),
        (("md", "0x1000[0:8]"), "has bits \\[31:0\\]"),
        (("md", "0+8[3]"), "RANGE must be one register"),
        (("md", "zero"), "has no zero"),
        (("mw", "4", "0x100000000"), "does not fit in 4 bytes"),
        (("mw", "4[0]", "1"), "with barfs rmw"),
        (("mw", "0xfffc", "1", "2"), "exceeds the region"),
        (("rmw", "4", "1"), "use OFFSET MASK VALUE or"),
        (("rmw", "4", "1", "2"), "bits outside the mask"),
        (("rmw", "4[3:0]", "16"), "16 does not fit in the bits \\[3:0\\]"),
        (("rmw", "4[3:0]", "-0x9"), "-0x9 does not fit in the bits \\[3:0\\]"),
        (("mw", "4", "-0x80000001"), "-0x80000001 does not fit in 4 bytes"),
        (("mw", "4", "-0z"), "is not a number"),
        (("md", "-0x4"), "is not a number"),
        (("poll", "4", "1", "1", "--timeout", "nan"), "must be a number of seconds, not"),
        (("poll", "4", "1", "1", "--timeout", "-1"), "must be a number of seconds, not"),
    ],
)
def test_what_makes_no_sense_touches_nothing(
    bench: Bench, words: tuple[str, ...], message: str
) -> None:
    code, error = bench.error(*words)
    assert code == 2
    assert re.search(message, error)


def test_a_device_by_its_name(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        opened = barfs("md", f"{server.name}:bar0", "0x1000")
        assert (opened.returncode, opened.stderr) == (0, f"opened {server.name}\n")
        with mounted(tmp_path, server.name):
            through = barfs("md", f"{server.name}:bar0", "0x1000")
            missing = barfs("md", f"{server.name}:bar1", "0")
        assert (through.returncode, through.stderr) == (0, "")
        assert through.stdout == opened.stdout
        assert missing.returncode == 2
        assert "has no bar1" in missing.stderr


def test_what_is_no_file(tmp_path: Path) -> None:
    for file in (tmp_path / "missing", "nothing:bar0", tmp_path):
        result = barfs("md", file, "0")
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1


def test_a_refused_access_names_itself(bench: Bench) -> None:
    fault = 0x28
    bench.out("mw", f"{fault:#x}", "1")
    try:
        code, output, errors = bench.run("md", f"{fault:#x}")
    finally:
        bench.out("mw", f"{fault:#x}", "0")
    assert (code, output) == (1, "")
    assert errors == f"barfs: {bench.bar0}: read of 4 bytes at 0x28: Input/output error\n"
