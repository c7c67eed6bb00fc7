# SPDX-License-Identifier: MIT
"""The Debian package in a chroot with nothing else: installed, used, removed without a trace."""

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.packages.conftest import MAPPER, ROOT, package, require_programs, runpaths
from tests.support import require, require_fuse

pytestmark = pytest.mark.deb

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "barfs"

INSIDE = """
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
exec chroot "$1" /bin/sh -euc "$2"
"""


def codename() -> str:
    """The name by which the archive knows this machine's release: unstable calls itself by the
    name of the release that it will be."""
    pairs = (line.partition("=") for line in Path("/etc/os-release").read_text().splitlines())
    own = {name: value.strip('"') for name, _, value in pairs}.get("VERSION_CODENAME", "")
    return own if own in repositories() else next(iter(repositories()), own)


def repositories() -> dict[str, str]:
    """Where this machine's packages come from, by the codename of what is there."""
    command = ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)"]
    targets = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pairs = [line.split() for line in targets.splitlines()]
    return {pair[0]: pair[1] for pair in reversed(pairs) if len(pair) == 2}


def dependencies(deb: Path) -> dict[str, str]:
    """The packages that it depends on, with their versions."""
    command = ["dpkg-deb", "-f", str(deb), "Depends"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # Of alternatives, the first.
    parts = (part.partition("|")[0].partition("(") for part in listed.split(","))
    return {name.strip().removesuffix(":any"): version.strip(" )\n") for name, _, version in parts}


@pytest.fixture(scope="session")
def deb(
    tmp_path_factory: pytest.TempPathFactory, user: dict[str, str], foreign_wheel: None
) -> Path:
    require_programs("deb", "dpkg-buildpackage", "dh_python3", "fakeroot", "scdoc")
    (path,) = package("deb", tmp_path_factory.mktemp("deb"), user)
    return path


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
        """Everything but what package managers and mount(8) keep for themselves, and /tmp."""
        kept = (
            "dev/",
            "proc/",
            "run/mount/",
            "tmp/",
            "var/cache/",
            "var/lib/dpkg/",
            "var/lib/apt/",
            "var/log/",
        )
        names = (str(path.relative_to(self.path)) for path in self.path.rglob("*"))
        return {name for name in names if not f"{name}/".startswith(kept)}


@pytest.fixture
def chroot(deb: Path, tmp_path: Path) -> Iterator[Chroot]:
    """Holds what the package depends on, so that installing it takes nothing from the network."""
    require_programs("deb", "debootstrap", "unshare")
    require("deb", os.geteuid() == 0, "a chroot needs root")
    included = sorted({"man-db", *dependencies(deb)})
    base = CACHE / f"chroot-{codename()}-{'-'.join(included)}.tar"
    if not base.exists():
        made = tmp_path / "made"
        make = ["debootstrap", "--variant=minbase", f"--include={','.join(included)}"]
        place = [codename(), str(made), *filter(None, [repositories().get(codename())])]
        result = subprocess.run([*make, *place], capture_output=True, text=True, timeout=900)
        assert result.returncode == 0, result.stdout[-600:] + result.stderr
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
    use_descriptions(chroot)
    chroot.run("apt-get remove -q -y barfs; ! command -v barfs; ! test -e /usr/lib/barfs")
    (rules / "60-barfs-0000:01:00.0.rules").touch()  # of barfs bind --persist
    chroot.run("apt-get purge -q -y barfs")
    assert chroot.files() - before == set()
    assert not (chroot.path / "var/log/barfs.log").exists()


def test_the_package_has_nothing_of_the_user_who_built_it(deb: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "-x", deb, tmp_path], check=True)
    found = runpaths(tmp_path / "usr/lib/barfs")
    assert [name for name, paths in found.items() if paths] == []
    listed = subprocess.run(["dpkg-deb", "-c", deb], capture_output=True, text=True, check=True)
    kinds = {tuple(line.split()[:2]) for line in listed.stdout.splitlines()}
    modes = ("drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x")
    assert kinds - {("lrwxrwxrwx", "root/root")} == {(mode, "root/root") for mode in modes}


def test_only_debian_12_needs_copies_of_python_packages(deb: Path, tmp_path: Path) -> None:
    """The least versions are those of pyproject.toml."""
    subprocess.run(["dpkg-deb", "-x", deb, tmp_path], check=True)
    private = tmp_path / "usr/lib/barfs"
    brought = {path.name for path in private.iterdir() if path.suffix != ".dist-info"}
    extensions = {name.partition(".")[0] for name in runpaths(private)}
    theirs = {
        name: version for name, version in dependencies(deb).items() if name.startswith("python3-")
    }
    compilers = {"antlr4", "colorama", "markdown", "peakrdl_ipxact", "systemrdl"}
    always = {
        "barfs/engine/_engine",
        "barfs/preload/barfs_map",
        "systemrdl/parser/sa_systemrdl_cpp_parser",
    }
    if codename() == "bookworm":
        assert {"barfs", "pyfuse3", "trio", *compilers} < brought
        assert extensions == {"_cffi_backend", "pyfuse3/__init__", *always}
        assert theirs == {}
    else:
        assert brought == {"barfs", "typing_extensions.py", *compilers}
        assert extensions == always
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        needed = dict(text.split(">=") for text in project["dependencies"])
        needed["cffi-backend"] = needed.pop("cffi")
        assert theirs == {f"python3-{name}": f">= {least}" for name, least in needed.items()}


def use_the_demo(chroot: Chroot) -> None:
    require_fuse()
    read = chroot.run(
        "mkdir /tmp/mnt; barfs demo /tmp/mnt; "
        "dd if=/tmp/mnt/bus/ffff:00:00.0/bar0 bs=4 count=1 status=none; barfs umount /tmp/mnt"
    )
    assert read == "barf"
    mapped = chroot.run(
        "barfs mount -o map demo /tmp/mnt; "
        f"barfs run python3 -c '{MAPPER}' /tmp/mnt/bus/ffff:00:00.0/bar0; barfs umount /tmp/mnt"
    )
    assert mapped == "b'barf'\n"
    mounted = chroot.run(
        "mount -t fuse.barfs demo /tmp/mnt -o ro,noauto; "
        "stat -c %a /tmp/mnt/bus/ffff:00:00.0/bar0; umount /tmp/mnt"
    )
    assert mounted == "400\n"


COMPONENT = """\
<ipxact:component xmlns:ipxact="http://www.accellera.org/XMLSchema/IPXACT/1685-2014">
  <ipxact:name>card</ipxact:name>
  <ipxact:memoryMaps><ipxact:memoryMap>
    <ipxact:name>card</ipxact:name>
    <ipxact:addressBlock>
      <ipxact:name>block</ipxact:name><ipxact:baseAddress>0</ipxact:baseAddress>
      <ipxact:range>8</ipxact:range><ipxact:width>32</ipxact:width>
      <ipxact:register>
        <ipxact:name>identity</ipxact:name><ipxact:addressOffset>0</ipxact:addressOffset>
        <ipxact:size>32</ipxact:size><ipxact:access>read-only</ipxact:access>
      </ipxact:register>
    </ipxact:addressBlock>
  </ipxact:memoryMap></ipxact:memoryMaps>
</ipxact:component>
"""
DESCRIPTIONS = {
    "card.rdl": "addrmap card { reg { field { sw = r; } f[32]; } identity; };\n",
    "card.xml": COMPONENT,
}


def use_descriptions(chroot: Chroot) -> None:
    """The package brings what compiles them, and says where one is wrong."""
    require_fuse()
    for name, text in DESCRIPTIONS.items():
        (chroot.path / "tmp" / name).write_text(text)
        (chroot.path / "tmp" / f"bad-{name}").write_text(text.replace("32", "x"))
        shown = chroot.run(
            f"export XDG_CACHE_HOME=/tmp/cache; cd /tmp; barfs mount -o registers={name} demo mnt; "
            "find mnt/bus/*/registers/bar0 -name identity -exec cat {} +; barfs umount mnt; "
            f"barfs mount -o registers=bad-{name} demo mnt 2>&1 || echo $?; ls mnt"
        )
        lines = shown.splitlines()
        assert lines[0] == f"0x{int.from_bytes(b'barf', 'little'):08x}"
        assert [line for line in lines[1:-1] if not re.search(rf"bad-{name}:\d+: ", line)] == []
        assert (len(lines) > 2, lines[-1]) == (True, "2")


def test_lintian_finds_no_error(deb: Path) -> None:
    require_programs("deb", "lintian")
    command = ["lintian", "--allow-root", "--fail-on", "error,warning", str(deb)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout
