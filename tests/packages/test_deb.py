# SPDX-License-Identifier: MIT
"""The Debian package in a chroot with nothing else: installed, used, removed without a trace."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.packages.conftest import package, require_programs, runpaths
from tests.support import require, require_fuse

pytestmark = pytest.mark.deb

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "barfs"
# What the package depends on, so that installing it takes nothing from the network.
INCLUDED = "fuse3,libfuse3-3,man-db,python3"

INSIDE = """
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
exec chroot "$1" /bin/sh -euc "$2"
"""


def codename() -> str:
    pairs = (line.partition("=") for line in Path("/etc/os-release").read_text().splitlines())
    return {name: value.strip('"') for name, _, value in pairs}.get("VERSION_CODENAME", "")


@pytest.fixture(scope="session")
def deb(
    tmp_path_factory: pytest.TempPathFactory, user: dict[str, str], foreign_wheel: None
) -> Path:
    require_programs("deb", "dpkg-buildpackage", "dh_python3", "fakeroot", "scdoc")
    (path,) = package("deb", tmp_path_factory.mktemp("deb"), user)
    return path


def mirror() -> list[str]:
    """Where this machine's own packages of the release come from."""
    command = ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)"]
    targets = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = (line.split() for line in targets.splitlines())
    return [uri for name, uri in lines if name == codename()][:1]


@dataclass(frozen=True)
class Chroot:
    """A minimal system below `path`; mounts made in it are seen by nobody else."""

    path: Path

    def run(self, script: str) -> str:
        """What a shell script prints that succeeds."""
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", INSIDE]
        result = subprocess.run(
            [*command, "sh", str(self.path), script],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"},
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def files(self) -> set[str]:
        """Everything but what package managers keep for themselves, and /tmp."""
        kept = ("dev/", "proc/", "tmp/", "var/cache/", "var/lib/dpkg/", "var/lib/apt/", "var/log/")
        names = (str(path.relative_to(self.path)) for path in self.path.rglob("*"))
        return {name for name in names if not f"{name}/".startswith(kept)}


@pytest.fixture
def chroot(tmp_path: Path) -> Iterator[Chroot]:
    require_programs("deb", "debootstrap", "unshare")
    require("deb", os.geteuid() == 0, "a chroot needs root")
    base = CACHE / f"chroot-{codename()}-{INCLUDED.replace(',', '-')}.tar"
    if not base.exists():
        made = tmp_path / "made"
        make = ["debootstrap", "--variant=minbase", f"--include={INCLUDED}", codename(), str(made)]
        result = subprocess.run([*make, *mirror()], capture_output=True, text=True, timeout=900)
        require("deb", result.returncode == 0, f"debootstrap: {result.stdout[-300:]}")
        CACHE.mkdir(parents=True, exist_ok=True)
        part = base.with_suffix(f".{os.getpid()}")
        subprocess.run(["tar", "-C", str(made), "-cf", str(part), "."], check=True)
        part.rename(base)
        shutil.rmtree(made)
    path = tmp_path / "root"
    path.mkdir()
    subprocess.run(["tar", "-C", str(path), "-xf", str(base)], check=True)
    # As on an installed system; without it fusermount3 keeps a table of its own.
    (path / "etc/mtab").unlink(missing_ok=True)
    (path / "etc/mtab").symlink_to("../proc/self/mounts")
    yield Chroot(path)
    shutil.rmtree(path)


def test_the_package_installs_works_and_goes(deb: Path, chroot: Chroot) -> None:
    rules = chroot.path / "etc/udev/rules.d"
    rules.mkdir(parents=True, exist_ok=True)
    before = chroot.files()
    shutil.copy(deb, chroot.path / "tmp/barfs.deb")
    chroot.run("apt-get install -q -y /tmp/barfs.deb")
    version = deb.name.split("_")[1]
    assert chroot.run("cd /; barfs --version") == f"barfs {version}\n"
    pages = chroot.run(
        "man -w 1 barfs; man -w 7 barfs; man -w 8 barfs; "
        "man -w 5 barfs-layout; man -w 5 barfs-registers"
    ).split()
    names = ["barfs.1.gz", "barfs.7.gz", "barfs.8.gz", "barfs-layout.5.gz", "barfs-registers.5.gz"]
    assert [Path(page).name for page in pages] == names
    share = chroot.path / "usr/share"
    for place in (
        "bash-completion/completions/barfs",
        "zsh/vendor-completions/_barfs",
        "fish/vendor_completions.d/barfs.fish",
        "doc/barfs/README.Debian",
        "doc/barfs/changelog.gz",
        "doc/barfs/copyright",
        "doc/barfs/examples/70-barfs.rules",
    ):
        assert (share / place).is_file(), place
    assert (chroot.path / "lib/systemd/system/barfs@.service").is_file()
    use_the_demo(chroot)
    chroot.run("apt-get remove -q -y barfs; ! command -v barfs; ! test -e /usr/lib/barfs")
    (rules / "60-barfs-0000:01:00.0.rules").touch()  # of barfs bind --persist
    chroot.run("apt-get purge -q -y barfs")
    assert chroot.files() - before == set()
    assert not (chroot.path / "var/log/barfs.log").exists()


def test_the_package_has_nothing_of_the_user_who_built_it(deb: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "-x", deb, tmp_path], check=True)
    found = runpaths(tmp_path / "usr/lib/barfs")
    assert {name.partition(".")[0] for name in found} == {
        "_cffi_backend",
        "barfs/engine/_engine",
        "pyfuse3/__init__",
    }
    assert [name for name, paths in found.items() if paths] == []
    listed = subprocess.run(["dpkg-deb", "-c", deb], capture_output=True, text=True, check=True)
    kinds = {tuple(line.split()[:2]) for line in listed.stdout.splitlines()}
    modes = ("drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x")
    assert kinds - {("lrwxrwxrwx", "root/root")} == {(mode, "root/root") for mode in modes}


def use_the_demo(chroot: Chroot) -> None:
    require_fuse()
    read = chroot.run(
        "mkdir /tmp/mnt; barfs demo /tmp/mnt; "
        "dd if=/tmp/mnt/bus/ffff:00:00.0/bar0 bs=4 count=1 status=none; barfs umount /tmp/mnt"
    )
    assert read == "barf"
    mounted = chroot.run(
        "mount -t fuse.barfs demo /tmp/mnt -o ro,noauto; "
        "stat -c %a /tmp/mnt/bus/ffff:00:00.0/bar0; umount /tmp/mnt"
    )
    assert mounted == "400\n"


def test_lintian_finds_no_error(deb: Path) -> None:
    require_programs("deb", "lintian")
    command = ["lintian", "--allow-root", "--fail-on", "error,warning", str(deb)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout
