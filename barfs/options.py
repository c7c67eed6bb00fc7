# SPDX-License-Identifier: MIT
"""The text of `-o`: from mount(8)'s comma-separated words to typed options.

Rule 1: an unknown or contradicting word is an error that names the known ones.
Rule 2: words that mount(8) and fstab hand to every file system are accepted and mean nothing here.
"""

import grp
import os
import pwd
from collections.abc import Callable, Iterable
from typing import Any

from barfs.device import Options
from barfs.errors import UsageError
from barfs.fusermount import MountOptions
from barfs.policy import AccessPolicy

_FROM_MOUNT = frozenset(
    """defaults rw auto noauto nofail _netdev user users nouser owner group dev nodev suid nosuid
    exec noexec relatime noatime""".split()  # noqa: SIM905
)


def _user(text: str) -> int:
    return int(text) if text.isdecimal() else pwd.getpwnam(text).pw_uid


def _group(text: str) -> int:
    return int(text) if text.isdecimal() else grp.getgrnam(text).gr_gid


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def _umask(text: str) -> int:
    value = int(text, 8)
    if not 0 <= value <= 0o777:
        raise ValueError
    return value


_FLAGS = {"ro": "read_only", "allow_other": "allow_other", "guard": "guard"}
_VALUES: dict[str, tuple[Callable[[str], Any], str]] = {
    "width": (int, "1, 2, 4 or 8"),
    "mapping": (str, "separate, contiguous or off"),
    "msix": (str, "map or carve"),
    "vfio": (str, "auto, cdev, group or noiommu"),
    "timeout": (_seconds, "a positive number of seconds"),
    "policy": (AccessPolicy.load, "a file of rules"),
    "trace": (os.path.abspath, "a file for a line for each access"),
    "uid": (_user, "a user's name or number"),
    "gid": (_group, "a group's name or number"),
    "umask": (_umask, "an octal number like 027"),
}
_OF_DEVICES = ("width", "mapping", "msix", "timeout", "vfio", "guard", "policy", "trace")
_OF_MOUNTS = ("allow_other", "uid", "gid", "umask")


def parse_options(texts: Iterable[str]) -> tuple[Options, MountOptions]:
    """The options of the devices and of the mount from all `-o` arguments together.

    Raises UsageError for an unknown word, a value out of range, or two that contradict each other.
    """
    found: dict[str, Any] = {}
    words = [word for text in texts for word in text.split(",") if word]
    if "ro" in words and "rw" in words:
        raise UsageError("options ro and rw contradict each other")
    for word in words:
        name, value = _read_word(word)
        if name is None:
            continue
        if found.setdefault(name, value) != value:
            raise UsageError(f"option {name} is given twice, as {found[name]} and {value}")
    ours = {name: found[name] for name in _OF_DEVICES if name in found}
    theirs = {name: found[name] for name in _OF_MOUNTS if name in found}
    read_only = "read_only" in found
    return Options(**ours, read_only=read_only), MountOptions(**theirs, read_only=read_only)


def _read_word(word: str) -> tuple[str | None, Any]:
    """One option as (field, value); (None, None) for a word that means nothing here."""
    name, equals, text = word.partition("=")
    if name.startswith("x-") or word in _FROM_MOUNT:
        return None, None
    if name in _FLAGS and not equals:
        return _FLAGS[name], True
    if name not in _VALUES or not equals:
        known = ", ".join([*_FLAGS, *(f"{value}=" for value in _VALUES)])
        raise UsageError(f"unknown option {word!r}; the options are {known}")
    read, expected = _VALUES[name]
    try:
        return name, read(text)
    except (ValueError, KeyError, OverflowError):
        raise UsageError(f"{word}: {name} is {expected}") from None
