# SPDX-License-Identifier: MIT
"""The manuals: `scripts/man/*.scd`, in scdoc's language, with their lists filled in.

A line `@name@` in such a file is replaced by a list that is kept elsewhere:

    @commands@      every command, from the parser
    @options@       the mount options, from barfs.cli.mount_options
    @description@   the format of a device's description, from the docstring that documents it
    @policy@        likewise the format of a policy
    @api@           likewise the Python API
    @dump@          likewise the format of a dump
"""

import argparse
import itertools
import re
import subprocess
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import barfs
import barfs.dump.file
import barfs.emulated.description
import barfs.policy
from barfs.cli import make_parser
from barfs.cli.help import EXAMPLES
from barfs.cli.mount_options import OPTIONS

SPECIAL = re.compile(r"([\\*_`~<>])")


def plain(text: str) -> str:
    """Text with the special characters of scdoc escaped."""
    return SPECIAL.sub(r"\\\1", text)


def bold(text: str) -> str:
    return f"*{plain(text)}*"


def underlined(text: str) -> str:
    return f"_{plain(text)}_"


def literal(text: str) -> str:
    """A block that is printed verbatim."""
    block = textwrap.dedent(text).replace("\\", "\\\\")
    return f"```\n{block}\n```"


def _usage(action: argparse.Action) -> str:
    """An argument in a synopsis."""
    value = underlined(str(action.metavar)) if action.metavar else ""
    if action.option_strings:
        return " ".join(filter(None, [f"[{bold(action.option_strings[0])}", value])) + "]"
    return {
        "?": f"[{value}]",
        "*": f"[{value}...]",
        "+": f"{value}...",
        "...": f"{value} [_ARGUMENT_...]",
    }.get(str(action.nargs), value)


def _argument(action: argparse.Action) -> str:
    value = underlined(str(action.metavar)) if action.metavar else ""
    names = ", ".join(map(bold, action.option_strings))
    return " ".join(filter(None, [names, value])) + f"\n\t{plain(action.help or '')}"


def _command(parser: argparse.ArgumentParser) -> Iterator[str]:
    arguments = [one for one in parser._actions if not isinstance(one, argparse._HelpAction)]
    # Options first, as in argparse's usage.
    arguments.sort(key=lambda action: not action.option_strings)
    yield f"## {plain(parser.prog)}"
    yield " ".join([bold(parser.prog), *map(_usage, arguments)])
    for paragraph in (parser.description or "").split("\n\n"):
        yield plain(paragraph)
    yield from map(_argument, arguments)
    yield literal((parser.epilog or "").removeprefix(EXAMPLES + "\n"))


def _commands() -> Iterator[str]:
    for action in make_parser()._actions:
        if isinstance(action.choices, dict):
            for parser in action.choices.values():
                yield from _command(parser)


def _options() -> Iterator[str]:
    for option in OPTIONS:
        value = "=" + underlined(option.value) if option.value else ""
        yield f"{bold(option.name)}{value}\n\t{plain(option.text)}"


def _documented(docstring: str | None) -> Iterator[str]:
    """The part of a docstring between its title and its rules; indented paragraphs are literal."""
    body = textwrap.dedent((docstring or "").partition("\n")[2].partition("\nRule 1:")[0])
    paragraphs = body.strip("\n").split("\n\n")
    for indented, group in itertools.groupby(paragraphs, lambda text: text.startswith(" ")):
        text = "\n\n".join(group)
        yield literal(text) if indented else plain(text)


def _fill(text: str) -> str:
    lists: dict[str, Iterable[str]] = {
        "@commands@": _commands(),
        "@options@": _options(),
        "@description@": _documented(barfs.emulated.description.__doc__),
        "@api@": _documented(barfs.__doc__),
        "@dump@": _documented(barfs.dump.file.__doc__),
        "@policy@": _documented(barfs.policy.__doc__),
    }
    return "\n".join("\n\n".join(lists.get(line, [line])) for line in text.split("\n"))


def readable(page: str) -> str:
    """What scdoc wrote, for every reader of manuals. man(1) lays tables out only if the first line
    asks for tbl; mandoc knows no date with minus signs, as scdoc 1.11.5 writes it."""
    tables = "'\\\" t\n" if "\n.TS\n" in page else ""
    return tables + re.sub(
        r"^\.TH .*", lambda title: title[0].replace("\\-", "-"), page, flags=re.MULTILINE
    )


def write(sources: Path, folder: Path) -> list[Path]:
    """Write the manuals below `folder`/man. Raises CalledProcessError."""
    written = []
    for source in sorted(sources.glob("*.scd")):
        page = subprocess.run(
            ["scdoc"], input=_fill(source.read_text()), capture_output=True, text=True, check=False
        )
        if page.returncode:
            raise SystemExit(f"{source}: {page.stderr}")
        path = folder / f"man/man{source.stem[-1]}" / source.stem
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(readable(page.stdout))
        written.append(path)
    return written
