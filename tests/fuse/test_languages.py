# SPDX-License-Identifier: MIT
"""The programs that barfs(7) shows run, and each of their requests is one access.

`languages/` has the rest of each program, which goes on with one byte and with eight.
"""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import mounted, require, served

MANUAL = Path(__file__).parents[2] / "scripts/man/barfs.7.scd"
SOURCES = Path(__file__).parent / "languages"
SHOWN = "/mnt/bus/0000:01:00.0/bar0"


@dataclass(frozen=True)
class Language:
    """`build` and `run` are commands, `{}` the source."""

    source: str
    run: str
    build: str | None = None

    @property
    def program(self) -> str:
        return (self.build or self.run).split()[0]


LANGUAGES = {
    "Bash": Language("example.sh", "bash {}"),
    "Python": Language("example.python", f"{sys.executable} {{}}"),
    "C": Language("example.c", "./example", "gcc -Wall -Wextra -Werror -o example {}"),
    "Perl": Language("example.pl", "perl {}"),
    "Node": Language("example.js", "node {}"),
    "Java": Language("Example.java", "java {}"),
    "Rust": Language("example.rs", "./example", "rustc --edition=2021 -Dwarnings -o example {}"),
}


def shown() -> dict[str, str]:
    """The examples of the manual, by language."""
    _, _, rest = MANUAL.read_text().partition("\n# PROGRAMS\n")
    section, _, _ = rest.partition("\n# ")
    blocks = re.findall(r"^## (\w+)\n\n```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return {name: text.replace("\\\\", "\\") for name, text in blocks}


def run(command: str, source: Path) -> str:
    words = [word.format(source) for word in command.split()]
    result = subprocess.run(
        words, cwd=source.parent, capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_all_that_is_shown_is_tried() -> None:
    assert shown().keys() == LANGUAGES.keys()
    for text in shown().values():
        assert text.count("\n") == 3
        assert text.count(SHOWN) == 1


@pytest.mark.parametrize("name", LANGUAGES)
def test_plain_file_access_is_one_access_of_the_device(tmp_path: Path, name: str) -> None:
    language = LANGUAGES[name]
    program = language.program
    require(name.lower(), shutil.which(program) is not None, f"{program} is missing: no {name}")
    with served(tmp_path) as device, mounted(tmp_path, device.name) as mount:
        text, marks = re.subn(
            r"^ *(//|#) MANUAL\n",
            lambda _: shown()[name].replace(SHOWN, str(mount.device() / "bar0")),
            (SOURCES / language.source).read_text(),
            flags=re.MULTILINE,
        )
        assert marks == 1
        source = tmp_path / language.source
        source.write_text(text)
        if language.build is not None:
            run(language.build, source)
        device.accesses()
        output = run(language.run, source)
        assert device.accesses() == [
            "w bar0 0x4 4 0x0000600d",
            "r bar0 0x4 4 0x0000600d",
            "w bar0 0x5 1 0x5a",
            "r bar0 0x5 1 0x5a",
            "w bar0 0x0 8 0x0123456789abcdef",
            "r bar0 0x0 8 0x0123456766726162",
        ]
    assert [int(word, 16) for word in output.split()] == [0x600D, 0x5A, 0x0123456766726162]
