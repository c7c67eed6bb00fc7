# SPDX-License-Identifier: MIT
"""AppArmor's profile of fusermount3, which limits where any user may mount (Ubuntu has one).

Rule 1: reading only, without any privilege where that is enough.
Rule 2: a file of profiles is read for what it says, not as the parser would: what a rule really
        allows, the kernel knows.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from barfs.host.sysfs import Machine, read_bytes, read_text

HELPER = "fusermount3"

_LABEL = re.compile(r"(.+) \((?:enforce|kill)\)")
_HEAD = re.compile(
    r"^\s*(?:profile\s+(\S+)\s+)?(/\S*/fusermount3\S*|@\S+)\s[^#\n]*\{", re.MULTILINE
)
_LENIENT = re.compile(r"flags\s*=\s*\([^)]*\b(?:complain|unconfined)\b")
_TARGET = re.compile(r"""^\s*mount\b[^#\n]*->\s*("[^"\n]*"|\S+?),?\s*(?:#.*)?$""", re.MULTILINE)
_LOCAL = re.compile(r"<local/([^>/]+)>")
_FIELD = re.compile(r'(\w+)=("[^"]*"|\S+)')
_SPECIAL = re.compile(r'([\\*?\[\]{}^"])')
_RECORD = 8192


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile, and its files: the distribution's, and the one for the machine's own rules."""

    name: str
    file: Path
    local: Path

    def targets(self) -> list[str]:
        """Where its rules allow mounts, in AppArmor's patterns."""
        text = "\n".join(map(read_text, (self.file, self.local)))
        return list(dict.fromkeys(_TARGET.findall(text)))

    def remedy(self, mountpoint: Path | str) -> str:
        """The rules that allow a mount of barfs on a directory, and where they go."""
        place = _pattern(f"{mountpoint}".rstrip("/") + "/")
        return (
            f"add 'mount fstype=fuse.barfs -> {place},' and 'umount {place},' to {self.local}, "
            f"then run as root: apparmor_parser -r {self.file}"
        )


def confining(pid: int, proc: Path) -> str | None:
    """The name of the profile that confines a process, which may have ended but not been waited
    for; None if none does, or the kernel does not tell."""
    for name in ("attr/apparmor/current", "attr/current"):
        if match := _LABEL.fullmatch(read_text(proc / str(pid) / name)):
            return match[1]
    return None


def enabled(machine: Machine) -> bool:
    """Whether the kernel uses AppArmor."""
    return read_text(machine.sysfs / "module/apparmor/parameters/enabled") == "Y"


def find_profile(machine: Machine, name: str | None = None) -> Profile | None:
    """The profile of fusermount3 that is in force, or the one of that name."""
    folder = machine.etc / "apparmor.d"
    for file in _files(folder):
        text = read_text(file)
        heads = [head for head in _HEAD.finditer(text) if HELPER in head[0]]
        head = next((head for head in heads if name in (None, head[1], head[2])), None)
        if head is None:
            continue
        if name is None and (_is_off(folder, file) or _LENIENT.search(head[0])):
            continue
        local = _LOCAL.search(text)
        return Profile(head[1] or head[2], file, folder / "local" / (local or (0, file.name))[1])
    return None


def _is_off(folder: Path, file: Path) -> bool:
    return any(os.path.lexists(folder / how / file.name) for how in ("disable", "force-complain"))


def _files(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [file for file in sorted(folder.iterdir()) if file.is_file()]
    return []


def why_refused(machine: Machine, profile: str, mountpoint: Path) -> str:
    """What to do about a mount that the helper, under this profile, was not allowed to make."""
    found = find_profile(machine, profile)
    if found is None:
        return (
            f"the AppArmor profile {profile} allows no mount there; run barfs under another one "
            "(a container: --security-opt apparmor=PROFILE)"
        )
    return f"the AppArmor profile {profile} allows no mount there: {found.remedy(mountpoint)}"


def refused_mounts(machine: Machine) -> list[tuple[str, str]]:
    """(profile, mount point) of each mount of barfs that the kernel's log says was refused.

    Empty if this user may not read the log, or an audit daemon takes its lines.
    """
    found = []
    for record in _kernel_log(machine.dev / "kmsg"):
        if 'apparmor="DENIED"' not in record:
            continue
        fields = {name: _decoded(value) for name, value in _FIELD.findall(record)}
        if fields.get("operation") == "mount" and fields.get("fstype") == "fuse.barfs":
            found.append((fields.get("profile", ""), fields.get("name", "")))
    return list(dict.fromkeys(found))


def _kernel_log(path: Path) -> Iterator[str]:
    """The records that are there now (Documentation/ABI/testing/dev-kmsg)."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            while True:
                with contextlib.suppress(BrokenPipeError):  # it was overwritten
                    record = os.read(fd, _RECORD)
                    if not record:
                        return
                    yield from os.fsdecode(record).splitlines()
        finally:
            os.close(fd)


def _decoded(value: str) -> str:
    """A name is in quotes, or in hexadecimal if it has odd bytes (kernel/audit.c)."""
    if value.startswith('"'):
        return value[1:-1]
    with contextlib.suppress(ValueError):
        return os.fsdecode(bytes.fromhex(value))
    return value


def _pattern(path: str) -> str:
    r"""A path as AppArmor's rules write it.

    >>> _pattern("/mnt/bar/"), _pattern("/mnt/a b[1]/")
    ('/mnt/bar/', '"/mnt/a b\\[1\\]/"')
    """
    escaped = _SPECIAL.sub(r"\\\1", path)
    return f'"{escaped}"' if re.search(r"[\s,#]", path) else escaped


def selinux_enabled(machine: Machine) -> bool:
    """Whether the kernel uses SELinux: it then knows its file system (selinuxfs.c)."""
    return b"selinuxfs" in read_bytes(machine.proc / "filesystems").split()
