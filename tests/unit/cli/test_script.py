# SPDX-License-Identifier: MIT
"""How the lines of a script are read: as a shell and the commands themselves would."""

import argparse
import shlex
import subprocess
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs.cli import registers
from barfs.cli.parser import Parser
from barfs.cli.script import _LineParser, split_line
from barfs.errors import UsageError


@pytest.mark.parametrize(
    "line",
    [
        "md a 0x0",
        "  md\t a\t0x0 \r",
        "md 'a b' \"c d\" e\\ f",
        "md a'b'\"c\"d",
        "md '' \"\"",
        "md a#b # c 'd",
        "# only a comment",
        "",
        "md '#' \\# \"#\"",
        "md 'it'\\''s' \"a \\\" b \\\\ c\"",
        "md '\\' \"'\"",
        "md b\u00e4r 'b\u00e4 r' \u00a0\u2003x",
        "md *? ~/x [15:8] a;b a|b",
    ],
)
def test_words_are_those_of_a_shell(line: str) -> None:
    """Without its expansions, and without what it does with operators."""
    quoted = line
    for special in "*?~;|[":
        quoted = quoted.replace(special, f"\\{special}")
    script = f"for word in {quoted}\ndo printf '%s\\0' \"$word\"; done"
    found = subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout
    expected = found.decode().split("\0")[:-1]
    assert split_line(line) == [word.rstrip("\r") for word in expected if word != "\r"]


@given(st.text(alphabet="ab 0'\"\\\t-\u00e4"))
def test_words_are_those_of_shlex(line: str) -> None:
    try:
        expected = shlex.split(line)
    except ValueError:
        with pytest.raises(UsageError, match=r"does not end|quotes nothing"):
            split_line(line)
    else:
        assert split_line(line) == expected


def test_a_nul_is_refused() -> None:
    with pytest.raises(UsageError, match="must not contain a NUL"):
        split_line("md a\0b 0")


COMMANDS = {name: getattr(registers, f"add_{name}") for name in ("md", "mw", "rmw", "poll")}
WORDS = st.sampled_from(
    [
        "f",
        "0x0",
        "5",
        "",
        "a b",
        "-",
        "-1",
        "-0x1",
        "-b",
        "-q",
        "-l",
        "-n",
        "--json",
        "--js",
        "-nb",
        "--",
        "-z",
        "-1 2",
        "- x",
        "-h",
        "--timeout",
        "--timeout=2",
        "2.5",
        "--t",
        "--time=x",
    ]
)


class Reference(Parser):
    """What the command itself makes of its words."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(message)


@given(st.sampled_from(sorted(COMMANDS)), st.lists(st.lists(WORDS, max_size=7), max_size=4))
def test_arguments_are_those_of_the_command(name: str, lines: list[list[str]]) -> None:
    reference = Reference(prog=f"barfs {name}", add_help=False)
    COMMANDS[name](reference)
    parser = _LineParser(name)
    for words in [*lines, *lines]:
        assert arguments(parser.parse, words) == arguments(reference.parse_args, words)


def arguments(
    parse: Callable[[list[str]], argparse.Namespace], words: list[str]
) -> dict[str, object] | str:
    try:
        found = vars(parse(words))
    except UsageError as error:
        return str(error).partition(";")[0]
    del found["run"]
    return found
