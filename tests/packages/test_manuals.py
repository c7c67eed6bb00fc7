# SPDX-License-Identifier: MIT
"""The manuals are clean, and have every command, option and reason."""

import re
import subprocess
from pathlib import Path

import pytest
from package_lib import manual

from barfs import layout
from barfs.cli.mount_options import OPTIONS
from tests.packages.conftest import require_programs
from tests.support.commands import COMMANDS, examples

PAGES = (
    "man1/barfs.1",
    "man7/barfs.7",
    "man8/barfs.8",
    "man5/barfs-layout.5",
    "man5/barfs-registers.5",
)
# Of scdoc's own making, and without effect.
HARMLESS = re.compile(r"STYLE|skipping paragraph macro: PP (empty|after S[HS])")


def shown(page: Path) -> str:
    """The page as it is read, in one line."""
    require_programs("man", "mandoc")
    command = ["mandoc", "-Tutf8", "-O", "width=1000", str(page)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return " ".join(re.sub(".\b", "", text).split())


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_clean(share: Path, page: str) -> None:
    require_programs("man", "mandoc")
    command = ["mandoc", "-Tlint", str(share / "man" / page)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert [line for line in found.splitlines() if not HARMLESS.search(line)] == []
    source = (share / "man" / page).read_text()
    assert source.startswith("'\\\" t\n") == ("\n.TS\n" in source)
    assert "@" not in re.sub("@(nic|INSTANCE|0000|\\.service)|barfs\\\\?@", "", source)


def test_every_command_is_in_the_manual(share: Path) -> None:
    text = shown(share / "man/man1/barfs.1")
    for name, parser in COMMANDS.items():
        if not name:
            continue
        assert " ".join((parser.description or "").split()) in text
        for action in parser._actions:
            if "-h" not in action.option_strings:
                assert " ".join((action.help or "").split()) in text
        for example in examples(name):
            assert example in text


def test_every_option_is_in_the_manual(share: Path) -> None:
    text = shown(share / "man/man8/barfs.8")
    for option in OPTIONS:
        assert f"{option.usage} {option.text}" in text


def test_every_reason_is_in_the_manual(share: Path) -> None:
    text = shown(share / "man/man5/barfs-layout.5")
    reasons = [getattr(layout, name) for name in dir(layout) if name.startswith("REASON_")]
    assert len(reasons) > 5
    assert [reason for reason in reasons if f" {reason}" not in text] == []


def test_the_formats_are_those_of_their_modules(share: Path) -> None:
    text = shown(share / "man/man5/barfs-layout.5")
    assert "vendor = 0x1234 # ids as in configuration space" in text
    assert '[[rule]] device = "0000:01:00.0"' in text
    assert "Rule 1" not in text


def test_a_title_has_hyphens_whatever_scdoc_writes() -> None:
    """1.11.5 writes minus signs, which mandoc does not take in a date."""
    page = '.\\" Generated\n.TH "barfs\\-layout" "5" "2026\\-11\\-25"\n.P\n\\-o\n'
    plain = '.\\" Generated\n.TH "barfs-layout" "5" "2026-11-25"\n.P\n\\-o\n'
    assert manual.readable(page) == manual.readable(plain) == plain
