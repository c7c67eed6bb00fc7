# SPDX-License-Identifier: MIT
"""Field writes against a model of the device: the field changes, and nothing else does."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barfs.registers.errors import NotAlone, NotAValue, ValueTooLarge
from barfs.registers.fields import (
    Access,
    accesses,
    decode,
    parse,
    plan_write,
    show,
    to_value,
    to_words,
)
from barfs.registers.model import Field, OnRead, OnWrite, Register, Value

ON_READ: tuple[OnRead, ...] = ("rclr", "rset", "ruser")
ON_WRITE: tuple[OnWrite, ...] = (
    "woset", "woclr", "wot", "wzs", "wzc", "wzt", "wclr", "wset", "wuser",
)  # fmt: skip


@dataclass
class Device:
    """One register as SystemRDL 2.0 defines its fields (section 9.6), bit by bit.

    `pulses` are the singlepulse bits that were written with 1, which are 0 again at once; `used`
    the write-once bits that have had their write. ruser and wuser invert.
    """

    register: Register
    value: int
    pulses: int = 0
    used: int = 0
    log: list[tuple[str, Access]] = field(default_factory=list)

    def read(self, access: Access) -> int:
        self.log.append(("read", access))
        seen = 0
        for part in self.register.parts:
            mask = part.mask & access.mask
            if not mask or not part.readable:
                continue
            seen |= self.value & mask
            match part.onread:
                case "rclr":
                    self.value &= ~mask
                case "rset":
                    self.value |= mask
                case "ruser":
                    self.value ^= mask
        return self._swapped(access, seen >> access.low)

    def write(self, access: Access, word: int) -> None:
        self.log.append(("write", access))
        data = self._swapped(access, word) << access.low
        for part in self.register.parts:
            mask = part.mask & access.mask
            if mask and part.writable and not self.used & mask:
                self._write(part, mask, data & mask)
                if part.write_once:
                    self.used |= mask

    def _write(self, part: Field, mask: int, data: int) -> None:
        if part.singlepulse:
            self.pulses |= written(part.onwrite, 0, data, mask)
            return
        self.value = self.value & ~mask | written(part.onwrite, self.value & mask, data, mask)

    def _swapped(self, access: Access, word: int) -> int:
        order = "big" if self.register.big_endian else "little"
        return int.from_bytes(word.to_bytes(access.width, "little"), order)  # type: ignore[arg-type]


def written(onwrite: OnWrite | None, old: int, data: int, mask: int) -> int:
    """What the bits of `mask` hold after a write, SystemRDL 2.0, table 14."""
    return {
        None: data,
        "woset": old | data,
        "woclr": old & ~data,
        "wot": old ^ data,
        "wzs": old | ~data & mask,
        "wzc": old & data,
        "wzt": old ^ ~data & mask,
        "wclr": 0,
        "wset": mask,
        "wuser": old ^ mask,
    }[onwrite]


@st.composite
def registers(draw: st.DrawFn) -> Register:
    width = draw(st.sampled_from([1, 2, 4, 8, 16]))
    access_width = draw(st.sampled_from([w for w in (1, 2, 4, 8) if w <= width]))
    parts: list[Field] = []
    low = draw(st.integers(0, 3))
    while low < 8 * width and len(parts) < 8:
        size = draw(st.integers(1, min(12, 8 * width - low)))
        readable, writable = draw(
            st.sampled_from([(True, True)] * 4 + [(True, False), (False, True), (False, False)])
        )
        onwrite = draw(st.sampled_from([None, None, None, *ON_WRITE])) if writable else None
        parts.append(
            Field(
                f"f{len(parts)}",
                low,
                size,
                readable,
                writable,
                draw(st.sampled_from([None] * 12 + [*ON_READ])) if readable else None,
                onwrite,
                singlepulse=size == 1 and writable and not onwrite and draw(st.booleans()),
                write_once=writable and draw(st.integers(0, 9)) == 0,
            )
        )
        low += size + draw(st.sampled_from([0, 0, 1, 5]))
    return Register(
        "r", 0, width, tuple(parts) or (Field("f0", 0, 1),), access_width,
        big_endian=draw(st.booleans()),
        high_first=draw(st.booleans()),
    )  # fmt: skip


def run(device: Device, values: dict[str, int]) -> None:
    """Carry out a field write, as the mount does."""
    register = device.register
    plan = plan_write(register, values)
    words = [device.read(access) for access in plan.reads]
    value = plan.compose(to_value(register, plan.reads, words))
    for access, word in zip(plan.writes, to_words(register, plan.writes, value), strict=True):
        device.write(access, word)


@settings(max_examples=300, deadline=None)
@given(registers(), st.data())
def test_a_field_write_changes_its_field_and_no_other(
    register: Register, data: st.DataObject
) -> None:
    names = data.draw(
        st.lists(st.sampled_from(register.fields), min_size=1, max_size=3, unique=True)
    )
    values = {part.name: data.draw(st.integers(0, (1 << part.width) - 1)) for part in names}
    pulses = sum(part.mask for part in register.parts if part.singlepulse)
    device = Device(register, data.draw(st.integers(0, register.mask)) & ~pulses)
    before = device.value
    try:
        run(device, values)
    except NotAlone as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert not device.log
        assert "\n" not in refusal
        assert is_unavoidable(register, values), refusal
        return
    for part in register.fields:
        if part.name in values:
            number = values[part.name] << part.low
            expected = written(part.onwrite, before & part.mask, number, part.mask)
            assert (device.pulses if part.singlepulse else device.value) & part.mask == expected
        else:
            assert device.value & part.mask == before & part.mask, part
            assert not device.pulses & part.mask
            assert not device.used & part.mask
    kinds = [kind for kind, _access in device.log]
    assert kinds == sorted(kinds)
    offsets = [access.offset for kind, access in device.log if kind == "write"]
    assert offsets == sorted(set(offsets))
    own = sum(part.mask for part in register.fields if part.name in values)
    assert all(access.mask & own for _kind, access in device.log)


def is_unavoidable(register: Register, values: dict[str, int]) -> bool:
    """Whether no value of the bits of the neighbours leaves all of them as they are: tried, with
    the device in both states, by a search over each neighbour on its own."""
    if any(part.name in values and not part.writable for part in register.fields):
        return True
    own = sum(part.mask for part in register.fields if part.name in values)
    touched = sum(access.mask for access in accesses(register) if access.mask & own)
    has_effects = any(part.onread for part in register.parts)
    for part in register.fields:
        mask = part.mask & touched
        if part.name in values or not mask or not part.writable:
            continue
        if part.write_once:
            return True
        olds = (0, mask)
        constants = [
            data
            for data in (0, mask)
            if all(written(part.onwrite, old, data, mask) == old for old in olds)
            and not (part.singlepulse and written(part.onwrite, 0, data, mask))
        ]
        as_read = part.readable and not has_effects and not part.singlepulse
        kept = all(written(part.onwrite, old, old, mask) == old for old in olds)
        if not constants and not (as_read and kept):
            return True
    return False


def one(*parts: Field, width: int = 4, access_width: int = 0) -> Register:
    return Register("r", 0, width, parts, access_width)


MODE = Field("mode", 0, 2, values=(Value("single", 1), Value("burst", 2)))


@pytest.mark.parametrize("onwrite", ["woclr", "woset", "wot"])
def test_a_neighbour_that_ones_change_is_written_with_zeros(onwrite: OnWrite) -> None:
    plan = plan_write(one(MODE, Field("irq", 8, 1, onwrite=onwrite)), {"mode": 2})
    assert plan.compose(0xFFFF_FFFF) == 0xFFFF_FEFE


@pytest.mark.parametrize("onwrite", ["wzc", "wzs", "wzt"])
def test_a_neighbour_that_zeros_change_is_written_with_ones(onwrite: OnWrite) -> None:
    plan = plan_write(one(MODE, Field("irq", 8, 1, onwrite=onwrite)), {"mode": 2})
    assert plan.compose(0) == 0x102


@pytest.mark.parametrize(
    ("neighbour", "reason"),
    [
        (Field("n", 8, 1, onwrite="wclr"), "which any write changes (wclr)"),
        (Field("n", 8, 1, onwrite="wset"), "which any write changes (wset)"),
        (Field("n", 8, 1, onwrite="wuser"), "which any write changes (wuser)"),
        (Field("n", 8, 1, readable=False), "which cannot be read"),
        (Field("n", 8, 1, write_once=True), "which can be written once"),
        (Field("n", 8, 1, onread="rclr"), "reading changes n"),
    ],
)
def test_a_neighbour_without_a_neutral_value_is_named(neighbour: Field, reason: str) -> None:
    with pytest.raises(NotAlone) as caught:
        plan_write(one(MODE, neighbour), {"mode": 1})
    assert caught.value.neighbour == "n"
    assert reason in str(caught.value)
    assert str(caught.value).endswith("write the whole register r")
    plan_write(one(MODE, neighbour), {"mode": 1, "n": 0})


def test_nothing_is_read_where_all_bits_are_known() -> None:
    assert not plan_write(one(Field("all", 0, 32)), {"all": 7}).reads
    command = Field("go", 0, 1, readable=False, singlepulse=True)
    plan = plan_write(one(command, Field("irq", 1, 31, onwrite="woclr")), {"go": 1})
    assert (plan.reads, plan.compose()) == ((), 1)


def test_bits_of_no_field_are_written_as_zeros_where_a_read_is_impossible() -> None:
    doorbell = one(Field("tail", 0, 16, readable=False))
    plan = plan_write(doorbell, {"tail": 5})
    assert (plan.reads, plan.compose()) == ((), 5)
    fifo = one(Field("data", 0, 8, onread="ruser"))
    assert not plan_write(fifo, {"data": 5}).reads


def test_a_wide_register_is_written_where_the_field_lies() -> None:
    register = one(Field("low", 0, 8), Field("cross", 28, 8), width=8, access_width=2)
    plan = plan_write(register, {"cross": 0xFF})
    assert [access.offset for access in plan.writes] == [2, 4]
    assert to_words(register, plan.writes, plan.compose(0)) == [0xF000, 0x000F]


def test_the_words_of_a_big_endian_register() -> None:
    register = Register("r", 0, 8, (Field("f", 0, 8),), 4, big_endian=True, high_first=True)
    words = to_words(register, accesses(register), 0x0102030405060708)
    assert words == [0x04030201, 0x08070605]  # bytes 01 02 03 ... in the order of addresses
    assert to_value(register, accesses(register), words) == 0x0102030405060708


def test_fields_of_opposite_access_may_share_bits() -> None:
    register = one(Field("status", 0, 8, writable=False), Field("command", 0, 8, readable=False))
    assert plan_write(register, {"command": 3}).compose(0xFFFF_FF55) == 0xFFFF_FF03
    assert decode(register, 0x55) == {"status": 0x55}


def test_writable_fields_that_share_bits_cannot_be_written_alone() -> None:
    with pytest.raises(NotAlone, match="shares bits"):
        plan_write(one(Field("a", 0, 8), Field("b", 4, 8)), {"a": 1})


@pytest.mark.parametrize(
    ("text", "number"), [("2", 2), ("0x3", 3), ("0b01\n", 1), ("burst", 2), (" single ", 1)]
)
def test_what_is_written_to_a_field(text: str, number: int) -> None:
    assert parse(MODE, text) == number


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "1 2", "2k", "Burst", "0x", "1_0", "१", "1.0", "0x1\x00"]
)
def test_rubbish_is_no_value(text: str) -> None:
    with pytest.raises(NotAValue, match=r"mode must be a number .* or one of single, burst, not "):
        parse(MODE, text)


@pytest.mark.parametrize("text", ["4", "0b100", "9" * 5000])
def test_a_number_that_does_not_fit(text: str) -> None:
    with pytest.raises((ValueTooLarge, NotAValue)):
        parse(MODE, text)


SHOWN = [
    *((MODE, number) for number in range(4)),
    *((Field("count", 0, 12), number) for number in (0, 9, 10, 4095)),
]


@pytest.mark.parametrize(("part", "number"), SHOWN)
def test_what_is_shown_can_be_written(part: Field, number: int) -> None:
    assert parse(part, show(part, number)) == number
