# SPDX-License-Identifier: MIT
"""Completion for bash, zsh and fish, by shtab from the parser.

Rule 1: the METAVAR of an argument selects its completion; one that is not listed has none.
"""

import argparse
import shlex
from pathlib import Path

import shtab

from barfs.cli import make_parser
from barfs.cli.mount_options import OPTIONS, Option

PLACES = {
    "bash": "bash-completion/completions/barfs",
    "zsh": "zsh/vendor-completions/_barfs",
    "fish": "fish/vendor_completions.d/barfs.fish",
}
SHELLS = Path(__file__).parent


def _words(option: Option) -> list[str]:
    if not option.value:
        return [option.name]
    values = option.value.split("|")
    return [f"{option.name}={value}" for value in (values if len(values) > 1 else [""])]


def _own(name: str) -> dict[str, str]:
    """A function in `completion.SHELL`, beside this file."""
    return {"bash": f"_barfs_{name}", "zsh": f"_barfs_{name}", "fish": f"(_barfs_{name})"}


COMPLETERS = {
    "A": shtab.FILE,
    "B": shtab.FILE,
    "BDF": _own("addresses"),
    "COMMAND": _own("programs"),
    "DESCRIPTION": shtab.FILE,
    "DESCRIPTION.toml": shtab.FILE,
    "DEVICE": _own("devices"),
    "FILE": shtab.FILE,
    "GROUP": _own("groups"),
    "MOUNTPOINT": shtab.DIRECTORY,
    "NAME[=VALUE]": _own("names"),
    "OFFSET": _own("names"),
    "OPTIONS": _own("options"),
    "PATH": shtab.FILE,
    "PATTERN": _own("names"),
    "PLACE": shtab.FILE,
    "RANGE": _own("names"),
    "REGION": _own("regions"),
    "USER": _own("users"),
}


def _teach(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                _teach(command)
        elif action.metavar == "DEVICE" and action.nargs == "*":
            # The mount point follows them, and the shells cannot tell which word is the last.
            action.complete = _own("devices_or_directories")  # type: ignore[attr-defined]
        elif isinstance(action.metavar, str) and action.metavar in COMPLETERS:
            action.complete = COMPLETERS[action.metavar]  # type: ignore[attr-defined]


def _word(text: str, shell: str) -> str:
    """The text as one word of a script."""
    if shell != "fish":
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def write(folder: Path) -> list[Path]:
    """Write the completions to their places below `folder`."""
    parser = make_parser()
    _teach(parser)
    names = (SHELLS / "completion.names.sh").read_text()
    words = " ".join(word for option in OPTIONS for word in _words(option))
    written = []
    for shell, place in PLACES.items():
        ours = (SHELLS / f"completion.{shell}").read_text().replace("@options@", words)
        ours = ours.replace("@names@", _word(names, shell))
        preamble, _, end = ours.partition("# --- after shtab\n")
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(shtab.complete(parser, shell, preamble=preamble) + "\n" + end)
        written.append(path)
    return written
