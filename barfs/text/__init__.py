# SPDX-License-Identifier: MIT
"""Text that others write: names of mounts, drivers, labels, processes, sockets, files.

Rule 1: the kernel's texts are bytes. A line ends at a newline and nowhere else, and a name may hold
        any other byte: `os.fsdecode` makes it a `str` that `os.fsencode` turns back.
Rule 2: what leaves barfs for a person, a terminal or a log goes through `printable`, what leaves it
        as JSON through `dump_json`: neither depends on what a name holds.
"""

import codecs
import contextlib
import io
import os
import shlex
from typing import Any, TextIO


def printable(text: object) -> str:
    r"""One line that is safe to show: every byte of what cannot be printed is `\xNN`.

    That is how a shell reads it in `$'...'`.

    >>> print(printable("usb\udcc9 \x1b[31m \u2028 é"))
    usb\xc9 \x1b[31m \xe2\x80\xa8 é
    """
    return "".join(
        character if character.isprintable() else _escaped(character) for character in str(text)
    )


def unicode(text: str) -> str:
    r"""The text with `\xNN` for each byte of it that is no character, so that it has an encoding.

    >>> print(repr(unicode("usb\udcc9 \n")))
    'usb\\xc9 \n'
    """
    with contextlib.suppress(UnicodeEncodeError):  # not a name of a file: it has its characters
        text = os.fsencode(text).decode(errors="surrogateescape")
    return "".join(
        _escaped(character) if "\ud800" <= character <= "\udfff" else character
        for character in text
    )


def _escaped(characters: str) -> str:
    return "".join(f"\\x{byte:02x}" for character in characters for byte in _bytes(character))


def _bytes(character: str) -> bytes:
    try:
        return os.fsencode(character)
    except UnicodeEncodeError:  # not from a file's name: JSON may have lone surrogates
        return character.encode(errors="surrogatepass")


def shell_word(text: object) -> str:
    r"""One word of a command line that may be copied into a shell.

    >>> print(shell_word("/mnt/x"), shell_word("/mnt/a b"), shell_word("it's \udcc9"))
    /mnt/x '/mnt/a b' $'it\'s \xc9'
    """
    word = str(text)
    if printable(word) == word:
        return shlex.quote(word)
    quoted = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{printable(quoted)}'"


def printable_lines(text: str) -> str:
    """The same lines, each as `printable` has it."""
    return "\n".join(map(printable, text.split("\n")))


def dump_json(value: Any, indent: int | None = None) -> str:
    """JSON of plain values that every reader takes, with a final newline."""
    import json  # here: most commands print none

    return json.dumps(_with_unicode(value), indent=indent) + "\n"


def _with_unicode(value: Any) -> Any:
    match value:
        case str():
            return unicode(value)
        case dict():
            return {unicode(key): _with_unicode(item) for key, item in value.items()}
        case list() | tuple():
            return [_with_unicode(item) for item in value]
        case _:
            return value


def with_hex(**numbers: int) -> dict[str, int | str]:
    """Numbers of up to 64 bits for JSON: each once more as text under `NAME_hex`.

    Readers that keep numbers as doubles (JavaScript, jq) lose the low bits of those above 2**53.

    >>> with_hex(offset=8)
    {'offset': 8, 'offset_hex': '0x8'}
    """
    found: dict[str, int | str] = {}
    for name, number in numbers.items():
        found |= {name: number, f"{name}_hex": f"{number:#x}"}
    return found


def take_all_text(stream: TextIO | None) -> None:
    """Let a stream escape what its encoding does not have, as `printable` does."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=_ERRORS)


_ERRORS = "barfs.escape"


def _escape_what_has_no_code(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return _escaped(error.object[error.start : error.end]), error.end


codecs.register_error(_ERRORS, _escape_what_has_no_code)
