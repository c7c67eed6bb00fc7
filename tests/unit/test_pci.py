# SPDX-License-Identifier: MIT
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs.errors import UsageError
from barfs.pci import (
    Bar,
    Bdf,
    ConfigSpace,
    MsixCapability,
    ReadOnDemand,
    region_index,
    region_name,
    sysfs_attributes,
)

bdfs = st.builds(
    Bdf,
    st.integers(0, 2**32 - 1),
    st.integers(0, 255),
    st.integers(0, 31),
    st.integers(0, 7),
)


@given(bdfs)
def test_bdf_round_trip(bdf: Bdf) -> None:
    assert Bdf.parse(str(bdf)) == bdf


@pytest.mark.parametrize(
    ("text", "bdf"),
    [
        ("0000:01:00.0", Bdf(0, 1, 0, 0)),
        ("01:00.0", Bdf(0, 1, 0, 0)),
        ("ABCD:FF:1f.7", Bdf(0xABCD, 0xFF, 0x1F, 7)),
        ("10000:e1:00.0", Bdf(0x10000, 0xE1, 0, 0)),
        ("0000-01-00.0", Bdf(0, 1, 0, 0)),
        ("01-00.0", Bdf(0, 1, 0, 0)),
    ],
)
def test_bdf_forms(text: str, bdf: Bdf) -> None:
    assert Bdf.parse(text) == bdf


@pytest.mark.parametrize(
    "text",
    ["", "1:00.0", "01:00", "01:00.8", "01:20.0", "001:00:00.0", "01:00.0\n", "0000:01:00.0x"],
)
def test_what_is_no_bdf(text: str) -> None:
    with pytest.raises(UsageError):
        Bdf.parse(text)


def test_region_names() -> None:
    names = ["bar0", "bar1", "bar2", "bar3", "bar4", "bar5", "rom", "config", "vga", "region9"]
    assert [region_name(index) for index in range(10)] == names
    assert [region_index(name) for name in names] == list(range(10))


@pytest.mark.parametrize("name", ["bar6", "bar", "region8", "region09", "BAR0", "bar0.layout", ""])
def test_what_is_no_region(name: str) -> None:
    with pytest.raises(UsageError, match="is not a region"):
        region_index(name)


def header(*fields: tuple[int, str, int], size: int = 256) -> ConfigSpace:
    data = bytearray(size)
    for offset, layout, value in fields:
        struct.pack_into(layout, data, offset, value)
    return ConfigSpace(bytes(data))


def test_header_fields() -> None:
    config = header(
        (0, "<H", 0x1234),
        (2, "<H", 0x11E8),
        (8, "<I", 0x0C0330_10),
        (0x2C, "<H", 0x1AF4),
        (0x2E, "<H", 0x1100),
        (0x0E, "<B", 0x80),
    )
    assert (config.vendor, config.device, config.revision) == (0x1234, 0x11E8, 0x10)
    assert config.class_code == 0x0C0330
    assert (config.subsystem_vendor, config.subsystem_device) == (0x1AF4, 0x1100)
    assert config.header_type == 0


def test_bars_of_each_kind() -> None:
    config = header(
        (0x10, "<I", 0xFE000008),
        (0x14, "<I", 0xFD000004),
        (0x18, "<I", 0x00000012),
        (0x1C, "<I", 0xC001),
    )
    assert config.bars() == {
        0: Bar(0, "mem32", True, 0xFE000000),
        1: Bar(1, "mem64", False, 0x12_FD000000),
        3: Bar(3, "io", False, 0xC000),
        4: Bar(4, "mem32", False, 0),
        5: Bar(5, "mem32", False, 0),
    }


def test_a_bridge_has_two_bars_and_no_subsystem() -> None:
    config = header((0x0E, "<B", 1), (0x2C, "<I", 0xFFFFFFFF))
    assert list(config.bars()) == [0, 1]
    assert config.subsystem_vendor == 0


def test_msix() -> None:
    config = header(
        (0x06, "<H", 0x10),
        (0x34, "<B", 0x40),
        (0x40, "<H", 0x5001),
        (0x50, "<H", 0x0011),
        (0x52, "<H", 0x8040),
        (0x54, "<I", 0x2000),
        (0x58, "<I", 0x3002),
    )
    assert config.msix() == MsixCapability(65, 0, 0x2000, 2, 0x3000)
    assert config.msix().table_size == 65 * 16  # type: ignore[union-attr]
    assert config.msix().pba_size == 16  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "fields",
    [
        [(0x34, "<B", 0x40), (0x40, "<H", 0x0011)],
        [(0x06, "<H", 0x10), (0x34, "<B", 0x10)],
        [(0x06, "<H", 0x10), (0x34, "<B", 0x40), (0x40, "<H", 0x4005)],
        [(0x06, "<H", 0x10), (0x34, "<B", 0xF8), (0xF8, "<H", 0x0011)],
    ],
    ids=["no list", "pointer into the header", "a loop", "cut off at the end"],
)
def test_a_bad_list_has_no_msix(fields: list[tuple[int, str, int]]) -> None:
    assert header(*fields).msix() is None


class Registers:
    """Configuration space whose reads are noted; those from `dead` on fail."""

    def __init__(self, data: bytes, dead: int = 256) -> None:
        self.data = data
        self.dead = dead
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, count: int) -> bytes:
        self.reads.append((offset, count))
        return self.data[offset : min(offset + count, self.dead)]


LISTED = header(
    (0x06, "<H", 0x10),
    (0x34, "<B", 0x44),
    (0x44, "<H", 0x8005),
    (0x80, "<H", 0x0011),
    (0x82, "<H", 0x8003),
    (0x84, "<I", 0x2000),
    (0x88, "<I", 0x3002),
    (0xF0, "<I", 0xFFFF_FFFF),
)


def test_registers_that_are_read_on_demand_are_read_once_and_only_if_needed() -> None:
    registers = Registers(bytes(LISTED.data[:]))
    config = ConfigSpace(ReadOnDemand(registers.read, 64, 256))
    assert config.msix() == config.msix() == LISTED.msix()
    assert sysfs_attributes(config, {0: 16}) == sysfs_attributes(LISTED, {0: 16})
    assert registers.reads == [(0, 64), (0x44, 4), (0x80, 4), (0x84, 4), (0x88, 4)]


@pytest.mark.parametrize("dead", [0, 0x22, 0x40, 0x44, 0x86, 0x88])
def test_what_cannot_be_read_is_not_there_and_not_tried_again(dead: int) -> None:
    registers = Registers(bytes(LISTED.data[:]), dead)
    config = ConfigSpace(ReadOnDemand(registers.read, 64, 256))
    assert config.msix() is None
    assert config.msix() is None
    failed = [offset for offset, count in registers.reads if offset + count > dead]
    assert len(failed) == 1
    head = header(size=0) if dead == 0 else ConfigSpace(LISTED.data[: min(dead, 64)])
    assert sysfs_attributes(config, {0: 16}) == sysfs_attributes(head, {0: 16})


@given(st.binary(max_size=512))
def test_what_is_read_on_demand_is_as_if_it_were_read_at_once(data: bytes) -> None:
    lazy = ConfigSpace(ReadOnDemand(Registers(data, 512).read, 64, len(data)))
    whole = ConfigSpace(data)
    assert list(lazy.capabilities()) == list(whole.capabilities())
    assert lazy.msix() == whole.msix()
    assert sysfs_attributes(lazy, {0: 16}) == sysfs_attributes(whole, {0: 16})


@given(st.binary(max_size=512))
def test_any_configuration_space_can_be_read(data: bytes) -> None:
    config = ConfigSpace(data)
    assert len(list(config.capabilities())) <= 64
    texts = sysfs_attributes(config, {0: 0x1000, 6: 0x800})
    assert len(texts["resource"].splitlines()) == 13
    assert all(text.endswith("\n") for text in texts.values())


def test_sysfs_texts() -> None:
    config = header(
        (0, "<H", 0x1234),
        (8, "<I", 0xFF0000_01),
        (0x10, "<I", 0xFE000000),
        (0x18, "<I", 0xD000000C),
        (0x20, "<I", 0xC001),
        (0x30, "<I", 0xFD000001),
        (0x3C, "<B", 11),
    )
    texts = sysfs_attributes(config, {0: 0x1000, 2: 0x100000, 4: 0x40, 6: 0x800, 7: 256})
    assert texts["vendor"] == "0x1234\n"
    assert texts["class"] == "0xff0000\n"
    assert texts["revision"] == "0x01\n"
    assert texts["irq"] == "11\n"
    lines = texts["resource"].splitlines()
    assert lines[0] == "0x00000000fe000000 0x00000000fe000fff 0x0000000000040200"
    assert lines[1] == "0x0000000000000000 0x0000000000000000 0x0000000000000000"
    assert lines[2] == "0x00000000d0000000 0x00000000d00fffff 0x000000000014220c"
    assert lines[4] == "0x000000000000c000 0x000000000000c03f 0x0000000000040101"
    assert lines[6] == "0x00000000fd000000 0x00000000fd0007ff 0x0000000000044200"
