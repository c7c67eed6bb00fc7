# SPDX-License-Identifier: MIT
"""Users and groups, looked up by name or number."""

import grp
import pwd

from barfs.errors import UsageError
from barfs.text import printable


def user_id(text: str) -> int:
    """A user by name or number. Raises KeyError."""
    return int(text) if text.isdecimal() else pwd.getpwnam(text).pw_uid


def group_id(text: str) -> int:
    """A group by name or number. Raises KeyError."""
    return int(text) if text.isdecimal() else grp.getgrnam(text).gr_gid


def find_user(text: str | None) -> int | None:
    """The id of the user in an option, None if there is none. Raises UsageError."""
    try:
        return None if text is None else user_id(text)
    except KeyError:
        raise UsageError(
            f"there is no user '{printable(text)}'; getent passwd lists them"
        ) from None


def find_group(text: str | None) -> int | None:
    """The id of the group in an option, None if there is none. Raises UsageError."""
    try:
        return None if text is None else group_id(text)
    except KeyError:
        raise UsageError(
            f"there is no group '{printable(text)}'; getent group lists them"
        ) from None
