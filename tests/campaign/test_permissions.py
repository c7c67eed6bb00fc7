# SPDX-License-Identifier: MIT
"""Permissions in a mount: all combinations of users, file modes, mount options and operations.

`Case.expected` derives from POSIX's rules what may succeed; everything else must fail.
"""

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from barfs.fuse.fusermount import unmount
from tests.support import barfs, is_mounted, mounted, require, require_fuse, shown_mount
from tests.support.namespace import NOBODY, barfs_as_nobody

from .conftest import Campaign

READ, WRITE, SEARCH = 4, 2, 1
OWNER = NOBODY
GROUP = NOBODY
USERS = {
    "root": (0, 0),
    "owner": (OWNER, 4242),
    "member": (4343, GROUP),
    "stranger": (4444, 4444),
}
FILES = {"bar0": 0o666, "rom": 0o444, "vendor": 0o444}
"""The permissions of a file before any umask."""

# One operation after the other in a device's directory, as another user: 0 or the errno of each.
OPERATIONS = """
import json, mmap, os, sys
folder, uid, gid, *names = sys.argv[1:]
os.setgroups([])
os.setresgid(int(gid), int(gid), int(gid))
os.setresuid(int(uid), int(uid), int(uid))

def opened(flags, use=lambda fd: None):
    def attempt(path):
        fd = os.open(path, flags)
        try:
            use(fd)
        finally:
            os.close(fd)
    return attempt

def shared(fd):
    mmap.mmap(fd, os.fstat(fd).st_size, mmap.MAP_SHARED, mmap.PROT_READ).close()

new = folder + "/new"
operations = {
    "stat": os.stat,
    "open r": opened(os.O_RDONLY),
    "open w": opened(os.O_WRONLY),
    "open rw": opened(os.O_RDWR),
    "open and truncate": opened(os.O_WRONLY | os.O_TRUNC),
    "read": opened(os.O_RDONLY, lambda fd: os.pread(fd, 4, 16)),
    "write": opened(os.O_WRONLY, lambda fd: os.pwrite(fd, bytes(4), 0x4000)),
    "truncate": lambda path: os.truncate(path, 0),
    "ls": lambda path: os.listdir(folder),
    "create": lambda path: os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666),
    "mknod": lambda path: os.mknod(new),
    "mkdir": lambda path: os.mkdir(new),
    "symlink": lambda path: os.symlink("bar0", new),
    "link": lambda path: os.link(path, new),
    "unlink": os.unlink,
    "rename": lambda path: os.rename(path, new),
    "rmdir": lambda path: os.rmdir(folder),
    "chmod": lambda path: os.chmod(path, 0o777),
    "chmod of the directory": lambda path: os.chmod(folder, 0o777),
    "chown": lambda path: os.chown(path, int(uid), int(gid)),
    "setxattr": lambda path: os.setxattr(path, "user.x", b"1"),
    "getxattr": lambda path: os.getxattr(path, "user.x"),
    "removexattr": lambda path: os.removexattr(path, "user.x"),
    "mmap": opened(os.O_RDONLY, shared),
}
found = {}
for name in names:
    for word, operation in operations.items():
        try:
            operation(folder + "/" + name)
            found[name + ": " + word] = 0
        except OSError as error:
            found[name + ": " + word] = error.errno
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Case:
    """A mount by root; `owned` says that the files belong to OWNER and GROUP."""

    allow_other: bool
    read_only: bool
    owned: bool
    umask: int | None

    @property
    def options(self) -> str:
        words = [
            "allow_other" * self.allow_other,
            "ro" * self.read_only,
            f"uid={OWNER},gid={GROUP}" * self.owned,
            "" if self.umask is None else f"umask={self.umask:03o}",
        ]
        return ",".join(filter(None, words))

    def may(self, user: str, mode: int, want: int) -> bool:
        """POSIX's rule: the first class that fits decides. Root reads and writes what it likes."""
        uid, gid = USERS[user]
        if uid == 0:
            return True
        owner, group = (OWNER, GROUP) if self.owned else (0, 0)
        shift = 6 if uid == owner else 3 if gid == group else 0
        return mode >> shift & want == want

    def expected(self, user: str, name: str) -> set[str]:
        """The operations that succeed on a file."""
        folders = 0o555 & ~(self.umask or 0)
        enters = self.allow_other or user == "root"
        if not enters or not self.may(user, folders, SEARCH):
            return set()
        found = {"stat"}
        if self.may(user, folders, READ):
            found.add("ls")
        mode = FILES[name] & (0o444 if self.read_only else 0o777)
        if name == "vendor":
            mode &= ~(self.umask or 0)
        else:
            mode &= ~(0o077 if self.umask is None else self.umask)
        reads = self.may(user, mode, READ)
        # Nobody, root included, writes to what is read-only by nature.
        writes = self.may(user, mode, WRITE) and name == "bar0" and not self.read_only
        if reads:
            found |= {"open r", "read"} | ({"mmap"} if name == "vendor" else set())
        if writes:
            found |= {"open w", "write", "truncate", "open and truncate"}
        if reads and writes:
            found.add("open rw")
        return found


CASES = [
    Case(*values)
    for values in itertools.product(
        (True, False), (False, True), (False, True), (None, 0o000, 0o022, 0o027, 0o077, 0o477)
    )
]
SHORT = (
    Case(True, False, True, 0o027),
    Case(True, False, False, 0o000),
    Case(True, True, True, 0o022),
    Case(True, False, True, None),
    Case(False, False, True, 0o000),
)


def attempts(folder: Path, user: str) -> dict[str, int]:
    """The errno of each operation on each file, by `file: operation`; 0 where it succeeded."""
    words = [str(folder), *map(str, USERS[user]), *FILES]
    result = subprocess.run(
        [sys.executable, "-c", OPERATIONS, *words], capture_output=True, text=True, check=True
    )
    found: dict[str, int] = json.loads(result.stdout)
    return found


@pytest.fixture
def _root() -> None:
    require_fuse()
    require("fuse", os.getuid() == 0, "only root can become another user")


@pytest.mark.usefixtures("_root")
def test_users_modes_options_and_operations(campaign: Campaign, public: Path) -> None:
    cases = CASES if campaign.full else list(SHORT)
    random.Random(21).shuffle(cases)
    tried = allowed = 0
    wrong: list[str] = []
    for case in cases:
        with mounted(public, "demo", options=case.options) as mount:
            folder = mount.device()
            for user in USERS:
                expected = {
                    f"{name}: {word}" for name in FILES for word in case.expected(user, name)
                }
                found = attempts(folder, user)
                assert expected <= set(found)
                tried += len(found)
                allowed += len(expected)
                wrong += [
                    f"{user}, {case.options or 'no options'}: {attempt} is {found[attempt]}"
                    for attempt in found
                    if (found[attempt] == 0) != (attempt in expected)
                ]
            assert (folder / "bar0").stat().st_size == 0x10000
    assert not wrong, "\n".join(wrong)
    campaign.report(
        "permissions",
        f"{tried} attempts in {len(cases)} mounts: {allowed} succeeded as they should, "
        f"{tried - allowed} failed as they should",
    )


PROTECTION = {"default_permissions", "nosuid", "nodev", "noexec"}
GIVEN = ("", "rw", "dev,suid,exec", "ro,suid", "allow_other,dev,suid,exec", "user,exec", "defaults")


@pytest.mark.usefixtures("_root")
@pytest.mark.parametrize("options", GIVEN)
def test_what_protects_others_cannot_be_taken_away(tmp_path: Path, options: str) -> None:
    with mounted(tmp_path, "demo", options=options) as mount:
        found = shown_mount(mount.path)[1]
        assert found >= PROTECTION
        assert not {"suid", "dev", "exec"} & found
        assert ("allow_other" in found) == ("allow_other" in options)
        assert ("ro" in found) == ("ro," in options)


@pytest.fixture
def folders(public: Path) -> Iterator[Path]:
    """Places to mount on, of several owners and modes."""
    for name, owner, mode in (
        ("mine", NOBODY, 0o755),
        ("mine, closed", NOBODY, 0o500),
        ("root's", 0, 0o755),
        ("root's, for all", 0, 0o777),
        ("root's, sticky", 0, 0o1777),
        ("root's, of my group", 0, 0o775),
        ("another's", 4343, 0o755),
        ("another's, for all", 4343, 0o777),
        ("another's, sticky", 4343, 0o1777),
    ):
        path = public / name
        path.mkdir()
        os.chown(path, owner, NOBODY)
        path.chmod(mode)
    for name in ("root's, for all", "another's, for all"):
        (public / f"a link of mine to {name}").symlink_to(public / name)
        os.lchown(public / f"a link of mine to {name}", NOBODY, NOBODY)
    yield public
    assert os.fsencode(public) not in Path("/proc/self/mountinfo").read_bytes()


@pytest.mark.usefixtures("_other_user")
def test_a_mount_point_belongs_to_who_mounts(campaign: Campaign, folders: Path) -> None:
    """Neither a link nor the right to write makes another user's directory the user's own."""
    refused = 0
    for path in sorted(folders.iterdir()):
        if path.name.startswith("mine"):
            continue
        result = barfs_as_nobody("mount", "demo", path)
        assert (result.returncode, result.stdout) == (1, "")
        message = f"barfs: {path} belongs to another user; choose a directory of your own\n"
        assert result.stderr == message
        refused += 1
    for name in ("mine", "mine, closed"):
        for options in ("", "dev,suid,exec", "ro"):
            path = folders / name
            words = ["-o", options] if options else []
            result = barfs_as_nobody("mount", *words, "demo", path)
            if name == "mine, closed":
                # fusermount3 wants to be able to write there.
                assert result.returncode == 1
                assert result.stderr.count("\n") == 1
                assert result.stderr.startswith(f"barfs: cannot mount on {path}: ")
                continue
            assert (result.returncode, result.stderr) == (0, "")
            try:
                assert shown_mount(path)[1] >= PROTECTION | {f"user_id={NOBODY}"}
            finally:
                assert barfs_as_nobody("umount", path).returncode == 0
    campaign.report("mount points of others", f"{refused} refused to a user, none mounted")


@pytest.mark.usefixtures("_root")
def test_root_mounts_anywhere(folders: Path) -> None:
    for name in ("another's", "root's, sticky", "mine, closed"):
        path = folders / name
        assert barfs("mount", "demo", path).returncode == 0
        assert is_mounted(path)
        unmount(path)
