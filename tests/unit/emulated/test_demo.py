# SPDX-License-Identifier: MIT
"""The demo device: its identity, and its registers one access at a time."""

import contextlib
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs.emulated.demo import demo_device
from barfs.emulated.device import SoftwareDevice
from barfs.errors import BusFault, InvalidAccess
from barfs.pci import ConfigSpace

BAR0, BAR2, BAR4, ROM, CONFIG = 0, 2, 4, 6, 7
ONES = 0xFFFF_FFFF


class Registers:
    """The device's registers as numbers."""

    def __init__(self, device: SoftwareDevice) -> None:
        self.device = device

    def get(self, offset: int, width: int = 4, *, region: int = BAR0) -> int:
        return int.from_bytes(self.device.read(region, offset, width), "little")

    def set(self, offset: int, value: int, width: int = 4, *, region: int = BAR0) -> None:
        self.device.write(region, offset, value.to_bytes(width, "little"))


@pytest.fixture(scope="module")
def demo() -> Iterator[Registers]:
    with contextlib.closing(demo_device()) as made:
        yield Registers(made)


@pytest.fixture
def fresh(demo: Registers) -> Registers:
    demo.device.reset()
    return demo


def test_it_identifies_itself(fresh: Registers) -> None:
    assert fresh.device.read(BAR0, 0, 4) == b"barf"
    assert fresh.device.read(BAR0, 0x1000, 4) == b"barf"
    assert fresh.device.read(BAR4, 0, 4) == b"port"
    assert fresh.device.read(ROM, 0, 2) == b"\x55\xaa"
    config = ConfigSpace(fresh.device.read(CONFIG, 0, 4096))
    assert (config.vendor, config.device) == (0x1234, 0xBA5F)
    msix = config.msix()
    assert msix is not None
    assert (msix.vectors, msix.table_offset, msix.pba_offset) == (4, 0x2000, 0x2800)


@pytest.mark.parametrize(
    ("region", "register", "flip"),
    [(BAR0, 0x04, 0), (BAR0, 0x10, ONES), (BAR4, 0x04, 0), (BAR4, 0x08, ONES)],
)
def test_scratch_keeps_and_invert_inverts(
    fresh: Registers, region: int, register: int, flip: int
) -> None:
    fresh.set(register, 0x12345678, region=region)
    assert fresh.get(register, region=region) == 0x12345678 ^ flip
    fresh.set(register + 1, 0xAB, 1, region=region)
    assert fresh.get(register, region=region) == 0x1234AB78 ^ flip
    assert fresh.get(register + 2, 2, region=region) == 0x1234 ^ (flip >> 16)


@given(st.data())
def test_scratch_is_memory_for_every_width(demo: Registers, data: st.DataObject) -> None:
    """An access of any width moves just its bytes."""
    demo.device.reset()
    expected = bytearray(8)
    for _access in range(data.draw(st.integers(1, 6))):
        width = data.draw(st.sampled_from([1, 2, 4]))
        offset = data.draw(st.integers(0, 4 // width - 1)) * width
        value = data.draw(st.binary(min_size=width, max_size=width))
        demo.device.write(BAR0, 4 + offset, value)
        expected[offset : offset + width] = value
        assert demo.device.read(BAR0, 4, 4) == expected[:4]


def test_a_write_of_the_reset_bit_resets_the_function(fresh: Registers) -> None:
    (express,) = [
        offset
        for identifier, offset in ConfigSpace(fresh.device.read(CONFIG, 0, 256)).capabilities()
        if identifier == 0x10
    ]
    assert fresh.get(express + 4, region=CONFIG) & 1 << 28
    before = fresh.device.read(CONFIG, 0, 4096)
    for offset, value, width in ((8, 0x8000, 2), (9, 0x80, 1), (8, 0x8FFF, 4), (6, 0x8000_0000, 4)):
        fresh.set(0x04, 0x1234)
        fresh.set(0x1000, 0x1234)
        fresh.set(0x04, 0x0406, 2, region=CONFIG)
        fresh.set(0x10, ONES, region=CONFIG)
        fresh.set(express + 8, 0x7FFF, 2, region=CONFIG)
        assert fresh.get(0x04) == 0x1234
        fresh.set(express + offset, value, width, region=CONFIG)
        assert fresh.get(0x04) == 0
        assert fresh.device.read(BAR0, 0x1000, 4) == b"barf"
        assert fresh.device.read(CONFIG, 0, 4096) == before


def test_ones_and_absent_registers(fresh: Registers) -> None:
    fresh.set(0x14, 0)
    assert fresh.get(0x14) == ONES
    assert fresh.get(0x0C, region=BAR4) == ONES
    fresh.set(0x100, ONES)
    assert fresh.get(0x100) == 0
    assert fresh.get(0xFF8, 8) == 0


def test_the_counter_counts_and_latches(fresh: Registers) -> None:
    first = fresh.get(0x08, 8)
    low, high = fresh.get(0x08), fresh.get(0x0C)
    last = fresh.get(0x08, 8)
    assert 0 < first < high << 32 | low < last
    fresh.device.reset()
    assert fresh.get(0x08, 8) < last


def test_a_read_of_the_fifo_takes_the_oldest_value(fresh: Registers) -> None:
    for value in range(1, 20):
        fresh.set(0x18, value)
    assert fresh.get(0x1C) == 16
    assert [fresh.get(0x18) for _read in range(17)] == [*range(1, 17), 0]
    fresh.set(0x18, 0xAABBCCDD)
    fresh.set(0x18, 5)
    assert fresh.get(0x18, 1) == 0xDD
    assert fresh.get(0x18, 8) == 5
    fresh.set(0x18, 7)
    fresh.set(0x1C, 0)
    assert fresh.get(0x1C) == 0


@pytest.mark.parametrize("width", [1, 2, 4])
def test_width_tells_the_width_of_its_access(fresh: Registers, width: int) -> None:
    assert fresh.get(0x20, width) == width


def test_an_access_of_eight_bytes_is_one(fresh: Registers) -> None:
    assert fresh.get(0x20, 8) == 8
    assert fresh.get(0x20, 8) == 1 << 32 | 8
    fresh.set(0x00, 0x11223344_55667788, 8)
    assert fresh.get(0x00, 8) == 0x11223344_66726162


def test_reads_counts_its_reads(fresh: Registers) -> None:
    assert [fresh.get(0x24) for _read in range(3)] == [0, 1, 2]
    fresh.set(0x24, 9)
    assert fresh.get(0x24) == 0


def test_fault_refuses(fresh: Registers) -> None:
    assert fresh.get(0x28) == 0
    fresh.set(0x28, 1)
    with pytest.raises(BusFault):
        fresh.get(0x28)
    fresh.set(0x28, 0)
    assert fresh.get(0x28) == 0


def test_delay_waits_until_the_device_is_stopped() -> None:
    with contextlib.closing(demo_device()) as device:
        registers = Registers(device)
        assert registers.get(0x2C) == 0
        registers.set(0x2C, 50_000)
        threading.Thread(target=device.stopping.set).start()
        assert registers.get(0x2C) == 50_000


@pytest.mark.parametrize(
    ("region", "offset", "width"),
    [(BAR0, 2, 4), (BAR0, 0xFFC, 8), (BAR0, 0, 3), (BAR4, 0, 16), (BAR4, 1, 2), (BAR4, 64, 1)],
)
def test_a_register_takes_aligned_accesses_only(
    fresh: Registers, region: int, offset: int, width: int
) -> None:
    with pytest.raises(InvalidAccess):
        fresh.get(offset, width, region=region)


def test_rom_cannot_be_written(fresh: Registers) -> None:
    with pytest.raises(InvalidAccess):
        fresh.set(0, 0, region=ROM)


def test_the_msix_table_starts_masked(fresh: Registers) -> None:
    table = fresh.device.read(BAR0, 0x2000, 0x40)
    assert [table[entry + 12] for entry in range(0, 0x40, 16)] == [1, 1, 1, 1]
    fresh.set(0x2000, 0xFEE00000)
    assert fresh.get(0x2000) == 0xFEE00000
