# SPDX-License-Identifier: MIT
"""Descriptions of software devices, and the one-line error for each mistake in one."""

import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs.emulated import description
from barfs.emulated.description import load, parse
from barfs.emulated.spec import Content, DescriptionError, DeviceSpec, RegionSpec
from barfs.pci import MsixCapability
from barfs.uapi import SparseArea

IDS = "vendor = 0x1234\ndevice = 0x11e8\nclass = 0xff0000\n"


def read(text: str) -> DeviceSpec:
    return parse(IDS + textwrap.dedent(text), name="x.toml", folder=Path())


def region(text: str, name: str = "bar0") -> DeviceSpec:
    return read(f'[[region]]\nname = "{name}"\n' + textwrap.dedent(text))


def test_the_example_in_the_documentation_is_a_device(tmp_path: Path) -> None:
    documentation = description.__doc__ or ""
    example = documentation.split("\n\n", 1)[1].split("\n`offset` defaults")[0]
    # The example shows every key once; these two contradict others of the same region.
    lines = [line for line in example.splitlines() if not line.strip().startswith(("io =", "..."))]
    path = tmp_path / "device.toml"
    path.write_text(textwrap.dedent("\n".join(lines)))
    (tmp_path / "rom.bin").write_bytes(b"\x55\xaa")
    spec = load(str(path))
    assert (spec.vendor, spec.device, spec.class_code, spec.revision) == (
        0x1234,
        0x11E8,
        0xFF0000,
        0x10,
    )
    assert spec.msix == MsixCapability(4, 0, 0x2000, 0, 0x2800)
    (bar0,) = spec.regions
    assert bar0.areas == (SparseArea(0x1000, 0x1000),)
    assert bar0.is_64bit
    assert bar0.prefetchable
    assert bar0.contents == (
        Content(0x00, bytes.fromhex("ed000001")),
        Content(0x10, bytes.fromhex("deadbeef")),
        Content(0x20, b"hello"),
        Content(0x100, b"\xff" * 0x100),
        Content(0x1000, b"\x55\xaa"),
    )


def test_defaults() -> None:
    spec = region("size = 0x1000")
    (bar,) = spec.regions
    assert (bar.readable, bar.writable, bar.mappable, bar.areas) == (True, True, False, None)
    assert spec.by_index[7].size == 4096
    (rom,) = region("size = 0x1000", "rom").regions
    assert (rom.readable, rom.writable) == (True, False)


def test_fill_goes_to_the_end_and_later_contents_go_over_earlier_ones() -> None:
    (bar,) = region("size = 32\ninitial = [{fill = 7, offset = 8}, {u16 = 1}]").regions
    assert bar.contents == (Content(8, b"\7" * 24), Content(0, b"\1\0"))


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("vendor = 1", ["is not TOML"]),
        ("colour = 1", ["colour", "is not a key; the keys here are vendor"]),
        ("revision = 256", ["revision", "0x100", "8 bits"]),
        ("revision = -1", ["revision", "negative"]),
        ("revision = true", ["revision", "a number"]),
        ('revision = "1"', ["revision", "a number"]),
        ("region = 1", ["region", "a list"]),
        ("region = [1]", ["region[0]", "a table"]),
        ("[[region]]\nsize = 1", ["region[0]", "name", "missing"]),
        ('[[region]]\nname = "bar6"', ["region[0]", "name", "bar6"]),
        (
            '[[region]]\nname = "vga"\nsize = 4096',
            ["region[0] (vga)", "name: must be bar0 to bar5", "not vga"],
        ),
        ("[msix]\nvectors = 1", ["msix", "table", "missing"]),
    ],
)
def test_an_error_names_the_file_and_the_key(text: str, places: list[str]) -> None:
    with pytest.raises(DescriptionError) as caught:
        read(text)
    message = str(caught.value)
    assert message.startswith("x.toml: ")
    assert "\n" not in message
    assert all(place in message for place in places), message


AREA = 'flags = ["read", "mmap"]\nsize = 0x4000\n'


@pytest.mark.parametrize(
    ("text", "name", "problem"),
    [
        ("", "bar0", "size: is missing"),
        ("size = 0", "bar0", "size: must be 0x10 to 0x80000000, not 0x0"),
        ("size = 8", "bar0", "size: must be 0x10 to 0x80000000, not 0x8"),
        ("size = 0x1800", "bar0", "size: must be a power of two, not 0x1800"),
        ("size = 0x100000000", "bar0", "size: must be 0x10 to 0x80000000, not 0x100000000"),
        (
            "size = 0x20000000000\nbits = 64",
            "bar0",
            "size: must be at most 0x10000000000, not 0x20000000000",
        ),
        ("size = 2\nio = true", "bar0", "size: must be 0x4 to 0x80000000, not 0x2"),
        (
            "size = 0x100000000\nio = true",
            "bar0",
            "size: must be 0x4 to 0x80000000, not 0x100000000",
        ),
        ("size = 1024", "rom", "size: must be 0x800 to 0x1000000, not 0x400"),
        ("size = 512", "config", "size: must be 256 or 4096 for configuration space, not 512"),
        ("size = 0x1000\nbits = 16", "bar0", "bits: must be 32 or 64, not 16"),
        ("size = 0x1000\nbits = 64", "bar5", "bits: must be 32 for bar5"),
        ("size = 0x1000\nbits = 64", "region9", "bits"),
        ("size = 32\nio = true\nprefetchable = true", "bar0", "io:"),
        ('size = 0x1000\nflags = ["mmap"]', "rom", "flags: rom and config cannot be mapped"),
        ('size = 0x1000\nflags = ["read", "write"]', "rom", "flags: rom"),
        (
            'size = 0x1000\nflags = ["exec"]',
            "bar0",
            "flags: must be read, write or mmap, not 'exec'",
        ),
        ("size = 0x1000\nflags = [[]]", "bar0", "flags: must be read, write or mmap, not []"),
        ("size = 0x1000\nareas = []", "bar0", "areas: need the flag"),
        (
            AREA + "areas = [{offset = 0x3000, size = 0x2000}]",
            "bar0",
            "areas: 0x3000..0x5000 reaches past the region's end, 0x4000",
        ),
        (AREA + "areas = [{offset = 0, size = 0}]", "bar0", "areas: the area at 0x0 is empty"),
        (
            AREA + "areas = [{offset = 0x1000, size = 0x2000}, {offset = 0x0, size = 0x1001}]",
            "bar0",
            "areas: 0x1000..0x3000 overlaps 0x0..0x1001",
        ),
        (AREA + "areas = [{size = 1}]", "bar0", "areas[0]: offset: is missing"),
        (
            "size = 16\ninitial = [{u64 = 1, offset = 12}]",
            "bar0",
            "initial: 0x8 bytes at 0xc reach past the region's end, 0x10",
        ),
        ("size = 16\ninitial = [{u8 = 256}]", "bar0", "initial[0]: u8: 0x100"),
        ("size = 16\ninitial = [{u8 = 1, u16 = 1}]", "bar0", "exactly one of"),
        ("size = 16\ninitial = [{offset = 1}]", "bar0", "exactly one of"),
        ("size = 16\ninitial = [{u8 = 1, size = 1}]", "bar0", "size: applies to fill only"),
        ('size = 16\ninitial = [{hex = "abc"}]', "bar0", "hex: must be pairs"),
        ('size = 16\ninitial = [{file = "/nowhere/x"}]', "bar0", "file: /nowhere/x cannot be read"),
        ('size = 16\ninitial = [{file = "a\\u0000b"}]', "bar0", "file: "),
        ('size = 16\ninitial = [{file = "/dev/zero"}]', "bar0", "initial: 0x11 bytes"),
        (
            "size = 0x80000000\ninitial = [{fill = 1}]",
            "bar0",
            "size: must be at most 0x10000000, not 0x80000000",
        ),
    ],
)
def test_an_impossible_region_is_an_error(text: str, name: str, problem: str) -> None:
    with pytest.raises(DescriptionError) as caught:
        region(text, name)
    message = str(caught.value)
    assert message.startswith(f"x.toml: region[0] ({name}): ")
    assert problem in message
    assert "\n" not in message


def test_regions_must_not_collide() -> None:
    bar = '[[region]]\nname = "{}"\nsize = 0x1000\nbits = {}\n'
    with pytest.raises(DescriptionError, match="bar1: is the upper half of bar0"):
        read(bar.format("bar1", 32) + bar.format("bar0", 64))
    with pytest.raises(DescriptionError, match="bar0: is described twice"):
        read(bar.format("bar0", 32) * 2)
    read(bar.format("bar2", 32) + bar.format("bar0", 64))


@pytest.mark.parametrize(
    ("vectors", "table", "pba", "problem"),
    [
        (0, (0, 0), (0, 0x800), "vectors: must be 1 to 2048, not 0"),
        (2049, (0, 0), (0, 0x800), "vectors: must be 1 to 2048, not 2049"),
        (4, (1, 0), (0, 0x800), "table: bar must be a memory BAR, not bar1"),
        (4, (0, 4), (0, 0x800), "table: offset must be a multiple of 8, not 0x4"),
        (4, (0, 0xFC8), (0, 0), "table: 0xfc8..0x1008 reaches past the end of bar0"),
        (4, (0, 0), (0, 0x1000), "pba: 0x1000..0x1008 reaches past the end of bar0"),
        (4, (0, 0), (0, 0x38), "pba: 0x38..0x40 overlaps the table"),
    ],
)
def test_msix_must_fit(
    vectors: int, table: tuple[int, int], pba: tuple[int, int], problem: str
) -> None:
    with pytest.raises(DescriptionError, match="msix: ") as caught:
        DeviceSpec(
            1, 2, 3, regions=(RegionSpec(0, 0x1000),), msix=MsixCapability(vectors, *table, *pba)
        )
    assert problem in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    with pytest.raises(DescriptionError, match=r"missing\.toml: cannot be read: No such file"):
        load(str(missing))
    with pytest.raises(DescriptionError, match="cannot be read"):
        load(str(tmp_path))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(DescriptionError, match="not UTF-8"):
        load(str(binary))


@given(st.text())
def test_no_text_gives_anything_but_a_description_or_its_error(text: str) -> None:
    try:
        parse(text, name="x", folder=Path())
    except DescriptionError:
        return
    pytest.fail("a random text is not a device: three keys are required")
