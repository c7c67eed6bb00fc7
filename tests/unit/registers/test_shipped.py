# SPDX-License-Identifier: MIT
"""The descriptions that ship with barfs, on devices made of bytes."""

import struct
from pathlib import Path

import pytest

import barfs
from barfs.errors import BusFault
from barfs.registers.compiler import compile_description
from barfs.registers.fields import decode
from barfs.registers.model import Register
from barfs.registers.places import RegisterMap
from barfs.registers.shipped import Ids, shipped_maps
from barfs.registers.shipped.capabilities import EXTENDED, STANDARD, extended_text, standard_text
from barfs.registers.shipped.config_space import config_space
from barfs.registers.shipped.demo import demo_bar0
from barfs.registers.shipped.notation import registers

SIZE = 0x4000


class Device:
    """Regions of bytes; `reads` are those that it answered."""

    def __init__(self, **regions: bytearray) -> None:
        self.regions = regions
        self.reads: list[tuple[str, int, int]] = []
        self.broken = False

    def read(self, region: str, offset: int, width: int) -> int:
        if self.broken:
            raise BusFault(region=region, offset=offset, width=width)
        self.reads.append((region, offset, width))
        return int.from_bytes(self.regions[region][offset : offset + width], "little")


def ids(class_code: int, vendor: int = 0xFFFE, device: int = 1) -> Ids:
    return Ids(vendor, device, 0, 0, class_code)


def bytes_with(size: int, **words: int) -> bytearray:
    """Little-endian 32-bit words by offset, as `x1c=5`."""
    data = bytearray(size)
    for name, word in words.items():
        struct.pack_into("<I", data, int(name[1:], 16), word)
    return data


def load(device: Device, own: Ids, region: str, size: int = SIZE) -> RegisterMap:
    return shipped_maps(own, {region: size}, device.read)[region].load()


def test_nvme_doorbells_are_as_far_apart_as_cap_says() -> None:
    device = Device(bar0=bytes_with(SIZE, x4=0x1))
    found = load(device, ids(0x010802), "bar0")
    assert found.find("CC.EN").offset == 0x14
    assert found.find("SQTDBL[0]").offset == 0x1000
    assert found.find("CQHDBL1.CQH").offset == 0x1018
    assert found.root.node.children.end <= SIZE  # type: ignore[union-attr]
    cap = found.find("CAP").register
    assert decode(cap, 0x0000_0020_0F01_03FF)["TO"] == 0x0F
    assert decode(cap, 0x0000_0020_0F01_03FF)["CSS"] == 1
    assert not found.find("SQTDBL[3]").register.readable


def test_ahci_has_the_ports_that_are_implemented() -> None:
    device = Device(bar5=bytes_with(0x1000, xc=0x2F))
    found = load(device, ids(0x010601), "bar5", 0x1000)
    assert found.find("P[5].CMD.ST").offset == 0x100 + 5 * 0x80 + 0x18
    assert found.root.child("P6") is None
    assert found.find("P5.CI").register.parts[0].onwrite == "woset"


def test_xhci_is_where_its_capability_registers_point() -> None:
    data = bytes_with(SIZE, x0=0x0100_0040, x4=0x0400_0810, x10=0x0008_0000, x14=0x2000, x18=0x1000)
    struct.pack_into("<I", data, 0x20, 0x0200_0402)  # Supported Protocol, the next is 16 bytes on
    struct.pack_into("<I", data, 0x30, 0x0300_0002)
    found = load(Device(bar0=data), ids(0x0C0330), "bar0")
    assert found.find("OP.USBCMD.RS").offset == 0x40
    assert found.find("OP.PORT[3].PORTSC.PED").offset == 0x40 + 0x430
    assert found.find("RT.IR[7].ERDP").offset == 0x1000 + 0x20 * 8 + 0x18
    assert found.find("DOORBELL[16].DB").offset == 0x2040
    assert found.find("SUPPORTED_PROTOCOL.PORTS").offset == 0x28
    assert found.find("SUPPORTED_PROTOCOL_2.CAP").offset == 0x30


def test_what_points_past_the_end_is_not_there() -> None:
    data = bytes_with(SIZE, x0=0x40, x4=0xFF00_FFFF, x10=0xFFFF_0000, x14=0xFFFF_FFF0, x18=0x3FE0)
    found = load(Device(bar0=data), ids(0x0C0330), "bar0")
    assert found.root.child("OP") is not None
    assert [found.root.child(name) for name in ("RT", "DOORBELL0", "XCAP_1")] == [None] * 3


@pytest.mark.parametrize(
    ("class_code", "region", "early", "late"),
    [
        (0x010802, "bar0", "VS", "SQTDBL0"),
        (0x010601, "bar5", "GHC", "P0"),
        (0x0C0330, "bar0", "CAPLENGTH", "OP"),
    ],
)
def test_a_device_that_does_not_answer_has_what_needs_no_answer(
    class_code: int, region: str, early: str, late: str
) -> None:
    device = Device(**{region: bytes_with(SIZE, x0=0x40, x4=0x0101_0101, xc=1, x14=0x2000)})
    source = shipped_maps(ids(class_code), {region: SIZE}, device.read)[region]
    assert not device.reads  # not before it is asked for
    device.broken = True
    assert (source.load().root.child(early), source.load().root.child(late)) != (None, None)
    assert source.load().root.child(late) is None
    device.broken = False
    answers, device.regions[region] = device.regions[region], bytearray(b"\xff" * SIZE)
    assert source.load().root.child(late) is None
    device.regions[region] = answers
    assert source.load().root.child(late) is not None
    count = len(device.reads)
    source.load()
    assert len(device.reads) == count


def test_only_regions_and_devices_that_are_known_have_maps() -> None:
    device = Device()
    assert shipped_maps(ids(0x020000), {"bar0": SIZE, "bar1": SIZE}, device.read) == {}
    found = shipped_maps(ids(0xFF0000, 0x1234, 0x11E8), {"bar0": 0x100000}, device.read)
    assert found["bar0"].source == "barfs:edu"
    assert found["bar0"].load().find("status.irq_after_factorial").offset == 0x20


def a_config_space() -> bytearray:
    data = bytearray(4096)
    struct.pack_into("<HHHH", data, 0, 0x8086, 0x1234, 0x0406, 0x0010)
    struct.pack_into("<III", data, 0x10, 0xFE00_000C, 0, 0xC001)
    data[0x34] = 0x40
    struct.pack_into("<BBHI", data, 0x40, 0x01, 0x50, 0x0003, 0)
    struct.pack_into("<BBH", data, 0x50, 0x05, 0x70, 0x0180)
    struct.pack_into("<BBHII", data, 0x70, 0x11, 0xA0, 0x0003, 0x2000, 0x3000)
    struct.pack_into("<BBH", data, 0xA0, 0x10, 0xE0, 0x0002)
    struct.pack_into("<BBB", data, 0xE0, 0x09, 0xF0, 8)
    struct.pack_into("<BBB", data, 0xF0, 0x09, 0xE0, 8)  # back: a loop
    struct.pack_into("<I", data, 0x100, 0x1400_0000 | 1 << 16 | 0x0001)
    struct.pack_into("<I", data, 0x140, 0x1500_0000 | 1 << 16 | 0x0003)
    struct.pack_into("<I", data, 0x150, 0x1400_0000 | 1 << 16 | 0x7777)  # unknown, and a loop
    return data


def test_configuration_space_follows_the_lists_of_the_device() -> None:
    found = load(Device(config=a_config_space()), ids(0), "config", 4096)
    expected = {
        "COMMAND.MASTER": 0x04,
        "BASE_ADDRESS_0.PREFETCH": 0x10,
        "BASE_ADDRESS_1": 0x14,
        "BASE_ADDRESS_2.TYPE": 0x18,
        "SUBSYSTEM_ID": 0x2E,
        "CAP_PM.CTRL.STATE": 0x44,
        "CAP_MSI.ADDRESS_HI": 0x58,
        "CAP_MSI.DATA": 0x5C,
        "CAP_MSI.PENDING": 0x64,
        "CAP_MSIX.TABLE.BIR": 0x74,
        "CAP_EXP.DEVCTL.READRQ": 0xA8,
        "CAP_EXP.LNKSTA2": 0xD2,
        "CAP_VNDR.LENGTH": 0xE2,
        "CAP_VNDR_2.LENGTH": 0xF2,
        "ECAP_AER.UNCOR_STATUS.UNSUP": 0x104,
        "ECAP_DSN.SERIAL": 0x144,
        "ECAP_7777.HEADER": 0x150,
    }
    assert {path: found.find(path).offset for path in expected} == expected


@pytest.mark.parametrize("flags", [0, 0x80, 0x100, 0x180])
def test_msi_has_the_registers_that_its_flags_say(flags: int) -> None:
    data = a_config_space()
    struct.pack_into("<H", data, 0x52, flags)
    msi = RegisterMap(config_space(bytes(data)), "test").find("CAP_MSI")
    names = list(msi.node.children.names)  # type: ignore[union-attr]
    assert ("ADDRESS_HI" in names, "PENDING" in names) == (bool(flags & 0x80), bool(flags & 0x100))


@pytest.mark.parametrize("data", [b"", bytes(64), b"\xff" * 256, b"\xff" * 4096, bytes(range(256))])
def test_no_contents_of_configuration_space_are_too_odd(data: bytes) -> None:
    for place in RegisterMap(config_space(data), "test").registers():
        assert place.offset + place.register.width <= max(len(data), 64)


@pytest.mark.parametrize("flags", [0x0002, 0x0142, 0x0042, 0x01A1])
def test_every_capability_is_in_the_notation(flags: int) -> None:
    for identifier in STANDARD:
        assert registers(standard_text(identifier, flags))
    for identifier in EXTENDED:
        assert registers(extended_text(identifier, flags))


def test_the_demo_device_is_described_twice_alike() -> None:
    root = Path(barfs.__file__).parent
    compiled = compile_description(root / "emulated" / "demo.rdl")

    def facts(node: object) -> tuple[object, ...]:
        assert isinstance(node, Register)
        (part,) = node.parts
        effects = (part.access, part.onread, part.onwrite, part.width)
        return node.name, node.offset, node.width, node.description, effects

    assert compiled.root.name == ""
    assert list(map(facts, compiled.root.children)) == list(map(facts, demo_bar0(0x10000).children))


def test_the_demo_device_is_what_its_description_says() -> None:
    with barfs.open("demo") as device:
        bar0 = device["bar0"]
        assert bar0.read32(demo_bar0(0x10000).children.get("ID").offset) == 0x66726162  # type: ignore[union-attr]


def test_the_notation_refuses_what_it_does_not_know() -> None:
    for text in ("CAP 0x0", "  field 1 r", "A 0 4 r\n  f 1 r x", "A 0 4 r\n    x=1"):
        with pytest.raises((ValueError, KeyError)):
            registers(text)
