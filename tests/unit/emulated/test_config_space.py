# SPDX-License-Identifier: MIT
"""The configuration space of a software device, as PCI code reads and writes it."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs.emulated.config_space import ConfigRegisters
from barfs.emulated.device import IRQ_INTX, IRQ_MSI, SoftwareDevice
from barfs.emulated.spec import Content, DeviceSpec, RegionSpec
from barfs.pci import CONFIG_INDEX, ConfigSpace, MsixCapability

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


@pytest.mark.parametrize("pin", [0, 1, 4])
def test_a_device_with_a_pin_has_an_interrupt(pin: int) -> None:
    with contextlib.closing(SoftwareDevice(config_of({0x3D: bytes([pin])}))) as device:
        assert device.irq_count(IRQ_INTX) == (1 if pin else 0)


@pytest.mark.parametrize(("control", "vectors"), [(0, 1), (0x8A, 32), (0x86, 8), (0x8E, 32)])
def test_a_device_with_msi_has_its_vectors(control: int, vectors: int) -> None:
    spec = config_of({0x34: b"\x50", 0x50: bytes([0x05, 0x00, control, 0])})
    with contextlib.closing(SoftwareDevice(spec)) as device:
        assert device.irq_count(IRQ_MSI) == vectors
