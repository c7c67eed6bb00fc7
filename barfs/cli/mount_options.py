# SPDX-License-Identifier: MIT
"""Mount options: parse the comma-separated words of `-o` into typed options.

Rule 1: an unknown word is an error that names the known ones; words that contradict each other are
        an error.
Rule 2: a value in double quotes may have commas, as for mount(8).
Rule 3: words that mount(8) and fstab pass to every file system, and those that the kernel shows for
        a mount, are accepted and ignored.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from barfs.cli.accounts import NUMBER, group_id, user_id
from barfs.device import LEAST_TRACE, TIMEOUT, Options, is_timeout
from barfs.errors import UsageError
from barfs.fuse.fusermount import MountOptions
from barfs.policy import AccessPolicy
from barfs.ranges import parse_number
from barfs.registers.find import Choice, parse_choice
from barfs.text import quoted
from barfs.widths import Widths, widths_of

# util-linux: libmount/src/optmap.c.
_FROM_MOUNT = frozenset(
    """defaults rw auto noauto nofail _netdev user users nouser nousers owner noowner group nogroup
    dev nodev suid nosuid exec noexec symfollow nosymfollow atime noatime diratime nodiratime
    relatime norelatime strictatime nostrictatime lazytime nolazytime sync async dirsync mand nomand
    iversion noiversion silent loud""".split()  # noqa: SIM905
)
_REACHES = ("vfs", "fs", "recursive")
"""The values that mount(8) allows for a flag, as in `ro=recursive`."""

_WITH_VALUE_FROM_MOUNT = frozenset({"user", "comment", "helper", "uhelper"})

# Shown in mountinfo (fs/fuse/inode.c: fuse_show_options), and passed back by mount(8).
_FROM_KERNEL = frozenset({"default_permissions", "seclabel"})
_WITH_VALUE_FROM_KERNEL = frozenset(
    {"user_id", "group_id", "fd", "rootmode", "max_read", "blksize"}
)


_WORD = re.compile(r'[^,"]*="[^"]*"(?=,|\Z)|[^,]+')
_QUOTED = re.compile(r'="([^"]*)"\Z')

# user:role:type and, with MLS, a range, whose categories may be separated by commas.
_CONTEXT = re.compile(r'[^\s,:"\\]+(:[^\s,:"\\]+){2}(:[^\s"\\]+)?')


def _seconds(text: str) -> float:
    value = float(text)
    if not is_timeout(value):
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


def _widths(text: str) -> Widths:
    return widths_of(map(int, text.split(":")))


def _registers(texts: Sequence[str]) -> Choice:
    choice = parse_choice(texts)
    # The mount runs in another directory.
    named = (replace(each, path=Path(os.path.abspath(each.path))) for each in choice.named)
    return replace(choice, named=tuple(named))


def _context(text: str) -> str:
    if not _CONTEXT.fullmatch(text):
        raise ValueError
    return text


def _umask(text: str) -> int:
    value = int(text, 8)
    if not 0 <= value <= 0o777:
        raise ValueError
    return value


@dataclass(frozen=True, slots=True)
class Option:
    """A mount option, `name` or `name=VALUE`, with its parser and its text for help and manual.

    `value` shows the values, "" for an option without one. `field` is its field in `Options` or
    `MountOptions` if that has another name. `expected` completes the error "NAME must be". The
    values of a `repeated` one are read together.
    """

    name: str
    value: str
    text: str
    places: tuple[type, ...] = (Options,)
    read: Callable[[Any], Any] = str
    expected: str = ""
    field: str = ""
    repeated: bool = False

    @property
    def target(self) -> str:
        return self.field or self.name

    @property
    def usage(self) -> str:
        return f"{self.name}={self.value}" if self.value else self.name


_MOUNT = (MountOptions,)


def _security_context(name: str, whose: str) -> Option:
    return Option(
        name,
        "CONTEXT",
        f"SELinux context {whose}; in double quotes if it has commas",
        _MOUNT,
        _context,
        "an SELinux context like system_u:object_r:usr_t:s0",
    )


OPTIONS = (
    Option("ro", "", "allow no writes", (Options, MountOptions), field="read_only"),
    Option(
        "width",
        "1|2|4|8",
        "access width that longer or misaligned requests are split into (default 4)",
        read=int,
        expected="1, 2, 4 or 8",
    ),
    Option(
        "mapping",
        "separate|contiguous|off",
        "map each window alone, or all in the BAR's shape, or use only pread (default separate)",
        expected="separate, contiguous or off",
    ),
    Option(
        "msix",
        "map|carve",
        "carve excludes the pages of the MSI-X table from the windows (default map)",
        expected="map or carve",
    ),
    Option(
        "vfio",
        "auto|cdev|group|noiommu",
        "the VFIO interface to open devices with (default auto: cdev, or else group)",
        expected="auto, cdev, group or noiommu",
    ),
    Option(
        "widths",
        "WIDTHS",
        "the only widths of accesses, like 4 or 4:8, in all regions but config: the device never "
        "sees another, and what cannot be made of these is refused",
        read=_widths,
        expected="some of 1, 2, 4 and 8, like 4 or 4:8",
    ),
    Option("guard", "", "refuse requests that are not exactly one access to the device"),
    Option(
        "policy",
        "FILE",
        "TOML file of ranges that must not be written, or not be accessed at all, or only with "
        "some widths",
        read=AccessPolicy.load,
        expected="a file of rules",
    ),
    Option(
        "trace",
        "FILE",
        "write a line for each access to FILE, for barfs trace",
        read=os.path.abspath,
        expected="a file",
    ),
    Option(
        "trace-limit",
        "SIZE",
        "size, also with k, M or G, at which the trace is moved to FILE.1, replacing the previous "
        "one, and started again (default 256M)",
        read=_trace_limit,
        expected="a size of 4k or more, like 100M",
        field="trace_limit",
    ),
    Option(
        "registers",
        "[REGION[+OFFSET]=]FILE|off",
        "description of a region's registers (default bar0), in SystemRDL, IP-XACT, SVD or LiteX's "
        "JSON; more than once; off: no registers/, not even those that barfs knows",
        read=_registers,
        expected="off or [REGION[+OFFSET]=]FILE",
        repeated=True,
    ),
    Option(
        "timeout",
        "SECONDS",
        "time that the device may take for one access (default 5)",
        read=_seconds,
        expected=TIMEOUT,
    ),
    Option(
        "reconnect",
        "",
        "a vfio-user device whose server has ended comes back, opened anew, when a server listens "
        "on its socket again",
        _MOUNT,
    ),
    Option(
        "map",
        "",
        "let programs of yours map the windows (barfs run, barfs.attach); excludes ro, guard, "
        "widths, policy, trace and mapping=off, which a mapping cannot keep",
        _MOUNT,
    ),
    Option(
        "allow_other",
        "",
        "let other users access the mount (needs user_allow_other in /etc/fuse.conf)",
        _MOUNT,
    ),
    Option(
        "uid",
        "USER",
        "owner of the files (default: you)",
        _MOUNT,
        user_id,
        f"a user's name or {NUMBER}",
    ),
    Option(
        "gid",
        "GROUP",
        "group of the files (default: yours)",
        _MOUNT,
        group_id,
        f"a group's name or {NUMBER}",
    ),
    Option(
        "umask",
        "OCTAL",
        "permissions to remove from all files (default: region files are 0600)",
        _MOUNT,
        _umask,
        "an octal number like 027",
    ),
    _security_context("context", "of all files"),
    _security_context("fscontext", "of the file system"),
    _security_context("defcontext", "of files that have none"),
    _security_context("rootcontext", "of the root directory"),
)
_BY_NAME = {option.name: option for option in OPTIONS}


def parse_options(texts: Iterable[str]) -> tuple[Options, MountOptions]:
    """The options of the devices and of the mount, from all `-o` arguments together.

    Raises UsageError for an unknown word, a bad value, or words that contradict each other.
    """
    found: dict[str, Any] = {}
    # Always there: a mount finds descriptions when it starts, not when they are first used.
    repeated: dict[str, list[str]] = {option.name: [] for option in OPTIONS if option.repeated}
    words = [_without_reach(word) for text in texts for word in _words(text)]
    # First, since mount(8) mixes it with any words of fstab and of the mount.
    if "remount" in words:
        raise UsageError(
            "a barfs mount cannot be remounted, since its options are fixed; unmount it, and mount "
            "it with others"
        )
    if "ro" in words and "rw" in words:
        raise UsageError("options ro and rw contradict each other")
    if {"context", "defcontext"} <= {word.partition("=")[0] for word in words}:
        raise UsageError("options context and defcontext contradict each other")
    for word in words:
        name, value = _read_word(word)
        if name is None:
            continue
        if _BY_NAME[name].repeated:
            repeated.setdefault(name, []).append(value)
            continue
        if found.setdefault(name, value) != value:
            raise UsageError(f"option {name} is given twice, as {found[name]} and {value}")
    found |= {name: _BY_NAME[name].read(values) for name, values in repeated.items()}
    ours, theirs = (
        {
            option.target: found[option.name]
            for option in OPTIONS
            if place in option.places and option.name in found
        }
        for place in (Options, MountOptions)
    )
    if "map" in found:
        _check_with_map(found)
    return Options(**ours), MountOptions(**theirs)


def _words(text: str) -> list[str]:
    return [_QUOTED.sub(r"=\1", word) for word in _WORD.findall(text)]


_BROKEN_BY_MAP = {
    "ro": "a program that maps a window can write to it",
    "guard": "accesses of mapped memory may have any width",
    "widths": "accesses of mapped memory may have any width",
    "policy": "a program that maps a window has all of it",
    "trace": "accesses of mapped memory leave no line in a trace",
    "mapping=off": "without windows there is nothing to map",
}
"""The options whose promises accesses of mapped memory would break, and why."""


def _check_with_map(found: Mapping[str, Any]) -> None:
    """Raises UsageError for an option that contradicts `map`."""
    words = {*found, f"mapping={found.get('mapping')}"}
    for word, why in _BROKEN_BY_MAP.items():
        if word in words:
            raise UsageError(
                f"options map and {word} contradict each other: {why}; leave one of them out"
            )


def _without_reach(word: str) -> str:
    name, _equals, reach = word.partition("=")
    return name if reach in _REACHES and (name == "ro" or name in _FROM_MOUNT) else word


def _is_ignored(name: str, has_value: bool) -> bool:
    if name.startswith(("x-", "X-")):
        return True
    if has_value:
        return name in _WITH_VALUE_FROM_MOUNT | _WITH_VALUE_FROM_KERNEL
    return name in _FROM_MOUNT | _FROM_KERNEL


def _read_word(word: str) -> tuple[str | None, Any]:
    """One option as (name, value); (None, None) for a word that is ignored."""
    name, equals, text = word.partition("=")
    if _is_ignored(name, bool(equals)):
        return None, None
    option = _BY_NAME.get(name)
    if option is None or bool(equals) != bool(option.value):
        known = ", ".join(f"{option.name}=" if option.value else option.name for option in OPTIONS)
        raise UsageError(f"unknown option {quoted(word)}; the options are {known}")
    if not option.value:
        return name, True
    if option.repeated:
        return name, text
    try:
        return name, option.read(text)
    except (ValueError, KeyError, OverflowError):
        raise UsageError(f"{name} must be {option.expected}, not {quoted(text)}") from None
