# SPDX-License-Identifier: MIT
"""What barfs/README.md says of the code is there: rooms, files, functions, threads, commands."""

import re

import pytest

from tests.support.commands import COMMANDS
from tests.unit.test_layering import PACKAGE, ROOMS

ROOT = PACKAGE.parent
ARCHITECTURE = (PACKAGE / "README.md").read_text()
SOURCES = {
    path.relative_to(PACKAGE).as_posix(): path.read_text()
    for suffix in ("py", "c", "h")
    for path in PACKAGE.rglob(f"*.{suffix}")
}


def section(title: str) -> str:
    _, found, rest = ARCHITECTURE.partition(f"\n## {title}\n")
    assert found
    return rest.partition("\n## ")[0]


def test_the_architecture_is_one_page() -> None:
    assert ARCHITECTURE.count("\n") <= 150


def test_rooms_are_in_the_order_of_imports() -> None:
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \|", ARCHITECTURE, re.MULTILINE)
    assert rows == list(reversed(ROOMS))


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`((?!linux/)[\w/]+\.(?:py|c|h))`", ARCHITECTURE)))
)
def test_a_file_that_is_named_is_there(name: str) -> None:
    assert (PACKAGE / name).is_file() or (ROOT / name).is_file()


@pytest.mark.parametrize("title", ["How one request flows", "Where something new goes"])
def test_functions_and_classes_that_are_named_are_there(title: str) -> None:
    code = "\n".join(SOURCES.values())
    spans = re.findall(r"`([A-Za-z_][\w.]*)`", section(title))
    names = {span.rpartition(".")[2] for span in spans if not span.endswith((".py", ".c", ".md"))}
    kernel = {"dd", "open", "pread", "pwrite", "sigsetjmp", "EIO", "scd"}
    assert [
        name
        for name in sorted(names - kernel)
        if not re.search(rf"\b(?:def|class|enum|struct) {name}\b|\b{name}(?:\(| =|: )", code)
    ] == []


def test_threads_have_the_names_that_they_are_given() -> None:
    named = set(re.findall(r"`((?:gate|barfs)-[\w-]+)`", section("Threads")))
    given = set(re.findall(r'"((?:gate|barfs)-[\w-]+)"', SOURCES["fuse/gate.py"]))
    assert {name for name in named if name.startswith("gate-")} == given
    for name in named - given:
        assert any(f'"{name}"' in text for text in SOURCES.values()), name


def test_the_readme_has_every_command() -> None:
    words = set(re.findall(r"\w+", (ROOT / "README.md").read_text().partition("## Commands")[2]))
    assert COMMANDS.keys() - words == {""}
