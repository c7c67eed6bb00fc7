# SPDX-License-Identifier: MIT
"""`barfs reg`: registers by name, in a mount and without one."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import Mounted, barfs, mounted, served

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
        (["md", "dma"], "must be a register or a field"),
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


def test_a_name_needs_a_mount(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        result = barfs("md", f"{server.name}:bar0", "SCRATCH")
        assert result.returncode == 2
        assert "barfs reg" in result.stderr
