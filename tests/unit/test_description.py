# SPDX-License-Identifier: MIT
"""Descriptions of software devices: what they say, and one line for each way to get one wrong."""

import contextlib
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs.emulated import description
from barfs.emulated.config_space import ConfigRegisters
from barfs.emulated.description import load, parse
from barfs.emulated.device import SoftwareDevice
from barfs.emulated.spec import Content, DescriptionError, DeviceSpec, RegionSpec
from barfs.pci import CONFIG_INDEX, ConfigSpace, MsixCapability
from barfs.uapi import SparseArea
from barfs.vfio_user import messages as m
from barfs.vfio_user import wire
from barfs.vfio_user.session import Session

IDS = "vendor = 0x1234\ndevice = 0x11e8\nclass = 0xff0000\n"


def read(text: str) -> DeviceSpec:
    return parse(IDS + textwrap.dedent(text), name="x.toml", folder=Path())


def region(text: str, name: str = "bar0") -> DeviceSpec:
    return read(f'[[region]]\nname = "{name}"\n' + textwrap.dedent(text))


def test_the_example_in_the_documentation_is_a_device(tmp_path: Path) -> None:
    documentation = description.__doc__ or ""
    example = documentation.split("\n\n", 1)[1].split("\n`offset` is 0")[0]
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
        ("colour = 1", ["colour", "not a key"]),
        ("revision = 256", ["revision", "0x100", "8 bits"]),
        ("revision = -1", ["revision", "negative"]),
        ("revision = true", ["revision", "a number"]),
        ('revision = "1"', ["revision", "a number"]),
        ("region = 1", ["region", "a list"]),
        ("region = [1]", ["region[0]", "a table"]),
        ("[[region]]\nsize = 1", ["region[0]", "name", "missing"]),
        ('[[region]]\nname = "bar6"', ["region[0]", "name", "bar6"]),
        ('[[region]]\nname = "vga"\nsize = 4096', ["region[0] (vga)", "name"]),
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
        ("size = 0", "bar0", "size: 0x0"),
        ("size = 8", "bar0", "size: 0x8"),
        ("size = 0x1800", "bar0", "size: 0x1800 is not a power of two"),
        ("size = 0x100000000", "bar0", "size: 0x100000000"),
        ("size = 0x20000000000\nbits = 64", "bar0", "size: 0x20000000000"),
        ("size = 2\nio = true", "bar0", "size: 0x2"),
        ("size = 0x100000000\nio = true", "bar0", "size: 0x100000000"),
        ("size = 1024", "rom", "size: 0x400"),
        ("size = 512", "config", "size: configuration space"),
        ("size = 0x1000\nbits = 16", "bar0", "bits: 16"),
        ("size = 0x1000\nbits = 64", "bar5", "bits: bar5"),
        ("size = 0x1000\nbits = 64", "region9", "bits"),
        ("size = 32\nio = true\nprefetchable = true", "bar0", "io:"),
        ('size = 0x1000\nflags = ["mmap"]', "rom", "flags: rom and config cannot be mapped"),
        ('size = 0x1000\nflags = ["read", "write"]', "rom", "flags: rom"),
        ('size = 0x1000\nflags = ["exec"]', "bar0", "flags: 'exec'"),
        ("size = 0x1000\nflags = [[]]", "bar0", "flags: []"),
        ("size = 0x1000\nareas = []", "bar0", "areas: only"),
        (AREA + "areas = [{offset = 0x3000, size = 0x2000}]", "bar0", "areas: 0x3000..0x5000"),
        (AREA + "areas = [{offset = 0, size = 0}]", "bar0", "areas: the area at 0x0 is empty"),
        (
            AREA + "areas = [{offset = 0x1000, size = 0x2000}, {offset = 0x0, size = 0x1001}]",
            "bar0",
            "areas: 0x1000..0x3000 overlaps 0x0..0x1001",
        ),
        (AREA + "areas = [{size = 1}]", "bar0", "areas[0]: offset: is missing"),
        ("size = 16\ninitial = [{u64 = 1, offset = 12}]", "bar0", "initial: 0x8 bytes at 0xc"),
        ("size = 16\ninitial = [{u8 = 256}]", "bar0", "initial[0]: u8: 0x100"),
        ("size = 16\ninitial = [{u8 = 1, u16 = 1}]", "bar0", "exactly one of"),
        ("size = 16\ninitial = [{offset = 1}]", "bar0", "exactly one of"),
        ("size = 16\ninitial = [{u8 = 1, size = 1}]", "bar0", "size: goes with fill"),
        ('size = 16\ninitial = [{hex = "abc"}]', "bar0", "hex: must be pairs"),
        ('size = 16\ninitial = [{file = "/nowhere/x"}]', "bar0", "file: /nowhere/x cannot be read"),
        ('size = 16\ninitial = [{file = "a\\u0000b"}]', "bar0", "file: "),
        ('size = 16\ninitial = [{file = "/dev/zero"}]', "bar0", "initial: 0x11 bytes"),
        ("size = 0x80000000\ninitial = [{fill = 1}]", "bar0", "size: at most"),
    ],
)
def test_a_region_that_cannot_be(text: str, name: str, problem: str) -> None:
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
    with pytest.raises(DescriptionError, match="bar0: described twice"):
        read(bar.format("bar0", 32) * 2)
    read(bar.format("bar2", 32) + bar.format("bar0", 64))


@pytest.mark.parametrize(
    ("vectors", "table", "pba", "problem"),
    [
        (0, (0, 0), (0, 0x800), "vectors"),
        (2049, (0, 0), (0, 0x800), "vectors"),
        (4, (1, 0), (0, 0x800), "table: bar1 is not a memory BAR"),
        (4, (0, 4), (0, 0x800), "table: offset 0x4"),
        (4, (0, 0xFC8), (0, 0), "table: 0xfc8..0x1008 leaves bar0"),
        (4, (0, 0), (0, 0x1000), "pba: 0x1000..0x1008 leaves bar0"),
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


SIZES = st.integers(4, 20).map(lambda bits: 1 << bits)


@given(SIZES, st.booleans(), st.booleans())
def test_a_bar_tells_its_size_when_all_ones_are_written(
    size: int, is_64bit: bool, prefetchable: bool
) -> None:
    bar = RegionSpec(2, size, is_64bit=is_64bit, prefetchable=prefetchable)
    config = ConfigRegisters(DeviceSpec(1, 2, 3, regions=(bar,)))
    before = config.read(0x18, 8)
    config.write(0x18, b"\xff" * (8 if is_64bit else 4))
    found = int.from_bytes(config.read(0x18, 8), "little")
    bits = 64 if is_64bit else 32
    assert -(found & ~0xF) & ((1 << bits) - 1) == size
    assert found & 0xF == (4 if is_64bit else 0) | (8 if prefetchable else 0)
    config.reset()
    assert config.read(0x18, 8) == before


def test_config_space_is_what_pci_code_reads() -> None:
    spec = DeviceSpec(
        0x1234,
        0x5678,
        0xFF0001,
        revision=9,
        subsystem_vendor=0xAAAA,
        subsystem_device=0xBBBB,
        regions=(
            RegionSpec(0, 0x1000),
            RegionSpec(2, 0x100000, is_64bit=True, prefetchable=True),
            RegionSpec(4, 64, is_io=True),
            RegionSpec(6, 0x1000, writable=False),
        ),
        msix=MsixCapability(4, 0, 0x800, 0, 0xC00),
    )
    config = ConfigRegisters(spec)
    space = ConfigSpace(config.read(0, 4096))
    assert (space.vendor, space.device, space.class_code, space.revision) == (
        0x1234,
        0x5678,
        0xFF0001,
        9,
    )
    assert (space.subsystem_vendor, space.subsystem_device) == (0xAAAA, 0xBBBB)
    assert space.msix() == spec.msix
    assert [identifier for identifier, _offset in space.capabilities()] == [0x10, 0x11]
    bars = {index: bar for index, bar in space.bars().items() if index in spec.by_index}
    assert [(bar.index, bar.kind) for bar in bars.values()] == [
        (0, "mem32"),
        (2, "mem64"),
        (4, "io"),
    ]
    assert all(bar.address and bar.address % spec.by_index[i].size == 0 for i, bar in bars.items())
    assert space.rom_address


def test_read_only_bits_of_config_space_stay() -> None:
    config = ConfigRegisters(DeviceSpec(0x1234, 0x5678, 3))
    config.write(0, b"\xff" * 4096)
    assert config.read(0, 4) == bytes.fromhex("34127856")
    assert config.read(4, 2) == bytes.fromhex("4705")
    assert config.read(0x100, 3840) == bytes(3840)


def test_contents_of_config_go_over_what_was_made() -> None:
    space = RegionSpec(7, 256, contents=(Content(8, b"\x77"), Content(0xF0, b"hi")))
    config = ConfigRegisters(DeviceSpec(0x1234, 0x5678, 3, revision=1, regions=(space,)))
    assert (config.read(8, 1), config.read(0xF0, 2)) == (b"\x77", b"hi")


def config_of(contents: dict[int, bytes], size: int = 256) -> DeviceSpec:
    """A device whose configuration space says something of its own, as that of a dump does."""
    pieces = tuple(Content(offset, data) for offset, data in contents.items())
    space = RegionSpec(CONFIG_INDEX, size, contents=pieces)
    bar = RegionSpec(0, 0x1000)
    return DeviceSpec(0x1234, 0x5678, 3, regions=(bar, space))


INTX, MSI = 0, 1


@pytest.mark.parametrize("pin", [0, 1, 4])
def test_a_device_with_a_pin_has_an_interrupt(pin: int) -> None:
    with contextlib.closing(SoftwareDevice(config_of({0x3D: bytes([pin])}))) as device:
        asked = m.IrqInfo(INTX)
        message = wire.Message(1, asked.NUMBER, 0, 0, asked.body())
        session = Session(device)
        session.answer(wire.Message(0, 1, 0, 0, m.Version().body()))
        answer, _fd = session.answer(message)
        assert answer[16:] == (m.IrqInfo(INTX, 7, 1) if pin else asked).body()


@pytest.mark.parametrize(("control", "vectors"), [(0, 1), (0x8A, 32), (0x86, 8), (0x8E, 32)])
def test_a_device_with_msi_has_its_vectors(control: int, vectors: int) -> None:
    spec = config_of({0x34: b"\x50", 0x50: bytes([0x05, 0x00, control, 0])})
    with contextlib.closing(SoftwareDevice(spec)) as device:
        assert device.irq_count(MSI) == vectors


@pytest.mark.parametrize(
    ("capability", "offset", "bit", "resets"),
    [
        pytest.param(bytes([0x10, 0, 2, 0, 0, 0, 0, 0x10]), 8, 0x8000, True, id="PCI Express"),
        pytest.param(bytes([0x10, 0, 2, 0, 0, 0, 0, 0]), 8, 0x8000, False, id="not capable"),
        pytest.param(bytes([0x13, 0, 6, 3]), 4, 1, True, id="Advanced Features"),
        pytest.param(bytes([0x13, 0, 6, 1]), 4, 1, False, id="Advanced Features, not capable"),
        pytest.param(bytes([0x09, 0, 16, 0, 0, 0, 0, 0x10]), 8, 0x8000, False, id="no such thing"),
    ],
)
def test_a_function_is_reset_where_its_own_capabilities_say(
    capability: bytes, offset: int, bit: int, resets: bool
) -> None:
    """Not where the made ones would be: contents have gone over them."""
    spec = config_of({0x34: b"\x60", 0x40: bytes(32), 0x60: capability})
    with contextlib.closing(SoftwareDevice(spec)) as device:
        device.write(0, 0, b"kept")
        device.write(CONFIG_INDEX, 0x48, b"\0\x80")
        assert device.read(0, 0, 4) == b"kept"
        device.write(CONFIG_INDEX, 0x60 + offset, bit.to_bytes(2, "little"))
        assert device.read(0, 0, 4) == (bytes(4) if resets else b"kept")
        assert device.read(CONFIG_INDEX, 0x60 + offset, 2) == bytes(2)


def test_capabilities_at_the_very_end_are_not_followed_out_of_it() -> None:
    for identifier in (0x05, 0x10, 0x11, 0x13):
        spec = config_of({0x34: b"\xfc", 0xFC: bytes([identifier, 0, 0xFF, 0xFF])})
        ConfigRegisters(spec).write(0, b"\xff" * 256)
