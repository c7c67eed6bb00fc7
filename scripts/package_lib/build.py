# SPDX-License-Identifier: MIT
"""The packages that are archives."""

import email.utils
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
from pathlib import Path

from package_lib import environment

MAINTAINER = "The barfs authors <barfs@packages.invalid>"


def _run(*command: str | Path, folder: Path) -> None:
    """Run a command that speaks only where it fails, with nothing of the user's environment.

    Raises CalledProcessError.
    """
    result = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=environment.clean(),
        umask=0o022,
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
        build = ("build", "--sdist", "--outdir", scratch)
        _run(sys.executable, "-I", "-m", *build, root, folder=root)
        return _take(Path(scratch), "*.tar.gz", folder)


def wheel(root: Path, folder: Path) -> list[Path]:
    """Build a wheel from the sdist, in an environment of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        (archive,) = sdist(root, Path(scratch))
        pip = ("pip", "wheel", "--no-deps", "-w", scratch)
        _run(sys.executable, "-I", "-m", *pip, archive, folder=root)
        return _take(Path(scratch), "*.whl", folder)


def deb(root: Path, folder: Path) -> list[Path]:
    """Build the Debian package from the sdist. Needs what scripts/debian/control names."""
    with tempfile.TemporaryDirectory() as scratch:
        (archive,) = sdist(root, Path(scratch))
        with tarfile.open(archive) as file:
            file.extractall(scratch, filter="data")
        source = Path(scratch) / archive.name.removesuffix(".tar.gz")
        shutil.copytree(source / "scripts/debian", source / "debian")
        _write_changelog(source, source.name.removeprefix("barfs-"))
        _run("dpkg-buildpackage", "-b", "-us", "-uc", folder=source)
        return _take(Path(scratch), "barfs_*.deb", folder)


def _write_changelog(source: Path, version: str) -> None:
    """debian/changelog, from the version and what CHANGELOG.md says of it."""
    text = (source / "CHANGELOG.md").read_text().partition(f"\n## {version}")[2]
    _, *entries = text.partition("\n## ")[0].split("\n- ")
    changes = (
        textwrap.fill(" ".join(entry.split()), 78, initial_indent="  * ", subsequent_indent="    ")
        for entry in entries
    )
    head = f"barfs ({version}) unstable; urgency=medium"
    end = f" -- {MAINTAINER}  {email.utils.formatdate(localtime=True)}"
    (source / "debian/changelog").write_text("\n\n".join([head, "\n".join(changes), end, ""]))


def _take(scratch: Path, pattern: str, folder: Path) -> list[Path]:
    return [Path(shutil.move(found, folder / found.name)) for found in scratch.glob(pattern)]
