# SPDX-License-Identifier: MIT
"""A command imports what it needs: starting takes most of the time of a short one."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import mounted, require_fuse

NEVER = {"pyfuse3", "trio", "cffi", "_cffi_backend", "importlib.metadata"}
UNUSED = {"daemon", "device", "dump", "emulated", "engine", "policy", "uapi", "vfio", "vfio_user"}
"""Rooms of which a device that is mounted needs nothing."""


def imported(*arguments: str | Path) -> tuple[set[str], str]:
    """The modules that a command imports, and what it prints."""
    command = [sys.executable, "-X", "importtime", "-m", "barfs", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}, result.stdout


def of_barfs(modules: set[str]) -> set[str]:
    return {module for module in modules if module.startswith("barfs.")}


def test_the_version_is_told_by_the_parser_alone() -> None:
    modules, output = imported("--version")
    assert output.startswith("barfs ")
    assert not modules & {*NEVER, "dataclasses", "inspect", "json", "logging", "socket"}
    packages = {"barfs.cli", "barfs.process", "barfs.text"}
    names = ("edge", "exit_codes", "help", "main", "parser")
    parser = {f"barfs.cli.{name}" for name in names}
    others = {"barfs.errors", "barfs.process.signals", "barfs.text.system_errors"}
    assert of_barfs(modules) == packages | parser | others


@pytest.mark.parametrize("command", ["md", "layout"])
def test_a_command_on_a_mounted_device_opens_none(tmp_path: Path, command: str) -> None:
    require_fuse()
    with mounted(tmp_path, "demo") as mount:
        words = [mount.device() / "bar0", "0"] if command == "md" else [mount.device().name]
        modules, output = imported(command, *words)
    assert "66726162" in output or "# barfs layout v1: bar0" in output
    assert not modules & {*NEVER, "logging", "socket", "uuid", "tomllib"}
    found = {module for module in of_barfs(modules) if module.split(".")[1] in UNUSED}
    assert not found


def test_help_of_all_commands_imports_none_of_them() -> None:
    modules, output = imported("--help")
    assert " doctor " in output
    homes = {"devices", "dump", "layout", "mount", "registers", "run", "serve", "trace"}
    assert not of_barfs(modules) & {f"barfs.cli.{home}" for home in homes}
