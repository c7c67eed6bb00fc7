# SPDX-License-Identifier: MIT
"""The packages that are archives."""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

MAINTAINER = "The barfs authors <barfs@packages.invalid>"


def _run(*command: str | Path, folder: Path, **environment: str) -> None:
    """Run a command that speaks only where it fails. Raises CalledProcessError."""
    result = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode:
        sys.stderr.write(result.stdout)
        result.check_returncode()


def sdist(root: Path, folder: Path) -> list[Path]:
    """Build the sdist in an environment of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        _run(sys.executable, "-m", "build", "--sdist", "--outdir", scratch, root, folder=root)
        return _take(Path(scratch), "*.tar.gz", folder)


def wheel(root: Path, folder: Path) -> list[Path]:
    """Build a wheel from the sdist, in an environment of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        (archive,) = sdist(root, Path(scratch))
        _run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", scratch, archive, folder=root)
        return _take(Path(scratch), "*.whl", folder)


def deb(root: Path, folder: Path) -> list[Path]:
    """Build the Debian package from the sdist. Needs what scripts/debian/control names."""
    with tempfile.TemporaryDirectory() as scratch:
        (archive,) = sdist(root, Path(scratch))
        with tarfile.open(archive) as file:
            file.extractall(scratch, filter="data")
        source = Path(scratch) / archive.name.removesuffix(".tar.gz")
        shutil.copytree(source / "scripts/debian", source / "debian")
        version = source.name.removeprefix("barfs-")
        _write_changelog(source, version)
        # Its own tools before those of a virtual environment.
        path = "/usr/sbin:/usr/bin:/sbin:/bin"
        _run("dpkg-buildpackage", "-b", "-us", "-uc", folder=source, PATH=path)
        return _take(Path(scratch), "*.deb", folder)


def _write_changelog(source: Path, version: str) -> None:
    """debian/changelog, from the version and what CHANGELOG.md says of it."""
    entries = (source / "CHANGELOG.md").read_text().split(f"\n## {version}", 1)[1]
    lines = entries.split("\n## ", 1)[0].splitlines()[1:]
    changes = "\n".join(f"  {line}".replace("  - ", "  * ", 1) for line in lines if line)
    head = f"barfs ({version}) unstable; urgency=medium"
    date = subprocess.run(["date", "-R"], capture_output=True, text=True, check=True).stdout
    (source / "debian/changelog").write_text(f"{head}\n\n{changes}\n\n -- {MAINTAINER}  {date}")


def _take(scratch: Path, pattern: str, folder: Path) -> list[Path]:
    return [Path(shutil.move(found, folder / found.name)) for found in scratch.glob(pattern)]
