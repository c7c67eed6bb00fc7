# SPDX-License-Identifier: MIT
"""What `md`, `mw`, `rmw` and `poll` do: prepared from their arguments, then run.

Rule 1: preparing makes no access of its own, and checks all that can be checked without one. (A
        name may need some: its description may depend on the device.)
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from barfs.cli.operands import Session, Span, Target, register_of, span_of, spans_of
from barfs.cli.register_file import (
    RegisterError,
    Registers,
    check_widths,
    parse_value,
    places_of,
)
from barfs.errors import UsageError
from barfs.text import dump_json, printable, with_hex

if TYPE_CHECKING:
    from typing import Protocol

    from barfs.registers.places import Place

    class Output(Protocol):
        """What operations print to."""

        def write(self, text: str, /) -> object: ...
        def flush(self) -> None: ...


_ROW = 16
_PAUSE = 0.001


class Operation:
    """A command that was prepared. `flags` are those of open(2) for its FILE."""

    __slots__ = ("json", "span", "target", "width")

    flags = os.O_RDONLY

    def __init__(self, choice: argparse.Namespace, target: Target) -> None:
        self.target = target
        self.span = target.spans[0]
        self.json = choice.json
        self.width = choice.width

    def rehearsed(self) -> Iterator[str]:
        """What it would do, in lines."""
        raise NotImplementedError

    def run(self, registers: Registers, output: "Output") -> None:
        """Make the accesses, and print what the command prints. Raises BarfsError."""
        raise NotImplementedError

    def _json(self, **values: Any) -> str:
        return dump_json({"file": self.target.file.text, "width": self.width, **values})


Prepare = Callable[[argparse.Namespace, Session], Operation]


def rehearse(operation: Operation, output: "Output") -> None:
    """Print what an operation would do. Raises UsageError for a width that is not possible."""
    target = operation.target
    if target.file.path is not None:
        places = places_of(target.file.path)
        for span in target.spans:
            check_widths(span.start, span.end, span.width, places)
    if target.file.device is not None:
        output.write(printable(f"open {target.file.device.source}") + "\n")
    for line in operation.rehearsed():
        output.write(printable(f"{line} of {target.file.text}") + "\n")


def _digits(value: int, width: int) -> str:
    return f"{value:0{2 * width}x}"


class _Display(Operation):
    __slots__ = ()

    def rehearsed(self) -> Iterator[str]:
        for span in self.target.spans:
            for offset in span.offsets:
                yield f"read {span.width} bytes at {offset:#x}"

    def run(self, registers: Registers, output: "Output") -> None:
        if self.json:
            self._run_json(registers, output)
            return
        for span in self.target.spans:
            if span.bits:
                value = span.bits.of(registers.read(span.start, span.width))
                output.write(f"{span.start:08x}{span.bits}: {value:x}\n")
                continue
            for start in range(span.start, span.end, _ROW):
                _display_row(span, start, registers, output)

    def _run_json(self, registers: Registers, output: "Output") -> None:
        values = [
            _object(span, offset, registers.read(offset, span.width))
            for span in self.target.spans
            for offset in span.offsets
        ]
        one = len(values) == 1 and self.span.bits is not None
        output.write(self._json(**values[0]) if one else self._json(values=values))


def _display_row(span: Span, start: int, registers: Registers, output: "Output") -> None:
    """Display a row, in the format of U-Boot's `md`; if a read fails, what was read."""
    width, found = span.width, []
    try:
        for offset in range(start, min(start + _ROW, span.end), width):
            found.append(registers.read(offset, width))
    finally:
        if found:
            output.write(_row(start, found, width))


def _row(offset: int, row: Sequence[int], width: int) -> str:
    data = b"".join([value.to_bytes(width, "little") for value in row])
    words = " ".join([f"{value:0{2 * width}x}" for value in row])
    columns = _ROW // width * (2 * width + 1) - 1
    return f"{offset:08x}: {words:<{columns}}    {data.translate(_SHOWN).decode()}\n"


_SHOWN = bytes(byte if 0x20 <= byte < 0x7F else ord(".") for byte in range(256))


def _object(span: Span, offset: int, value: int) -> dict[str, Any]:
    if span.bits is None:
        return with_hex(offset=offset, value=value)
    return {
        "bits": [span.bits.high, span.bits.low],
        **with_hex(offset=offset, value=span.bits.of(value)),
    }


def _prepare_md(choice: argparse.Namespace, session: Session) -> Operation:
    return _Display(choice, spans_of(choice, choice.range, session))


class _Write(Operation):
    __slots__ = ("values",)

    flags = os.O_WRONLY

    def __init__(self, choice: argparse.Namespace, target: Target, values: Sequence[int]) -> None:
        super().__init__(choice, target)
        self.values = values

    def _writes(self) -> Iterator[tuple[int, int]]:
        return zip(self.span.offsets, self.values, strict=True)

    def rehearsed(self) -> Iterator[str]:
        for offset, value in self._writes():
            yield f"write 0x{_digits(value, self.span.width)} at {offset:#x}"

    def run(self, registers: Registers, output: "Output") -> None:
        width = self.span.width
        for offset, value in self._writes():
            registers.write(offset, width, value)
        if self.json:
            written = [with_hex(offset=offset, value=value) for offset, value in self._writes()]
            output.write(self._json(written=written))


def _prepare_mw(choice: argparse.Namespace, session: Session) -> Operation:
    target, span = span_of(choice, choice.offset, session, len(choice.values))
    if span.bits:
        raise UsageError(f"mw writes whole registers; change {choice.offset} with barfs rmw")
    return _Write(choice, target, [parse_value(value, span.width) for value in choice.values])


def _mask_and_value(choice: argparse.Namespace, span: Span) -> tuple[int, int]:
    """The mask, and the value shifted to its place under it."""
    bits = span.bits
    field = span.place.field if span.place is not None else None
    if field is not None and choice.value is not None:
        raise UsageError("use FIELD VALUE, without MASK")
    if (bits is None) != (choice.value is not None):
        raise UsageError("use OFFSET MASK VALUE or OFFSET[HIGH:LOW] VALUE")
    if bits is None:
        mask, value = (parse_value(text, span.width) for text in (choice.mask, choice.value))
        if value & ~mask:
            raise UsageError(f"the value {value:#x} has bits outside the mask {mask:#x}")
        return mask, value
    if field is not None:
        from barfs.registers.fields import parse

        return bits.mask, parse(field, choice.mask) << bits.low
    return bits.mask, bits.place(choice.mask)


class _Change(Operation):
    __slots__ = ("mask", "value")

    flags = os.O_RDWR

    def __init__(self, choice: argparse.Namespace, target: Target, mask: int, value: int) -> None:
        super().__init__(choice, target)
        self.mask = mask
        self.value = value

    def rehearsed(self) -> Iterator[str]:
        span = self.span
        yield f"read {span.width} bytes at {span.start:#x}"
        yield f"write (value & ~{self.mask:#x}) | {self.value:#x} at {span.start:#x}"

    def run(self, registers: Registers, output: "Output") -> None:
        offset, width = self.span.start, self.span.width
        old = registers.read(offset, width)
        new = old & ~self.mask | self.value
        registers.write(offset, width, new)
        if self.json:
            output.write(self._json(**with_hex(offset=offset, old=old, new=new)))
        else:
            output.write(f"{offset:08x}: {_digits(old, width)} -> {_digits(new, width)}\n")


def _prepare_rmw(choice: argparse.Namespace, session: Session) -> Operation:
    target, span = register_of(choice, choice.offset, session)
    mask, value = _mask_and_value(choice, span)
    if span.place is not None:
        mask, value = _with_neighbours(span.place, mask, value)
    return _Change(choice, target, mask, value)


def _with_neighbours(place: "Place", mask: int, value: int) -> tuple[int, int]:
    """The mask and the value that write these bits, and to the others what changes nothing."""
    from barfs.registers.fields import plan_bits, plan_write

    register = place.register
    if not register.readable or register.read_has_effects:
        raise UsageError(f"{place.shown} cannot be read first; use barfs reg")
    if place.field is not None:
        plan = plan_write(register, {place.field.name: value >> place.field.low})
    else:
        plan = plan_bits(register, mask, value)
    return register.mask & ~plan.kept, plan.fixed


class _Poll(Operation):
    __slots__ = ("mask", "timeout", "value")

    def __init__(self, choice: argparse.Namespace, target: Target, mask: int, value: int) -> None:
        super().__init__(choice, target)
        self.mask = mask
        self.value = value
        self.timeout: float = choice.timeout

    def rehearsed(self) -> Iterator[str]:
        wanted = f"until value & {self.mask:#x} == {self.value:#x}"
        yield f"read {self.span.width} bytes at {self.span.start:#x}, {wanted},"

    def run(self, registers: Registers, output: "Output") -> None:
        offset, width = self.span.start, self.span.width
        end = time.monotonic() + self.timeout
        while (found := registers.read(offset, width)) & self.mask != self.value:
            if time.monotonic() >= end:
                raise self._too_late(found)
            output.flush()  # what follows may take long
            time.sleep(_PAUSE)
        if self.json:
            output.write(self._json(**with_hex(offset=offset, value=found)))
        else:
            output.write(f"{offset:08x}: {_digits(found, width)}\n")

    def _too_late(self, found: int) -> RegisterError:
        return RegisterError(
            f"{self.target.file.text}: {self.span.start:#x} is "
            f"0x{_digits(found, self.span.width)} after {self.timeout:g} s; its bits "
            f"{self.mask:#x} are {found & self.mask:#x}, not {self.value:#x}"
        )


def _prepare_poll(choice: argparse.Namespace, session: Session) -> Operation:
    if not 0 <= choice.timeout < float("inf"):
        raise UsageError(f"--timeout must be a number of seconds, not {choice.timeout}")
    target, span = register_of(choice, choice.offset, session)
    return _Poll(choice, target, *_mask_and_value(choice, span))


PREPARE: Mapping[str, Prepare] = {
    "md": _prepare_md,
    "mw": _prepare_mw,
    "rmw": _prepare_rmw,
    "poll": _prepare_poll,
}
"""How each command is prepared. Raises BarfsError."""
