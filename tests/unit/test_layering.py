# SPDX-License-Identifier: MIT
"""The rooms of the house: a module imports only from the rooms before its own."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "barfs"

ROOMS = (
    "errors",
    "text",
    "ranges",
    "widths",
    "pci",
    "uapi",
    "engine",
    "process",
    "preload",
    "host",
    "policy",
    "layout",
    "backend",
    "emulated",
    "vfio",
    "vfio_user",
    "attached",
    "region",
    "registers",
    "device",
    "opening",
    "__init__",
    "fuse",
    "dump",
    "daemon",
    "cli",
    "__main__",
)
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(module: Path) -> str:
    relative = module.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported(module: Path) -> set[str]:
    """The rooms of barfs, and the outside packages, that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            prefix = node.module or ""
            names = (
                [f"{prefix}.{alias.name}" for alias in node.names]
                if prefix == "barfs"
                else [prefix]
            )
        for name in names:
            parts = name.split(".")
            found.add(parts[1] if parts[0] == "barfs" and len(parts) > 1 else parts[0])
    return found


def test_every_module_has_a_room() -> None:
    assert {room(module) for module in MODULES} == set(ROOMS)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(module: Path) -> None:
    own = ROOMS.index(room(module))
    later = {name for name in imported(module) if name in ROOMS and ROOMS.index(name) > own}
    assert not later


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        ("pyfuse3", {"fuse"}),
        ("trio", {"fuse", "host"}),
        ("cffi", {"engine"}),
        ("fcntl", {"emulated", "host", "vfio", "vfio_user"}),
        ("argparse", {"cli"}),
        ("systemrdl", {"registers"}),
        ("peakrdl_ipxact", {"registers"}),
    ],
)
def test_outside_packages_stay_in_their_rooms(package: str, rooms: set[str]) -> None:
    users = {room(module) for module in MODULES if package in imported(module)}
    assert users <= rooms


def test_one_module_imports_the_extension() -> None:
    users = [
        module.relative_to(PACKAGE).as_posix()
        for module in MODULES
        if any(
            isinstance(node, ast.ImportFrom) and (node.module or "").endswith("_engine")
            for node in ast.walk(ast.parse(module.read_text()))
        )
    ]
    assert users == ["engine/extension.py"]


@pytest.mark.parametrize("package", ["daemon", "dump", "emulated", "fuse", "host", "process"])
def test_a_package_of_many_jobs_imports_none_of_them(package: str) -> None:
    """Most commands need one module of `fuse` or `host`, and neither pyfuse3 nor trio."""
    assert (PACKAGE / package / "__init__.py").read_text() == ""


def test_the_register_model_is_pure() -> None:
    room = {"barfs.errors", "barfs.registers.children", "barfs.registers.errors"}
    room |= {f"barfs.registers.{name}" for name in ("model", "names")}
    for name in ("children", "names", "model", "fields", "places", "packed"):
        tree = ast.parse((PACKAGE / "registers" / f"{name}.py").read_text())
        own = {
            node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("barfs")
        }
        assert own <= room, name
