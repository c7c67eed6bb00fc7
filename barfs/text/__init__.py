# SPDX-License-Identifier: MIT
"""Text from outside barfs: names of mounts, drivers, labels, processes, sockets, files.

Rule 1: the kernel's texts are bytes. Only a newline ends a line, and a name may hold any other
        byte: `os.fsdecode` decodes it to a `str` that `os.fsencode` encodes to the same bytes.
Rule 2: all output for a person, a terminal or a log goes through `printable`, all JSON through
        `dump_json`: no byte of a name can break either.
"""

import codecs
import contextlib
import io
import os
import shlex
from typing import Any, TextIO


def printable(text: object) -> str:
    r"""One line that is safe to show, with `\xNN` for each byte of an unprintable character.

    A shell reads that notation in `$'...'`.

    >>> print(printable("usb\udcc9 \x1b[31m \u2028 é"))
    usb\xc9 \x1b[31m \xe2\x80\xa8 é
    """
    return "".join(
        character if character.isprintable() else _escaped(character) for character in str(text)
    )


def quoted(text: object) -> str:
    r"""What an error quotes: `printable`, between quotation marks.

    >>> print(quoted("it\udcff"))
    'it\xff'
    """
    return f"'{printable(text)}'"


def unicode(text: str) -> str:
    r"""The text with `\xNN` for each byte that is in no character, so that it can be encoded.

    >>> print(repr(unicode("usb\udcc9 \n")))
    'usb\\xc9 \n'
    """
    with contextlib.suppress(
        UnicodeEncodeError
    ):  # not the name of a file, so its characters are as meant
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
    except UnicodeEncodeError:  # not from the name of a file: JSON may hold lone surrogates
        return character.encode(errors="surrogatepass")


def shell_word(text: object) -> str:
    r"""One word of a command line, quoted to be copied into a shell.

    >>> print(shell_word("/mnt/x"), shell_word("/mnt/a b"), shell_word("it's \udcc9"))
    /mnt/x '/mnt/a b' $'it\'s \xc9'
    """
    word = str(text)
    if printable(word) == word:
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"${quoted(escaped)}"


def printable_lines(text: str) -> str:
    """The same lines, each made `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def dump_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader accepts, of plain values, with a final newline."""
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
    """Numbers of up to 64 bits for JSON, each repeated as text under `NAME_hex`.

    Readers that store numbers as doubles (JavaScript, jq) lose low bits of those above 2**53.

    >>> with_hex(offset=8)
    {'offset': 8, 'offset_hex': '0x8'}
    """
    found: dict[str, int | str] = {}
    for name, number in numbers.items():
        found |= {name: number, f"{name}_hex": f"{number:#x}"}
    return found


def take_all_text(stream: TextIO | None) -> None:
    """Make a stream escape characters that its encoding lacks, as `printable` does."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=_ERRORS)


_ERRORS = "barfs.escape"


def _escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return _escaped(error.object[error.start : error.end]), error.end


codecs.register_error(_ERRORS, _escape_unencodable)
