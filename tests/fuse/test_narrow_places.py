# SPDX-License-Identifier: MIT
"""Places that take 4 bytes at once, as every gap of kernel VFIO: 8 bytes there are not one access.

What promises one access makes one, or refuses before the device is touched.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import barfs
from barfs.emulated.demo import demo_device
from barfs.vfio_user import messages
from barfs.vfio_user.session import Session
from tests.support import Mounted, mounted
from tests.support import barfs as command
from tests.support.namespace import in_namespace
from tests.support.raw import running

GAP = 0x4000
WINDOW = 0x3000  # up to the gap
MOST = 7
"""Bytes that the server takes in one message."""


@dataclass(frozen=True)
class Narrow:
    """A device, mounted, and what reaches it by message."""

    name: str
    mount: Mounted
    lines: list[str]

    @property
    def folder(self) -> Path:
        return self.mount.device()

    def accesses(self) -> list[str]:
        """The accesses since the last call: direction, region, offset, width."""
        found = [" ".join(line.split()[:4]) for line in self.lines]
        self.lines.clear()
        return found

    def check_refused(self, *words: str | Path) -> None:
        """A command exits with 2, says which width it takes, and touches nothing."""
        self.accesses()
        result = command(*words)
        assert (result.returncode, result.stdout) == (2, "")
        assert "must have at most 4 bytes, not 8; use -l" in result.stderr
        assert result.stderr.count("\n") == 1
        assert self.accesses() == []

    def check_error(self, number: int, call: Callable[..., object], *arguments: object) -> None:
        """A system call fails so, and touches nothing."""
        self.accesses()
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            call(*arguments)
        assert caught.value.errno == number
        assert self.accesses() == []


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The demo device behind a server that takes so little; its name, and its accesses."""
    agree, lines, socket = Session._agree, list[str](), folder / "narrow.sock"

    def agree_on_less(session: Session, theirs: messages.Version) -> messages.Version:
        return replace(agree(session, theirs), max_transfer=MOST)

    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.closing(demo_device(lines.append)) as device,
        running(socket, device),
    ):
        patch.setattr(Session, "_agree", agree_on_less)
        yield f"vfio-user:{socket}", lines


@contextlib.contextmanager
def narrow(folder: Path, options: str = "") -> Iterator[Narrow]:
    with serving(folder) as (name, lines), mounted(folder, name, options=options) as mount:
        yield Narrow(name, mount, lines)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Narrow]:
    with narrow(tmp_path_factory.mktemp("narrow")) as found:
        yield found


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Narrow]:
    with narrow(tmp_path_factory.mktemp("guarded"), "guard") as found:
        yield found


@pytest.mark.parametrize("dry", [[], ["-n"]], ids=["", "dry run"])
@pytest.mark.parametrize(
    "words",
    [
        ("md", f"{GAP:#x}"),
        ("md", "--json", f"{GAP:#x}"),
        ("md", f"{GAP:#x}[3:0]"),
        ("md", f"{WINDOW + 0xFF0:#x}+0x20"),  # from a window into the gap
        ("mw", f"{GAP:#x}", "1"),
        ("mw", f"{WINDOW + 0xFF8:#x}", "1", "2"),
        ("rmw", f"{GAP:#x}", "1", "1"),
        ("rmw", f"{GAP:#x}[3:0]", "1"),
        ("poll", f"{GAP:#x}", "1", "1"),
    ],
    ids=" ".join,
)
def test_a_command_refuses_a_register_that_would_be_two(
    bench: Narrow, words: tuple[str, ...], dry: list[str]
) -> None:
    name, *others = words
    bench.check_refused(name, "-q", *dry, bench.folder / "bar0", *others)


@pytest.mark.parametrize(
    ("region", "offset"), [("rom", "0"), ("config", "0"), ("bar4", "0"), ("bar0", "0xfff8")]
)
def test_each_region_has_such_places(bench: Narrow, region: str, offset: str) -> None:
    bench.check_refused("md", "-q", bench.folder / region, offset)
    bench.check_refused("md", "-q", f"{bench.name}:{region}", offset)
    assert command("md", f"{bench.name}:{region}", offset).returncode == 0
    assert bench.accesses() == [f"r {region} {int(offset, 0):#x} 4"]


def test_one_access_where_one_can_be_made(bench: Narrow) -> None:
    bar0 = bench.folder / "bar0"
    bench.accesses()
    for words in (
        ("md", "-q", bar0, f"{WINDOW:#x}+0x1000"),
        ("mw", "-q", bar0, f"{WINDOW:#x}", "1"),
        ("md", "-l", bar0, f"{WINDOW + 0xFF8:#x}+16"),
        ("md", "-w", bar0, f"{GAP:#x}"),
    ):
        assert command(*words).returncode == 0
    assert bench.accesses() == ["r bar0 0x4000 4", "r bar0 0x4004 4", "r bar0 0x4000 2"]


def test_however_the_file_is_named(bench: Narrow, tmp_path: Path) -> None:
    link, folder = tmp_path / "link", tmp_path / "folder"
    link.symlink_to(bench.folder / "bar0")
    folder.symlink_to(bench.folder)
    through = bench.mount.path / "devices" / bench.folder.name / "bar0"
    fd = os.open(bench.folder / "bar0", os.O_RDONLY)
    try:
        for path in (link, folder / "bar0", through, f"/proc/{os.getpid()}/fd/{fd}"):
            bench.check_refused("md", "-q", path, f"{GAP:#x}")
            assert command("md", "-q", path, f"{WINDOW:#x}").returncode == 0
    finally:
        os.close(fd)


@pytest.mark.parametrize("rest", ["", 'umount -l "$3"'], ids=["beside", "alone"])
def test_a_file_that_is_mounted_alone(bench: Narrow, tmp_path: Path, rest: str) -> None:
    """Without the rest of its mount, more than 4 bytes are refused everywhere."""
    place = tmp_path / "bar1"
    place.touch()
    place.with_name("bar1.layout").write_text("none of its own")
    script = f"""
        mount --bind "$1" "$2"
        {rest}
        ask() {{ code=0; "{sys.executable}" -m barfs "$@" 2>&1 || code=$?; echo "= $code"; }}
        ask md -q "$2" {GAP:#x}
        ask md -l "$2" {GAP:#x}
        ask md -q "$2" {WINDOW:#x}
    """
    bench.accesses()
    result = in_namespace(script, bench.folder / "bar0", place, bench.mount.path)
    assert result.returncode == 0, result.stderr
    answers = result.stdout.splitlines()
    codes = [line for line in answers if line.startswith("=")]
    assert codes == ["= 2", "= 0", "= 2" if rest else "= 0"]
    assert "must have at most 4 bytes, not 8; use -l" in answers[0]
    assert bench.accesses() == [f"r bar0 {GAP:#x} 4"]


def test_without_a_mount(tmp_path: Path) -> None:
    with serving(tmp_path) as (name, lines):
        result = command("md", "-q", f"{name}:bar0", f"{GAP:#x}")
        assert result.returncode == 2
        assert "must have at most 4 bytes, not 8; use -l" in result.stderr
        assert not [line for line in lines if " bar0 " in line]
        assert command("md", "-q", f"{name}:bar0", f"{WINDOW:#x}").returncode == 0
        with (
            barfs.open(name) as device,
            pytest.raises(barfs.InvalidAccess, match="takes 4 bytes at most"),
        ):
            device["bar0"].read64(GAP)


def test_configuration_space_in_sysfs() -> None:
    functions = sorted(Path("/sys/bus/pci/devices").glob("*/config"))
    if not functions:
        pytest.skip("this machine has no PCI device")
    assert command("md", "-l", functions[0], "0").returncode == 0
    result = command("md", "-q", functions[0], "0")
    assert result.returncode == 2
    assert "must have at most 4 bytes, not 8; use -l" in result.stderr


def test_a_file_of_no_device_takes_any_width(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(16)))
    assert command("md", "-q", tmp_path / "file", "8").stdout.split()[1] == "0f0e0d0c0b0a0908"


def test_the_guard_refuses_what_would_be_two(guarded: Narrow) -> None:
    opened = {
        name: os.open(guarded.folder / name, flags)
        for name, flags in {
            "bar0": os.O_RDWR,
            "bar4": os.O_RDWR,
            "rom": os.O_RDONLY,
            "config": os.O_RDWR,
        }.items()
    }
    try:
        bar0 = opened["bar0"]
        for offset in (GAP, GAP + 8, 0xFFF8):
            guarded.check_error(errno.EINVAL, os.pread, bar0, 8, offset)
            guarded.check_error(errno.EINVAL, os.pwrite, bar0, bytes(8), offset)
        guarded.check_error(errno.EINVAL, os.pread, opened["rom"], 8, 0)
        guarded.check_error(errno.EINVAL, os.pread, opened["bar4"], 8, 0)
        guarded.check_error(errno.EINVAL, os.pwrite, opened["config"], bytes(8), 0x40)
        for width in (1, 2, 4):
            assert len(os.pread(bar0, width, GAP)) == width
            assert len(os.pread(opened["rom"], width, 0)) == width
        assert len(os.pread(bar0, 8, WINDOW)) == 8
        assert os.pwrite(bar0, bytes(8), WINDOW) == 8
        assert len(guarded.accesses()) == 6
    finally:
        for fd in opened.values():
            os.close(fd)


@pytest.mark.parametrize("width", [1, 8])
def test_a_guarded_device_of_any_width_is_dumped_access_by_access(
    tmp_path: Path, width: int
) -> None:
    with narrow(tmp_path, f"guard,width={width}") as found:
        found.accesses()
        words = ["--skip", "bar2", "--skip", f"bar0:{0x1000:#x}-0xffff"]
        result = command("dump", found.name, "-o", tmp_path / "dump", *words)
        assert result.returncode == 0
        lines = [line for line in result.stderr.splitlines() if not line.endswith(": skipped")]
        assert [line.partition(" at ")[0] for line in lines] == [
            "bar0: left out, since a read has side effects: COUNTER"
        ]
        widths = {line.split()[3] for line in found.accesses() if " bar0 " in line}
        assert widths == {str(min(width, 4))}
