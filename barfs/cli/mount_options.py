# SPDX-License-Identifier: MIT
"""The text of `-o`: from mount(8)'s comma-separated words to typed options.

Rule 1: an unknown or contradicting word is an error that names the known ones.
Rule 2: words that mount(8) and fstab hand to every file system, and those that the kernel shows of
        a mount, are accepted and mean nothing here.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from barfs.cli.accounts import group_id, user_id
from barfs.device import LEAST_TRACE, Options
from barfs.errors import UsageError
from barfs.fuse.fusermount import MountOptions
from barfs.policy import AccessPolicy
from barfs.ranges import parse_number

# util-linux: libmount/src/optmap.c.
_FROM_MOUNT = frozenset(
    """defaults rw auto noauto nofail _netdev user users nouser nousers owner noowner group nogroup
    dev nodev suid nosuid exec noexec symfollow nosymfollow atime noatime diratime nodiratime
    relatime norelatime strictatime nostrictatime lazytime nolazytime sync async dirsync mand nomand
    iversion noiversion silent loud""".split()  # noqa: SIM905
)
_REACHES = ("vfs", "fs", "recursive")
"""What mount(8) lets stand behind a flag, as in `ro=recursive`."""

_WITH_VALUE_FROM_MOUNT = frozenset({"user", "comment", "helper", "uhelper"})

# What mountinfo shows of a mount (fs/fuse/inode.c: fuse_show_options), and mount(8) hands back.
_FROM_KERNEL = frozenset({"default_permissions", "seclabel"})
_WITH_VALUE_FROM_KERNEL = frozenset(
    {"user_id", "group_id", "fd", "rootmode", "max_read", "blksize"}
)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def _trace_limit(text: str) -> int:
    try:
        value = parse_number(text)
    except UsageError:
        raise ValueError from None
    if not LEAST_TRACE <= value < 1 << 63:
        raise ValueError
    return value


def _umask(text: str) -> int:
    value = int(text, 8)
    if not 0 <= value <= 0o777:
        raise ValueError
    return value


@dataclass(frozen=True, slots=True)
class Option:
    """A word of `-o`, `name` or `name=VALUE`: what reads it, and what help and manual say of it.

    `value` is what may stand there, "" for a word without one; `field` is where it goes in
    `Options` or `MountOptions`, `expected` how an error describes what should have stood there.
    """

    name: str
    value: str
    text: str
    places: tuple[type, ...] = (Options,)
    read: Callable[[str], Any] = str
    expected: str = ""
    field: str = ""

    @property
    def target(self) -> str:
        return self.field or self.name

    @property
    def usage(self) -> str:
        return f"{self.name}={self.value}" if self.value else self.name


_MOUNT = (MountOptions,)

OPTIONS = (
    Option("ro", "", "nothing can be written", (Options, MountOptions), field="read_only"),
    Option(
        "width",
        "1|2|4|8",
        "how longer or misaligned requests are cut (default 4)",
        read=int,
        expected="1, 2, 4 or 8",
    ),
    Option(
        "mapping",
        "separate|contiguous|off",
        "map each window, or the windows in the BAR's shape, or use pread only (default separate)",
        expected="separate, contiguous or off",
    ),
    Option(
        "msix",
        "map|carve",
        "carve takes the pages of the MSI-X table out of the windows (default map)",
        expected="map or carve",
    ),
    Option(
        "vfio",
        "auto|cdev|group|noiommu",
        "the way into kernel VFIO (default auto: cdev, or else the group)",
        expected="auto, cdev, group or noiommu",
    ),
    Option("guard", "", "refuse a request that is not one access of the device"),
    Option(
        "policy",
        "FILE",
        "ranges that may not be written, or not be touched (TOML)",
        read=AccessPolicy.load,
        expected="a file of rules",
    ),
    Option(
        "trace",
        "FILE",
        "a line for each access, which barfs trace follows",
        read=os.path.abspath,
        expected="a file",
    ),
    Option(
        "trace-limit",
        "SIZE",
        "how large the trace gets before it is moved to FILE.1, replacing the one before, and "
        "begun anew; k, M and G may follow (default 256M)",
        read=_trace_limit,
        expected="a size of 4k or more, like 100M",
        field="trace_limit",
    ),
    Option(
        "timeout",
        "SECONDS",
        "how long the device may take for one access (default 5)",
        read=_seconds,
        expected="a positive number of seconds",
    ),
    Option(
        "allow_other",
        "",
        "let other users in (needs user_allow_other in /etc/fuse.conf)",
        _MOUNT,
    ),
    Option(
        "uid",
        "USER",
        "who owns the files (default: you)",
        _MOUNT,
        user_id,
        "a user's name or number",
    ),
    Option(
        "gid",
        "GROUP",
        "whose group the files have (default: yours)",
        _MOUNT,
        group_id,
        "a group's name or number",
    ),
    Option(
        "umask",
        "OCTAL",
        "permissions that no file has (default: region files are 0600)",
        _MOUNT,
        _umask,
        "an octal number like 027",
    ),
)
_BY_NAME = {option.name: option for option in OPTIONS}


def parse_options(texts: Iterable[str]) -> tuple[Options, MountOptions]:
    """The options of the devices and of the mount from all `-o` arguments together.

    Raises UsageError for an unknown word, a value out of range, or two that contradict each other.
    """
    found: dict[str, Any] = {}
    words = [_without_reach(word) for text in texts for word in text.split(",") if word]
    # First: mount(8) puts it among the words of fstab and of the mount, whatever those are.
    if "remount" in words:
        raise UsageError(
            "a mount of barfs cannot be remounted: it keeps its options; umount it, and mount it "
            "with others"
        )
    if "ro" in words and "rw" in words:
        raise UsageError("options ro and rw contradict each other")
    for word in words:
        name, value = _read_word(word)
        if name is None:
            continue
        if found.setdefault(name, value) != value:
            raise UsageError(f"option {name} is given twice, as {found[name]} and {value}")
    ours, theirs = (
        {
            option.target: found[option.name]
            for option in OPTIONS
            if place in option.places and option.name in found
        }
        for place in (Options, MountOptions)
    )
    return Options(**ours), MountOptions(**theirs)


def _without_reach(word: str) -> str:
    name, _equals, reach = word.partition("=")
    return name if reach in _REACHES and (name == "ro" or name in _FROM_MOUNT) else word


def _means_nothing(name: str, has_value: bool) -> bool:
    if name.startswith(("x-", "X-")):
        return True
    if has_value:
        return name in _WITH_VALUE_FROM_MOUNT | _WITH_VALUE_FROM_KERNEL
    return name in _FROM_MOUNT | _FROM_KERNEL


def _read_word(word: str) -> tuple[str | None, Any]:
    """One option as (name, value); (None, None) for a word that means nothing here."""
    name, equals, text = word.partition("=")
    if _means_nothing(name, bool(equals)):
        return None, None
    option = _BY_NAME.get(name)
    if option is None or bool(equals) != bool(option.value):
        known = ", ".join(f"{option.name}=" if option.value else option.name for option in OPTIONS)
        raise UsageError(f"unknown option {word!r}; the options are {known}")
    if not option.value:
        return name, True
    try:
        return name, option.read(text)
    except (ValueError, KeyError, OverflowError):
        raise UsageError(f"{word}: {name} is {option.expected}") from None
