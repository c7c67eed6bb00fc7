# SPDX-License-Identifier: MIT
"""The help is complete, and its examples work."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from barfs.cli import make_parser
from barfs.cli.mount_options import OPTIONS, Option, parse_options
from tests.support import BARFS
from tests.support.commands import COMMANDS, examples


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_that_are_its_own(command: str) -> None:
    assert examples(command)
    for example in examples(command):
        name, first, *others = shlex.split(example)
        assert (name, first) == ("barfs", command or first)
        choice = make_parser().parse_args([first, *others])
        parse_options(getattr(choice, "options", []))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_has_a_help(command: str) -> None:
    parser = COMMANDS[command]
    assert parser.description
    for action in parser._actions:
        assert action.help or isinstance(action.choices, dict), action


NO_HARDWARE = [line for name in ("layout", "list") for line in examples(name) if ":" not in line]


@pytest.mark.parametrize("example", NO_HARDWARE)
def test_examples_that_need_no_hardware_run(example: str) -> None:
    result = subprocess.run(
        [*BARFS, *shlex.split(example)[1:]], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout


def test_the_help_of_mount_fits_a_terminal_and_has_every_option() -> None:
    environment = {**os.environ, "COLUMNS": "80"}
    command = [*BARFS, "mount", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, env=environment).stdout
    assert max(map(len, text.splitlines())) <= 80
    words = text.split("options for -o:")[1].split()
    assert [option.usage for option in OPTIONS if option.usage not in words] == []


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_what_the_table_offers_is_what_the_parser_takes(option: Option, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('rule = [{ access = "ro" }]\n')
    sample = {
        "FILE": str(policy),
        "SECONDS": "1",
        "SIZE": "64k",
        "USER": "0",
        "GROUP": "0",
        "OCTAL": "027",
        "CONTEXT": "system_u:object_r:usr_t:s0",
        "WIDTHS": "4:8",
    }
    values = [sample.get(value, value) for value in option.value.split("|")]
    parsed = [
        parse_options([f"{option.name}={value}" if value else option.name]) for value in values
    ]
    assert any(one != parse_options([]) for one in parsed)
    assert len({repr(one) for one in parsed}) == len(values)
