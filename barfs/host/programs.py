# SPDX-License-Identifier: MIT
"""Finding the programs that barfs runs."""

import os
import shutil

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find_program(name: str) -> str | None:
    """The path of a program, None where it is not installed.

    The directories of system programs count even where PATH leaves them out, or is not set:
    mount(8) runs its helpers without one.
    """
    path = os.pathsep.join(filter(None, (os.environ.get("PATH"), _SYSTEM_PATH)))
    return shutil.which(name, path=path)
