# SPDX-License-Identifier: MIT
"""The sdist has everything, and the wheel works where the source is not."""

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.utils import parse_wheel_filename

from tests.packages.conftest import FOREIGN, MAPPER, ROOT, runpaths
from tests.support import DEADLINE, is_mounted, require, require_fuse


def run(
    command: Sequence[str | Path], folder: Path, timeout: float = DEADLINE, **environment: str
) -> str:
    """What a command prints that succeeds, with nothing of this environment's Python."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    result = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**kept, **environment},
        umask=0o077,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def unpacked(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / sdist.name.removesuffix(".tar.gz")


def test_the_sdist_has_every_file_of_the_repository(sdist: Path) -> None:
    require("git", (ROOT / ".git").exists(), "this is no git repository")
    listed = run(["git", "ls-files", "-z"], ROOT).split("\0")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in listed if name and (ROOT / name).exists()} - packed == set()
    assert [name for name in packed if name.endswith((".so", ".pyc"))] == []


@pytest.mark.usefixtures("foreign_wheel")
def test_the_demo_runs_from_the_sdist_whatever_the_user_has_set(
    sdist: Path, tmp_path: Path, user: dict[str, str]
) -> None:
    require_fuse()
    folder = tmp_path / "a folder"
    source = unpacked(sdist, folder)
    venv = folder / "venv"
    command = [source / "scripts/demo"]
    shown = run(command, tmp_path, timeout=900, **{**user, "BARFS_VENV": str(venv)})
    assert "ID 0x66726162, inverted 0xffff0000" in shown
    assert "the device is given back" in shown
    found = runpaths(venv)
    assert any("pyfuse3" in name for name in found)
    assert not [path for paths in found.values() for path in paths if FOREIGN in path]


def test_the_wheel_is_for_every_python(wheel: Path) -> None:
    _, _, _, tags = parse_wheel_filename(wheel.name)
    assert {(tag.interpreter, tag.abi) for tag in tags} == {("cp311", "abi3")}
    names = zipfile.ZipFile(wheel).namelist()
    assert "barfs/engine/_engine.abi3.so" in names
    assert "barfs/preload/barfs_map.so" in names
    assert "barfs/emulated/demo.toml" in names
    assert [name for name in names if name.endswith((".c", ".h"))] == []
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"barfs"}


def test_the_metadata_is_valid(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Metadata.from_email(archive.read(name), validate=True)
    assert metadata.license_expression == "MIT"
    assert metadata.description_content_type == "text/markdown"
    assert metadata.description == (ROOT / "README.md").read_text()


def test_an_installed_wheel_mounts_and_reads(wheel: Path, tmp_path: Path) -> None:
    require_fuse()
    run([sys.executable, "-m", "venv", tmp_path / "venv"], tmp_path)
    python, barfs = tmp_path / "venv/bin/python", tmp_path / "venv/bin/barfs"
    run([python, "-m", "pip", "install", "-q", wheel], tmp_path, timeout=600)
    run([python, "-m", "pip", "check"], tmp_path)
    where = run([python, "-c", "import barfs.engine.extension as b; print(b.__file__)"], tmp_path)
    assert where.startswith(str(tmp_path))
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    run([barfs, "mount", "-o", "map", "demo", mountpoint], tmp_path)
    try:
        bar0 = mountpoint / "bus/ffff:00:00.0/bar0"
        assert run([barfs, "run", python, "-c", MAPPER, bar0], tmp_path) == "b'barf'\n"
        fd = os.open(mountpoint / "bus/ffff:00:00.0/bar0", os.O_RDONLY)
        try:
            assert os.pread(fd, 4, 0) == b"barf"
        finally:
            os.close(fd)
    finally:
        run([barfs, "umount", mountpoint], tmp_path)
    assert not is_mounted(mountpoint)
