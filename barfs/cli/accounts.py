# SPDX-License-Identifier: MIT
"""Users and groups, looked up by name or number."""

import grp
import pwd

from barfs.errors import UsageError
from barfs.text import quoted

_LARGEST = (1 << 32) - 2
"""The next one, -1, is no id: chown(2) takes it for "leave it as it is"."""

NUMBER = f"number from 0 to {_LARGEST}"


def user_id(text: str) -> int:
    """A user by name or number. Raises KeyError, ValueError for a number that is no id."""
    return _number(text) if text.isdecimal() else pwd.getpwnam(text).pw_uid


def group_id(text: str) -> int:
    """A group by name or number. Raises KeyError, ValueError for a number that is no id."""
    return _number(text) if text.isdecimal() else grp.getgrnam(text).gr_gid


def _number(text: str) -> int:
    value = int(text)
    if value > _LARGEST:
        raise ValueError(text)
    return value


def find_user(text: str | None) -> int | None:
    """The id of the user in an option, None if there is none. Raises UsageError."""
    try:
        return None if text is None else user_id(text)
    except KeyError:
        raise UsageError(f"there is no user {quoted(text)}; getent passwd lists them") from None
    except ValueError:
        raise UsageError(f"user must be a name or a {NUMBER}, not {quoted(text)}") from None


def find_group(text: str | None) -> int | None:
    """The id of the group in an option, None if there is none. Raises UsageError."""
    try:
        return None if text is None else group_id(text)
    except KeyError:
        raise UsageError(f"there is no group {quoted(text)}; getent group lists them") from None
    except ValueError:
        raise UsageError(f"group must be a name or a {NUMBER}, not {quoted(text)}") from None
