# SPDX-License-Identifier: MIT
"""`barfs reg`: registers by name, in a mount and without one."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from barfs import open as open_device
from barfs.errors import UsageError
from tests.support import BARFS, DEADLINE, Mounted, barfs, is_mounted, mounted, served

CARD = Path(__file__).parents[1] / "support" / "card.rdl"


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mounted]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with mounted(tmp_path, "demo", options=f"registers=bar0={CARD}") as running:
        yield running


def lines(*arguments: str | Path) -> list[str]:
    result = barfs("reg", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def test_registers_are_shown_and_written(mount: Mounted) -> None:
    device = mount.device()
    assert lines(device, "dma.chan2.ctrl.mode=burst", "dma.chan[2].ctrl.count=7") == []
    assert lines(device, "dma.chan2.ctrl") == [
        "bar0+0x00004120 dma.chan2.ctrl 0x00070004  "
        "enable[0]=0 mode[2:1]=burst error[8]=0 count[31:16]=7"
    ]
    assert lines(device, "bar0.dma.chan2.ctrl.mode") == [
        "bar0+0x00004120 dma.chan2.ctrl.mode burst"
    ]
    assert len(lines(device, "dma.chan*.status")) == 4
    flat = mount.path / "flat" / device.name.replace(":", "-")
    assert lines(flat, "config.VENDOR_ID") == lines(device, "VENDOR_ID")
    (found,) = json.loads(barfs("reg", "--json", device, "dma.chan2.ctrl").stdout)
    assert (found["region"], found["offset"], found["value"]) == ("bar0", 0x4120, 0x70004)
    assert {part["name"]: part["value"] for part in found["fields"]}["mode"] == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dma.chan2.ctrl.mode=fast", "mode must be a number"),
        ("dma.chan2.ctrl.mode=4", "does not fit"),
        ("dma.chan2.status.amount=1", "stop"),
        ("dma.chan2.status.done=1", "cannot be written"),
        ("identity=1", "cannot be written"),
        ("dma=1", "must be a register or a field"),
        ("nothing=1", "has no nothing"),
        ("nothing", "matches no register"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(mount: Mounted, name: str, message: str) -> None:
    result = barfs("reg", mount.device(), "dma.chan3.ctrl=1", name)
    assert result.returncode in (1, 2)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    if "=" in name:
        ctrl = mount.device() / "registers/bar0/dma/chan3/ctrl"
        assert ctrl.read_text() == "0x00000000\n"


@pytest.mark.parametrize("name", ["dma.chan[-1].ctrl", "bar0.dma.chan[0-3].ctrl", "dma.chan[!0]"])
def test_brackets_are_no_wildcards(mount: Mounted, name: str) -> None:
    device = mount.device()
    cases: list[list[str | Path]] = [
        ["reg", device, name],
        ["reg", "--map", device, name],
        ["reg", device, f"{name}=1"],
        ["watch", device, name],
        ["md", device / "bar0", name],
    ]
    for words in cases:
        result = barfs(*words)
        assert (result.returncode, result.stdout) == (2, "")
        assert "write an element from chan[0] to chan[3]" in result.stderr
    with open_device("demo", registers={"bar0": CARD}) as opened:
        for look_up in (
            opened.registers.__getitem__,
            lambda text: list(opened.registers.match(text)),
        ):
            with pytest.raises(UsageError, match="write an element from"):
                look_up(name)


def test_brackets_are_no_wildcards_of_what_a_dump_skips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with served(tmp_path) as server:
        result = barfs(
            "dump", "--registers", CARD, "--skip", "bar0:dma.chan[!0].ctrl", server.name,
            "-o", tmp_path / "out",
        )  # fmt: skip
    assert result.returncode == 2
    assert "write an element from chan[0] to chan[3]" in result.stderr


def test_reads_with_side_effects_are_asked_for(tmp_path: Path) -> None:
    with served(tmp_path) as server, mounted(tmp_path, server.name) as mount:
        server.accesses()
        shown = lines(mount.device(), "bar0.F*", "bar4.ID")
        assert "not read" in shown[0]
        assert "FIFO" in shown[0]
        assert not any("0x18 " in line for line in server.accesses())
        assert lines(mount.device(), "FIFO") == ["bar0+0x00000018 FIFO 0x00000000"]


def test_a_map_touches_no_register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with (
        served(tmp_path) as server,
        mounted(tmp_path, server.name, options=f"registers={CARD}") as mount,
    ):
        server.accesses()
        found = lines("--map", mount.device(), "bar0")
        assert found[-1] == "bar0+0x00004200 command 32 -w  value[7:0]"
        assert server.accesses() == []
        assert barfs("reg", "--map", mount.device(), "command=1").returncode == 2


def test_a_device_that_is_not_mounted(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        result = barfs("reg", server.name, "bar0.SCRATCH=3", "bar0.SCRATCH", "bar0.ID")
        assert result.returncode == 0
        assert result.stdout.splitlines() == [
            "bar0+0x00000004 SCRATCH 0x00000003",
            "bar0+0x00000000 ID 0x66726162",
        ]
        assert result.stderr == f"opened {server.name}\n"


def test_an_empty_name_is_not_all_registers(mount: Mounted) -> None:
    for words in (["reg", ""], ["reg", "--map", "/"], ["reg", "=1"], ["watch", ""]):
        verb, *rest = words
        result = barfs(verb, *rest[:-1], mount.device(), rest[-1])
        assert (result.returncode, result.stdout) == (2, "")
        assert "must not be empty" in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["md", "demo:bar0", "{}"],
        ["md", "demo:bar0", "0x0-{}"],
        ["script", "/dev/stdin"],
        ["md", "demo:{}", "0x0"],
        ["mount", "-o", "{}", "demo", "/nowhere"],
        ["mount", "-o", "uid={}", "demo", "/nowhere"],
    ],
)
def test_a_byte_that_is_no_text_is_shown_as_one(words: list[str]) -> None:
    odd = os.fsdecode(b"x\xff")
    result = subprocess.run(
        [*BARFS, *(word.replace("{}", odd) for word in words)],
        input=b"x\xff\n",
        capture_output=True,
        check=False,
        timeout=DEADLINE,
    )
    assert result.returncode == 2
    assert b"x\\xff" in result.stderr
    assert b"udcff" not in result.stderr


def test_a_directory_that_is_no_device(tmp_path: Path) -> None:
    result = barfs("reg", tmp_path)
    assert result.returncode == 2
    assert "must be a device's directory" in result.stderr


def test_names_are_taken_where_offsets_are(mount: Mounted) -> None:
    bar0 = mount.device() / "bar0"
    assert barfs("mw", bar0, "dma.chan0.ctrl", "0x00070105").returncode == 0
    assert barfs("md", bar0, "dma.chan0.ctrl").stdout.split()[:2] == ["00004100:", "00070105"]
    assert barfs("md", bar0, "dma/chan0/ctrl.mode").stdout == "00004100[2:1]: 2\n"
    # The neighbour that a 1 clears is written with 0.
    result = barfs("rmw", bar0, "dma.chan[0].ctrl.mode", "single")
    assert (result.returncode, result.stdout) == (0, "00004100: 00070105 -> 00070003\n")
    result = barfs("poll", bar0, "dma.chan0.ctrl.mode", "single")
    assert (result.returncode, result.stdout) == (0, "00004100: 00070003\n")
    assert barfs("rmw", bar0, "dma.chan0.ctrl", "0x1", "0x0").returncode == 0
    assert barfs("md", bar0, "dma.chan0.ctrl").stdout.split()[1] == "00070002"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rmw", "dma.chan0", "0x1", "0x1"], "must be a register or a field"),
        (["poll", "dma", "0x1", "0x1"], "must be a register or a field"),
        (["poll", "dma.chan*.ctrl.mode", "1"], "must be one register"),
        (["md", "dma.chan0.ctrl[32]"], "has bits [31:0]"),
        (["md", "dma.chan0.ctrl[4:7]"], "has bits [31:0]"),
        (["md", "dma.chan0.ctrl.mode[1]"], "must be bits of a register"),
        (["md", "dma.chan0[3]"], "must be bits of a register"),
        (["md", "dma.chan0.ctrl+6"], "aligned"),
        (["md", "dma.chan0.ctrl.mode+8"], "must be a register or a block"),
        (["md", "dma.chan[9].ctrl[3]"], "from chan[0] to chan[3]"),
        (["md", "nothing*"], "matches no register"),
        (["md", "fif*"], "without side effects"),
        (["md", "dma.chan0.ctrx"], "did you mean ctrl"),
        (["md", "dma.chan0.wide"], "use barfs reg"),
        (["mw", "dma.chan0.ctrl.mode", "1"], "rmw"),
        (["rmw", "dma.chan0.status.amount", "1"], "stop"),
        (["rmw", "fifo.value", "1"], "barfs reg"),
        (["rmw", "dma.chan0.ctrl.mode", "fast"], "mode must be a number"),
        (["rmw", "dma.chan0.ctrl.mode", "1", "1"], "without MASK"),
        (["rmw", "dma.chan0.ctrl", "1"], "MASK"),
    ],
)
def test_a_name_that_cannot_be_used_is_said_in_a_line(
    mount: Mounted, arguments: list[str], message: str
) -> None:
    command, *rest = arguments
    result = barfs(command, mount.device() / "bar0", *rest)
    assert result.returncode in (1, 2)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_bits_blocks_and_patterns_of_names(mount: Mounted) -> None:
    bar0 = mount.device() / "bar0"
    for number in range(4):
        assert barfs("mw", bar0, f"dma.chan{number}.ctrl", f"0x000{number}0105").returncode == 0
    assert barfs("md", bar0, "dma.chan[3].ctrl[17:8]").stdout == "00004130[17:8]: 301\n"
    assert barfs("md", bar0, "bar0.dma.chan1.ctrl[8]").stdout == "00004110[8:8]: 1\n"
    assert barfs("md", bar0, "dma.chan*.ctrl.count").stdout == "".join(
        f"000041{number}0[31:16]: {number}\n" for number in range(4)
    )
    block = barfs("md", bar0, "dma.chan2").stdout.splitlines()
    assert [line[:46] for line in block] == ["00004120: 00020105 00000000 00000000 00000000 "]
    ctrls = barfs("md", bar0, "dma.chan[*].ctrl").stdout.splitlines()
    assert [line.split()[:2] for line in ctrls] == [
        [f"000041{number}0:", f"000{number}0105"] for number in range(4)
    ]
    assert barfs("md", bar0, "dma.chan1+0x20").stdout.count("\n") == 2
    values = json.loads(barfs("md", "--json", bar0, "dma.chan*.ctrl.count").stdout)["values"]
    assert [(one["offset"], one["value"], one["bits"]) for one in values][2:] == [
        (0x4120, 2, [31, 16]),
        (0x4130, 3, [31, 16]),
    ]
    # error is cleared by a 1, and so written with 0: it is plain memory here.
    result = barfs("rmw", bar0, "dma.chan2.ctrl[19:16]", "0xf")
    assert (result.returncode, result.stdout) == (0, "00004120: 00020105 -> 000f0005\n")
    result = barfs("poll", bar0, "dma.chan2.ctrl[31:16]", "15")
    assert (result.returncode, result.stdout) == (0, "00004120: 000f0005\n")
    assert barfs("rmw", bar0, "dma.chan2.ctrl", "0x100", "0x100").stdout.endswith("000f0105\n")
    assert barfs("mw", bar0, "dma.chan2", "1", "2").returncode == 0
    assert barfs("md", bar0, "dma.chan2").stdout.split()[1:3] == ["00000001", "00000002"]


ODD = """
addrmap odd {
    default regwidth = 32; default sw = rw; default hw = na;
    external mem { mementries = 8; memwidth = 16; } buffer @ 0x4000;
    reg { field {} value[31:0]; } lane[3] @ 0x4100 += 8;
    reg { regwidth = 16; field {} value[15:0]; } half @ 0x4200;
    reg { regwidth = 64; accesswidth = 32; field {} value[63:0]; } wide @ 0x4204;
};
"""


def test_memories_arrays_and_registers_of_other_widths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "odd.rdl").write_text(ODD)
    with (
        served(tmp_path) as server,
        mounted(tmp_path, server.name, options=f"registers={tmp_path / 'odd.rdl'}") as mount,
    ):
        bar0 = mount.device() / "bar0"
        assert barfs("mw", bar0, "buffer", "0x1111", "0x2222").returncode == 0
        words = barfs("md", bar0, "buffer").stdout.split()
        assert words[:3] == ["00004000:", "1111", "2222"]
        assert [len(word) for word in words[1:9]] == [4] * 8
        for number in range(3):
            assert barfs("mw", bar0, f"lane[{number}]", f"{number}").returncode == 0
        assert [row.split()[:2] for row in barfs("md", bar0, "lane*").stdout.splitlines()] == [
            [f"000041{8 * number:02x}:", f"0000000{number}"] for number in range(3)
        ]
        # An index where the name is an array, bits where it is a register.
        assert barfs("md", bar0, "lane[2]").stdout.split()[:2] == ["00004110:", "00000002"]
        assert barfs("md", bar0, "lane2[1]").stdout == "00004110[1:1]: 1\n"
        assert barfs("md", bar0, "lane[2][1]").stdout == "00004110[1:1]: 1\n"
        rows = barfs("md", bar0, "*").stdout.splitlines()
        assert [row.split()[0] for row in rows][-2:] == ["00004200:", "00004204:"]
        result = barfs("rmw", bar0, "buffer", "1", "1")
        assert (result.returncode, result.stdout) == (2, "")
        assert "must be a register or a field" in result.stderr


def test_a_block_does_not_read_what_has_side_effects(tmp_path: Path) -> None:
    with served(tmp_path) as server, mounted(tmp_path, server.name) as mount:
        server.accesses()
        result = barfs("md", mount.device() / "bar0", "*")
        told = {line.split()[0] for line in result.stderr.splitlines()}
        assert (result.returncode, told) == (0, {"COUNTER", "FIFO", "READS"})
        read = {line.split()[2] for line in server.accesses() if line.startswith("r bar0")}
        assert read == {hex(at) for at in range(0, 0x30, 4)} - {"0x8", "0x18", "0x24"}
        assert barfs("md", mount.device() / "bar0", "FIFO").stdout.startswith("00000018: 00000000")


def test_each_error_of_a_description_is_a_line(tmp_path: Path) -> None:
    bad, path = tmp_path / "bad.rdl", tmp_path / "mnt"
    bad.write_text("addrmap x {\nreg { field {} a[31:0] } r;\n};\n")
    path.mkdir()
    cases: list[list[str | Path]] = [
        ["mount", "-o", f"registers={bad}", "demo", path],
        ["reg", "--registers", bad, "demo"],
        ["dump", "--registers", bad, "demo", "-o", tmp_path / "a"],
    ]
    for words in cases:
        result = barfs(*words)
        assert result.returncode == 2
        lines = result.stderr.splitlines()
        assert len(lines) > 1
        assert all(line.startswith(f"barfs: {bad}:2: ") for line in lines)
        assert not is_mounted(path)


def test_an_explicit_description_of_a_mounted_device_is_read_by_not_written(
    tmp_path: Path,
) -> None:
    with served(tmp_path) as server, mounted(tmp_path, server.name) as mount:
        description = f"bar2={CARD}"
        found = lines("--registers", description, mount.device(), "dma.chan1.ctrl")
        assert found[0].startswith("bar2+0x00004110 dma.chan1.ctrl 0x00000000")
        assert lines("--registers", "off", "--map", mount.device()) == []
        result = barfs("reg", "--registers", description, mount.device(), "dma.chan1.ctrl=1")
        assert result.returncode == 2
        assert "leave out --registers" in result.stderr
        assert barfs("md", mount.device() / "bar2", "0x4110").stdout.split()[1] == "00000000"


def test_names_on_a_device_that_is_not_mounted(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        bar0 = f"{server.name}:bar0"
        result = barfs("mw", bar0, "SCRATCH", "0x1234")
        assert (result.returncode, result.stderr) == (0, f"opened {server.name}\n")
        result = barfs("md", bar0, "SCRATCH[15:8]")
        assert (result.stdout, result.stderr) == ("00000004[15:8]: 12\n", f"opened {server.name}\n")
        assert (
            barfs("rmw", bar0, "SCRATCH[7:0]", "0xff").stdout == "00000004: 00001234 -> 000012ff\n"
        )
        assert barfs("poll", bar0, "SCRATCH", "0xff", "0xff").returncode == 0
        assert barfs("md", f"{server.name}:config", "COMMAND.MASTER").stdout == "00000004[2:2]: 0\n"
        server.accesses()
        result = barfs("md", "-n", bar0, "SCRATCH")
        assert result.returncode == 2
        assert "--dry-run" in result.stderr
        result = barfs("md", f"{server.name}:bar2", "SCRATCH")
        assert result.returncode == 2
        assert "no description of the registers" in result.stderr
        assert not [line for line in server.accesses() if " bar0 " in line]
