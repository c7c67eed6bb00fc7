# SPDX-License-Identifier: MIT
"""What can be wrong with a description, a name or a value.

Rule 1: each text is one line, or one line for each error that a description has.
"""

from barfs.errors import BarfsError, UsageError


class DescriptionError(UsageError):
    """A description that cannot be used; each of `lines` is `FILE:LINE: reason`."""

    def __init__(self, *lines: str) -> None:
        self._lines = lines
        super().__init__("\n".join(lines))

    @property
    def lines(self) -> tuple[str, ...]:
        return self._lines


class NoSuchName(UsageError):
    """A path or a pattern that names nothing in a map."""


class NoSuchElement(NoSuchName):
    """An array without its index, or with one that it does not have."""


class NotAValue(UsageError):
    """A text that is neither a number nor a name that the field has (EINVAL)."""


class ValueTooLarge(UsageError):
    """A number that does not fit into the field or the register (ERANGE)."""


class NotAlone(BarfsError):
    """Fields that cannot be written without harm to a neighbour (EPERM).

    `neighbour` names the field in the way, or is "" where reading the register does the harm.
    """

    def __init__(self, message: str, neighbour: str = "") -> None:
        self.neighbour = neighbour
        super().__init__(message)
