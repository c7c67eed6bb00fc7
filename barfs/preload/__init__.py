# SPDX-License-Identifier: MIT
"""The library that gives programs a shared mmap of region files, and how they come to load it.

Rule 1: the library, `mmap.c` and the other C here, needs libc and nothing else: it is loaded into
        programs of any kind. It is no part of the extension.
Rule 2: the dynamic linker takes it from LD_PRELOAD, behind what is there already: such libraries
        see every call before it.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from barfs.errors import BarfsError

LIBRARY = Path(__file__).with_name("barfs_map.so")


def environment(before: Mapping[bytes, bytes], library: Path = LIBRARY) -> dict[bytes, bytes]:
    """The variables of a process in which programs load the library. Raises BarfsError."""
    if not library.is_file():
        raise BarfsError(f"{library} is missing; install barfs again")
    path = os.fsencode(library)
    # ld.so(8): LD_PRELOAD is split at colons and blanks, LD_LIBRARY_PATH at colons and semicolons.
    if b":" in path or (b" " in path and b";" in path):
        raise BarfsError(
            f"no variable can hold {library}; install barfs where its path has no : or ;"
        )
    after = dict(before)
    if b" " in path:
        folder, path = os.path.split(path)
        _append(after, b"LD_LIBRARY_PATH", folder, "[:;]")
    _append(after, b"LD_PRELOAD", path, "[: ]")
    return after


def _append(variables: dict[bytes, bytes], name: bytes, word: bytes, separators: str) -> None:
    """Unless it is there already: `barfs run` may run `barfs run`."""
    words = variables.get(name, b"")
    if word not in re.split(separators.encode(), words):
        variables[name] = words + b":" + word if words else word
