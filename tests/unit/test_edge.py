# SPDX-License-Identifier: MIT
"""The edge of the process: how a command ends."""

import os
import sys

import pytest

from barfs.cli.edge import exit_code
from barfs.pci import Bdf


def test_a_bug_is_one_line_with_its_place_in_the_package(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code(lambda: len(str(Bdf.parse(0)))) == 1  # type: ignore[arg-type]
    error = capsys.readouterr().err
    assert error.startswith("barfs: TypeError in pci.py, line ")
    assert error.endswith("; this is a bug in barfs, please report it\n")
    assert error.count("\n") == 1


def test_an_error_is_told_when_no_module_can_be_loaded_any_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "barfs.daemon.logs", None)
    assert exit_code(lambda: os.open("/nonexistent", os.O_RDONLY)) == 1
    assert capsys.readouterr().err == "barfs: /nonexistent: No such file or directory\n"
