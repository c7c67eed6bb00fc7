# SPDX-License-Identifier: MIT
"""README's "From other languages": what is shown there is run, and is one access for each request.

`languages/` has the rest of each program, which goes on with one byte and with eight.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import mounted, require, served

README = Path(__file__).parents[2] / "README.md"
SOURCES = Path(__file__).parent / "languages"
SHOWN = "/mnt/bus/0000:01:00.0/bar0"


@dataclass(frozen=True)
class Language:
    """`fence` marks its block in README; `build` and `run` are commands, `{}` the source."""

    fence: str
    source: str
    run: str
    build: str | None = None

    @property
    def program(self) -> str:
        return (self.build or self.run).split()[0]


LANGUAGES = {
    "C": Language("c", "example.c", "./example", "gcc -Wall -Wextra -Werror -o example {}"),
    "Perl": Language("perl", "example.pl", "perl {}"),
    "Node": Language("js", "example.js", "node {}"),
    "Java": Language("java", "Example.java", "java {}"),
    "Rust": Language(
        "rust", "example.rs", "./example", "rustc --edition=2021 -Dwarnings -o example {}"
    ),
}


def shown() -> dict[str, str]:
    """The blocks of the section, by what is written at their fences."""
    _, _, rest = README.read_text().partition("\n### From other languages\n")
    section, _, _ = rest.partition("\n#")
    return dict(re.findall(r"^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL))


def run(command: str, source: Path) -> str:
    words = [word.format(source) for word in command.split()]
    result = subprocess.run(
        words, cwd=source.parent, capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_all_that_is_shown_is_tried() -> None:
    assert sorted(shown()) == sorted(language.fence for language in LANGUAGES.values())
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
            r"^ *(//|#) README\n",
            lambda _: shown()[language.fence].replace(SHOWN, str(mount.device() / "bar0")),
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
    assert output.split() == ["600d", "5a", "123456766726162"]
