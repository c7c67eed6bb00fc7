# SPDX-License-Identifier: MIT
"""`-o widths=` and `widths` of a policy: what the device sees, and what it never sees."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import barfs
from barfs.errors import InvalidAccess, UsageError
from barfs.layout import Layout
from tests.support import barfs as command
from tests.support import mounted, served, wait_until
from tests.support.watched import Watched, opened, watched

GAP = 0x4000  # memory of bar0 behind messages
WINDOW = 0x3000
RULES = f"""
[[rule]]
region = "bar0"
range = "{GAP + 0x40:#x}+0x40"
widths = [1]

[[rule]]
region = "bar0"
range = "{GAP + 0x80:#x}+0x40"
widths = [4, 8]
access = "ro"
"""


@pytest.fixture(
    scope="module", params=["widths=4", "widths=4:8,width=8", "widths=8", "widths=1:4,width=2"]
)
def each(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    with watched(tmp_path_factory.mktemp("widths"), request.param) as found:
        yield found


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("ruled")
    (folder / "policy.toml").write_text(RULES)
    with watched(folder, f"policy={folder}/policy.toml,widths=4,guard") as found:
        yield found


def error_of(fd: int, offset: int, count: int, *, writes: bool = False) -> int:
    try:
        done = os.pwrite(fd, bytes(count), offset) if writes else len(os.pread(fd, count, offset))
    except OSError as error:
        return error.errno or 0
    assert done == count
    return 0


@given(st.integers(0, 40), st.integers(1, 40), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_device_sees_allowed_widths_or_nothing(
    each: Watched, start: int, count: int, writes: bool
) -> None:
    layout = Layout.from_text(each.region("bar0.layout").read_text())
    (segment,) = (one for one in layout.segments if one.start <= GAP < one.end)
    each.accesses()
    with opened(each.region()) as fd:
        error = error_of(fd, GAP + start, count, writes=writes)
    found = each.accesses()
    assert all(width in segment.widths and at % width == 0 for _rw, _bar, at, width in found)
    if error:
        assert error == errno.EINVAL
        assert found == []
        return
    assert sum(width for *_, width in found) == count
    assert [at for _rw, _bar, at, _width in found] == sorted({at for _, _, at, _ in found})


def test_eight_bytes_are_two_of_four(tmp_path: Path) -> None:
    with watched(tmp_path, "widths=4") as mount, opened(mount.region()) as fd:
        os.pwrite(fd, b"12345678", GAP)
        assert mount.accesses() == [("w", "bar0", GAP, 4), ("w", "bar0", GAP + 4, 4)]
        assert os.pread(fd, 8, GAP) == b"12345678"
        assert mount.accesses() == [("r", "bar0", GAP, 4), ("r", "bar0", GAP + 4, 4)]
        for offset, count in ((GAP, 1), (GAP, 2), (GAP + 2, 4), (GAP, 6), (WINDOW, 2)):
            for writes in (False, True):
                assert error_of(fd, offset, count, writes=writes) == errno.EINVAL
        assert mount.accesses() == []
        # config takes every width, as PCI wants it.
        with opened(mount.region("config"), os.O_RDONLY) as config:
            assert [error_of(config, 0, count) for count in (1, 2, 4, 64)] == [0] * 4
        logged = (
            f"bar0+{GAP:#x} (1 bytes): width or alignment not possible here: "
            "this place takes accesses of 4 bytes only"
        )
        wait_until(lambda: logged in mount.mount.log.read_text(), "the line in the log")


def test_the_widths_of_a_range_replace_those_of_the_mount(ruled: Watched) -> None:
    ruled.accesses()
    with opened(ruled.region()) as fd:
        assert [error_of(fd, GAP + 0x40, count) for count in (1, 2, 4)] == [0, 22, 22]
        assert [error_of(fd, GAP + 0x80, count) for count in (1, 4, 8)] == [22, 0, 0]
        assert error_of(fd, GAP + 0x80, 4, writes=True) == errno.EPERM
        # The guard: two accesses are not one.
        assert [error_of(fd, GAP, count) for count in (4, 8)] == [0, errno.EINVAL]
    assert ruled.accesses() == [
        ("r", "bar0", GAP + 0x40, 1),
        ("r", "bar0", GAP + 0x80, 4),
        ("r", "bar0", GAP + 0x80, 8),
        ("r", "bar0", GAP, 4),
    ]


def test_the_layout_shows_them(ruled: Watched) -> None:
    text = ruled.region("bar0.layout").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("widths"))
    assert line == "widths 0x0+0x4040=4 0x4040+0x40=1 0x4080+0x40=4:8 0x40c0+0xbf40=4"
    assert Layout.from_text(text).to_text() == text
    assert "\nwidths 4\n" in ruled.region("bar2.layout").read_text()
    assert "widths" not in ruled.region("config.layout").read_text()
    result = command("layout", ruled.server.name, "bar2", "--json")
    (layout,) = json.loads(result.stdout)
    assert layout["widths"][0]["widths"] == [4]


def test_commands_refuse_other_widths_beforehand(ruled: Watched) -> None:
    bar0 = ruled.region()
    ruled.accesses()
    refused: list[tuple[list[str | Path], str]] = [
        (["md", "-b", bar0, f"{GAP:#x}"], "4 bytes, not 1; use -l"),
        (["md", bar0, f"{GAP + 0x38:#x}+16"], "1 bytes, not 4; use -b"),
        (["mw", "-q", bar0, f"{GAP:#x}", "1"], "4 bytes, not 8; use -l"),
        (["rmw", "-w", bar0, f"{GAP:#x}", "1", "1"], "4 bytes, not 2; use -l"),
        (["poll", "-w", bar0, f"{GAP + 0x80:#x}", "1", "1"], "4 or 8 bytes, not 2; use -l or -q"),
    ]
    for arguments, taken in refused:
        result = command(*arguments)
        assert result.returncode == 2
        assert taken in result.stderr, result.stderr
        assert result.stderr.count("\n") == 1
    assert ruled.accesses() == []
    assert command("md", bar0, f"{GAP:#x}").returncode == 0


def test_a_dump_reads_every_place_in_its_width(ruled: Watched, tmp_path: Path) -> None:
    path = tmp_path / "device.dump"
    ruled.accesses()
    result = command("dump", "--skip", "bar2", ruled.server.name, "-o", path)
    assert result.returncode == 0, result.stderr
    sizes = {at: width for _rw, _bar, at, width in ruled.accesses()}
    assert {sizes[at] for at in range(GAP + 0x40, GAP + 0x80)} == {1}
    assert {sizes[at] for at in range(GAP, GAP + 0x40, 4)} == {4}
    assert {sizes[at] for at in range(GAP + 0x80, GAP + 0xC0, 4)} == {4}


def test_a_register_of_another_width_is_refused(tmp_path: Path) -> None:
    with watched(tmp_path, "widths=8") as mount:
        result = command("reg", mount.mount.device(), "bar0.SCRATCH")
        assert result.returncode == 1
        assert "this place takes accesses of 8 bytes only" in result.stderr
        with pytest.raises(OSError, match="Invalid argument"):
            (mount.mount.device() / "registers/bar0/SCRATCH").read_text()
        assert [one for one in mount.accesses() if one[1] == "bar0"] == []


def test_python(tmp_path: Path) -> None:
    with served(tmp_path) as server, barfs.open(server.name, widths={4}) as device:
        bar0 = device["bar0"]
        server.accesses()
        bar0.write32(GAP, 1)
        assert bar0.read(GAP, 8)[:4] == b"\1\0\0\0"
        with pytest.raises(InvalidAccess, match="this place takes accesses of 4 bytes only"):
            bar0.read8(GAP)
        with pytest.raises(InvalidAccess, match="this place takes accesses of 4 bytes only"):
            bar0.read(GAP, 3)
        with pytest.raises(InvalidAccess):
            bar0.write64(GAP, 1)
        assert [line.split()[3] for line in server.accesses()] == ["4", "4", "4"]
    with (
        barfs.open("demo", widths=[4], mapping="contiguous") as device,
        pytest.raises(UsageError, match="a policy or widths restrict it"),
    ):
        _ = device["bar0"].address


@pytest.mark.parametrize("widths", [(), (3,), [4, 5], 4, ["4"], None])
def test_widths_that_make_no_set(widths: object) -> None:
    if widths is None:
        assert barfs.Options(widths=None).widths is None
        return
    with pytest.raises(UsageError, match="widths must be some of 1, 2, 4 and 8 bytes, like"):
        barfs.Options(widths=widths)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["", "3", "4,8", "4:", "x", "4:16", "0x4"])
def test_options_that_make_no_set(value: str, tmp_path: Path) -> None:
    result = command("mount", "-o", f"widths={value}", "demo", tmp_path)
    assert result.returncode == 2
    assert "widths must be" in result.stderr or "unknown option '8'" in result.stderr
    assert result.stderr.count("\n") == 1


WIDE = """
addrmap wide {
    default sw = rw; default hw = na;
    reg { regwidth = 32; field {} a[31:0]; } x4 @ 0x40;
    reg { regwidth = 64; field {} a[63:0]; } x8 @ 0x48;
    reg { regwidth = 64; accesswidth = 32; field {} a[63:0]; } x84 @ 0x50;
};
"""
ONLY_4 = """
[[rule]]
region = "bar0"
range = "0x4000+0x1000"
widths = [4]
"""
HALVES = """
[[rule]]
region = "bar0"
range = "0x404c+0x40"
widths = [4, 8]
"""


@pytest.mark.parametrize(
    ("options", "region", "refused", "reason"),
    [
        ("widths=4", "bar0", {"x8"}, "this place takes accesses of 4 bytes only"),
        ("policy=only4.toml", "bar0", {"x8"}, "this place takes accesses of 4 bytes only"),
        ("policy=halves.toml", "bar0", {"x8"}, "width or alignment not possible here"),
        ("widths=1:2", "bar0", {"x4", "x8", "x84"}, "takes accesses of 1 or 2 bytes only"),
        ("widths=8", "bar0", {"x4", "x84"}, "this place takes accesses of 8 bytes only"),
        ("", "config", {"x8"}, "this place takes accesses of 1, 2 or 4 bytes only"),
    ],
)
def test_a_register_is_read_and_written_in_its_own_width_or_not_at_all(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    region: str,
    refused: set[str],
    reason: str,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name, text in (("wide.rdl", WIDE), ("only4.toml", ONLY_4), ("halves.toml", HALVES)):
        (tmp_path / name).write_text(text)
    where = f"{region}+0x4000" if region == "bar0" else region
    described = f"registers={where}=wide.rdl"
    with (
        served(tmp_path) as server,
        mounted(tmp_path, server.name, options=",".join(filter(None, [described, options]))) as at,
    ):
        server.accesses()
        for name in ("x4", "x8", "x84"):
            for verb, words in (("reg", name), ("reg", f"{name}=1"), ("watch", name)):
                if name in refused:
                    result = command(verb, at.device(), f"{region}.{words}")
                    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
                    assert reason in result.stderr
                elif verb == "reg":
                    assert command(verb, at.device(), f"{region}.{words}").returncode == 0
        width = {"x4": "4", "x8": "8", "x84": "4"}
        found = [line.split() for line in server.accesses() if f" {region} " in line]
        expected = {width[name] for name in ("x4", "x8", "x84") if name not in refused}
        start = 0x4040 if region == "bar0" else 0x40
        seen = [words[3] for words in found if start <= int(words[2], 16) < start + 0x20]
        assert set(seen) == expected
