# SPDX-License-Identifier: MIT
"""Numbers and ranges as people type them: `0x100+0x40`, `0x100-0x13f`, `4k`, `0x10+1M`.

Rule 1: `+` is followed by a size, `-` by the last byte that belongs to the range, as in memtool.
"""

from barfs.errors import UsageError

_SUFFIXES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def parse_number(text: str) -> int:
    """A number of bytes: decimal, 0x, 0o or 0b, with k, M or G behind it for powers of 1024.

    Raises UsageError.
    """
    factor = _SUFFIXES.get(text[-1:].lower(), 1)
    digits = text[:-1] if factor > 1 else text
    try:
        if not digits[:1].isdecimal():  # no sign, no spaces
            raise ValueError
        return int(digits, 0) * factor
    except ValueError:
        raise UsageError(f"{text!r} is no number; write it like 256, 0x100, 4k or 1M") from None


def parse_range(text: str, default_size: int | None = None) -> tuple[int, int]:
    """The start and the end (exclusive) of a range; an offset alone has `default_size` bytes.

    Raises UsageError; an empty range is one.
    """
    for separator in "+-":
        start_text, found, end_text = text.partition(separator)
        if found:
            start, number = parse_number(start_text), parse_number(end_text)
            end = start + number if separator == "+" else number + 1
            break
    else:
        if default_size is None:
            raise UsageError(f"{text!r} is no range; write it like 0x100+0x40 or 0x100-0x13f")
        start = parse_number(text)
        end = start + default_size
    if end <= start:
        raise UsageError(f"{text!r} is an empty range")
    return start, end
