# SPDX-License-Identifier: MIT
"""The command `barfs` with bugs on order. The file named by BROKEN holds `PLACE MISTAKE`, or is
empty; each mistake that is made adds a line to a second file, NAME.made.

A handler's function is replaced inside the wrapper that barfs has put around it, so that the
wrapper is tested as it is.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from barfs.cli import main
from barfs.fuse.filesystem import Filesystem
from barfs.vfio_user.client import VfioUserClient

MISTAKES: dict[str, Callable[[], Exception]] = {
    "ValueError": lambda: ValueError("a mistake"),
    "KeyError": lambda: KeyError("a mistake"),
    "FileNotFoundError": lambda: FileNotFoundError(2, "a mistake"),
    "AssertionError": lambda: AssertionError("a mistake"),
    "ExceptionGroup": lambda: ExceptionGroup("mistakes", [ValueError(), TypeError()]),
}

Handler = Callable[..., Coroutine[Any, Any, object]]


def handlers() -> dict[str, Handler]:
    """The handlers that pyfuse3 calls, by the name of their function."""
    found = {}
    for handler in vars(Filesystem).values():
        if inspect.iscoroutinefunction(handler):
            found[handler.__name__] = handler
    return found


def err(place: str) -> None:
    """Make the mistake on order for this place."""
    order = Path(os.environ["BROKEN"])
    ordered, _, mistake = order.read_text().partition(" ")
    if ordered == place:
        with order.with_suffix(".made").open("a") as made:
            made.write(f"{mistake}\n")
        raise MISTAKES[mistake]()


def break_handler(place: str, handler: Handler) -> None:
    original = inspect.unwrap(handler)

    @functools.wraps(original)
    async def broken(*arguments: object, **named: object) -> object:
        err(place)
        return await original(*arguments, **named)

    for cell in getattr(handler, "__closure__", None) or ():
        if cell.cell_contents is original:
            cell.cell_contents = broken
            return
    for name, found in list(vars(Filesystem).items()):
        if found is handler:
            setattr(Filesystem, name, broken)


def break_access(place: str, name: str) -> None:
    original = getattr(VfioUserClient, name)

    def broken(*arguments: object) -> object:
        err(place)
        return original(*arguments)

    setattr(VfioUserClient, name, broken)


if __name__ == "__main__":
    for place, handler in handlers().items():
        break_handler(place, handler)
    without_c = {"exchange": lambda _self, _region: None}  # which would not call the others
    for name, function in without_c.items():
        setattr(VfioUserClient, name, function)
    break_access("Call.read", "read")
    break_access("Call.write", "write")
    sys.exit(main())
