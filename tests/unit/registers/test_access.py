# SPDX-License-Identifier: MIT
"""Registers of an open device by name: what is read and written, and what is refused."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import barfs
from barfs.device import Device
from barfs.registers.access import Bound, BoundField, BoundGroup, BoundRegister
from barfs.registers.errors import DescriptionError, NoSuchName, NotAlone, NotAValue, ValueTooLarge

CARD = Path(__file__).parents[2] / "support" / "card.rdl"
CTRL = 0x4120  # of dma.chan[2]


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with barfs.open("demo", registers={"bar0": CARD}) as opened:
        yield opened


def register(bound: Bound) -> BoundRegister:
    assert isinstance(bound, BoundRegister)
    return bound


def test_a_register_has_its_value_and_its_fields(device: Device) -> None:
    ctrl = register(device.registers["dma.chan[2].ctrl"])
    device["bar0"].write32(CTRL, 0x0007_0005)
    value = ctrl.read()
    assert value == 0x0007_0005
    assert str(value) == "0x00070005"
    assert (value.enable, value.mode, value["count"]) == (1, 2, 7)
    assert (str(value.mode), repr(value.mode), repr(value.enable)) == ("burst", "<burst: 2>", "1")
    assert ctrl.read_fields() == {"enable": 1, "mode": 2, "error": 0, "count": 7}
    with pytest.raises(AttributeError, match="no field speed"):
        _ = value.speed


def test_writing_fields_leaves_the_neighbours_alone(device: Device) -> None:
    ctrl = register(device.registers["dma/chan2/ctrl"])
    device["bar0"].write32(CTRL, 0x0007_0105)
    ctrl.write_fields(enable=0, mode="single")
    # `error` is cleared by a 1, and the demo device's memory keeps the 0 that is written instead.
    assert device["bar0"].read32(CTRL) == 0x0007_0002
    field = device.registers["dma.chan[2].ctrl.mode"]
    assert isinstance(field, BoundField)
    field.write("burst")
    assert (field.read(), str(field.read())) == (2, "burst")


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"mode": "fast"}, NotAValue),
        ({"mode": 4}, ValueTooLarge),
        ({"mode": -1}, ValueTooLarge),
        ({"speed": 1}, NoSuchName),
    ],
)
def test_a_value_that_is_none_is_not_written(
    device: Device, values: dict[str, int | str], error: type[Exception]
) -> None:
    ctrl = register(device.registers["dma.chan[0].ctrl"])
    with pytest.raises(error):
        ctrl.write_fields(**values)
    with pytest.raises(ValueTooLarge):
        ctrl.write(1 << 32)
    assert ctrl.read() == 0


@pytest.mark.parametrize("value", [1.5, 5.0, "0x5", b"5", None, [5]])
def test_what_is_no_int_is_not_written(device: Device, value: Any) -> None:
    ctrl = register(device.registers["dma.chan[0].ctrl"])
    with pytest.raises(NotAValue, match=r"^ctrl must be an int, not "):
        ctrl.write(value)
    if value != "0x5":
        message = r"^count must be an int or the text of one, not "
        with pytest.raises(NotAValue, match=message):
            ctrl.write_fields(count=value)
        with pytest.raises(NotAValue, match=message):
            ctrl.count.write(value)
    assert ctrl.read() == 0


@pytest.mark.parametrize("name", [5, None, 1.5, b"dma", ("dma",)])
def test_a_name_must_be_text(device: Device, name: Any) -> None:
    registers = device.registers
    for look_up in (registers.__getitem__, registers.find, lambda name: [*registers.match(name)]):
        with pytest.raises(NoSuchName, match="must be named by a text like"):
            look_up(name)
    assert name not in registers
    dma = device.registers.dma
    assert isinstance(dma, BoundGroup)
    chan = dma.chan
    assert isinstance(chan, BoundGroup)
    for index in (name,) if name != 5 else ():
        with pytest.raises(TypeError, match="must be chosen by ints"):
            chan[index]


@pytest.mark.parametrize("name", ["", "/", ".", "./"])
def test_an_empty_name_is_none(device: Device, name: str) -> None:
    registers = device.registers
    for look_up in (registers.__getitem__, lambda name: [*registers.match(name)]):
        with pytest.raises(NoSuchName, match="must not be empty"):
            look_up(name)


def test_a_neighbour_without_a_neutral_value_refuses(device: Device) -> None:
    status = register(device.registers["dma.chan[0].status"])
    with pytest.raises(NotAlone, match="stop"):
        status.write_fields(amount=1)
    assert status.read() == 0


def test_a_wide_register_takes_several_accesses(device: Device) -> None:
    wide = register(device.registers["dma.chan[1].wide"])
    wide.write(0x1122334455667788)
    assert device["bar0"].read32(0x4118) == 0x55667788
    wide.write_fields(high=0xAB)
    assert wide.read() == 0xAB22334455667788


def test_groups_lead_to_registers_by_attributes(device: Device) -> None:
    dma = device.registers.dma
    assert isinstance(dma, BoundGroup)
    assert repr(dma) == "<bar0.dma>"
    chan = dma.chan
    assert isinstance(chan, BoundGroup)
    channel = chan[3]
    assert isinstance(channel, BoundGroup)
    assert register(channel.ctrl).name == "bar0.dma.chan[3].ctrl"
    with pytest.raises(IndexError):
        chan[4]
    with pytest.raises(AttributeError):
        _ = dma.nothing
    assert "chan" in dir(dma)
    assert "mode" in dir(device.registers["dma.chan[0].ctrl"])


def test_the_registers_are_a_mapping(device: Device) -> None:
    registers = device.registers
    names = list(registers)
    assert "bar0.dma.chan[2].ctrl" in names
    assert "config.VENDOR_ID" in names
    assert len(registers) == len(names)
    assert "dma.chan[2].ctrl" in registers
    assert "dma.chan[9].ctrl" not in registers
    assert [place.path for _region, place in registers.match("dma.chan*.ctrl")] == [
        f"dma.chan[{number}].ctrl" for number in range(4)
    ]
    with pytest.raises(NoSuchName):
        registers["nothing"]
    with pytest.raises(NoSuchName):
        list(registers.match("nothing*"))


def test_a_name_that_two_regions_have_needs_its_region() -> None:
    with barfs.open("demo") as device:
        with pytest.raises(NoSuchName, match=r"bar0\.ID or bar4\.ID"):
            device.registers["ID"]
        assert register(device.registers["bar4.ID"]).read() == 0x74726F70


def test_registers_can_be_off() -> None:
    with barfs.open("demo", registers="off") as device:
        assert not device.registers
        with pytest.raises(NoSuchName, match="no register map"):
            device.registers["ID"]


def test_two_writers_of_one_register_lose_nothing(device: Device) -> None:
    ctrl = register(device.registers["dma.chan[0].ctrl"])
    other = register(device.registers["dma.chan[0].ctrl"])
    finished: list[bool] = []

    def count(bound: BoundRegister, field: str, last: int) -> None:
        for number in range(last + 1):
            bound.write_fields(**{field: number & 0xFFFF if field == "count" else number & 3})
            found = bound.read_fields()[field]
            assert found == (number & 0xFFFF if field == "count" else number & 3)
        finished.append(True)

    threads = [
        threading.Thread(target=count, args=(ctrl, "count", 400)),
        threading.Thread(target=count, args=(other, "mode", 400)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert finished == [True, True]


def test_what_the_device_was_opened_with_holds() -> None:
    with barfs.open("demo", read_only=True, registers={"bar0": CARD}) as device:
        ctrl = register(device.registers["dma.chan[0].ctrl"])
        with pytest.raises(barfs.AccessDenied):
            ctrl.write_fields(enable=1)


def test_an_error_of_a_description_is_told_when_the_device_is_opened(tmp_path: Path) -> None:
    bad = tmp_path / "bad.rdl"
    bad.write_text("addrmap bad {\n    reg { field {} a; } r\n};\n")
    with pytest.raises(DescriptionError, match=r"bad\.rdl:[23]: "):
        barfs.open("demo", registers={"bar0": bad})
    with pytest.raises(barfs.UsageError, match="it has bar0, bar2"):
        barfs.open("demo", registers={"bar1": CARD})
    with pytest.raises(barfs.UsageError, match="must name a region"):
        barfs.open("demo", registers={"window": CARD})
