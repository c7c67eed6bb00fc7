# SPDX-License-Identifier: MIT
"""Users and groups as people name them: by name or by number."""

import grp
import pwd

from barfs.errors import UsageError


def user_id(text: str) -> int:
    """A user by name or number. Raises KeyError."""
    return int(text) if text.isdecimal() else pwd.getpwnam(text).pw_uid


def group_id(text: str) -> int:
    """A group by name or number. Raises KeyError."""
    return int(text) if text.isdecimal() else grp.getgrnam(text).gr_gid


def find_user(text: str | None) -> int | None:
    """The id of a user that an option names, None without one. Raises UsageError."""
    try:
        return None if text is None else user_id(text)
    except KeyError:
        raise UsageError(f"there is no user {text!r}; getent passwd lists them") from None


def find_group(text: str | None) -> int | None:
    """The id of a group that an option names, None without one. Raises UsageError."""
    try:
        return None if text is None else group_id(text)
    except KeyError:
        raise UsageError(f"there is no group {text!r}; getent group lists them") from None
