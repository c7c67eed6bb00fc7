# SPDX-License-Identifier: MIT
"""The variables by which programs load the library."""

from pathlib import Path

import pytest

from barfs.errors import BarfsError
from barfs.preload import environment


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "library.so"
    path.touch()
    return path


def test_other_variables_stay(library: Path) -> None:
    assert environment({b"A": b"\xff"}, library) == {b"A": b"\xff", b"LD_PRELOAD": bytes(library)}


@pytest.mark.parametrize("before", [b"a.so", b"a.so:b.so", b"a.so b.so"])
def test_it_comes_behind_what_is_there(library: Path, before: bytes) -> None:
    once = environment({b"LD_PRELOAD": before}, library)
    assert once == {b"LD_PRELOAD": before + b":" + bytes(library)}
    assert environment(once, library) == once


def test_an_empty_variable_is_none(library: Path) -> None:
    assert environment({b"LD_PRELOAD": b""}, library) == {b"LD_PRELOAD": bytes(library)}


def test_a_path_with_blanks_is_searched_for(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "library.so").touch()
    found = environment({b"LD_LIBRARY_PATH": b"/lib"}, folder / "library.so")
    assert found == {b"LD_PRELOAD": b"library.so", b"LD_LIBRARY_PATH": b"/lib:" + bytes(folder)}


@pytest.mark.parametrize("name", ["a:b", "a b;c"])
def test_a_path_that_no_variable_can_hold_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    library = tmp_path / name / "library.so"
    library.touch()
    with pytest.raises(BarfsError, match="install barfs where"):
        environment({}, library)


def test_a_missing_library_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BarfsError, match="install barfs again"):
        environment({}, tmp_path / "none.so")
