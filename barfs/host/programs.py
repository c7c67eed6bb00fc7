# SPDX-License-Identifier: MIT
"""Finds the programs that barfs runs."""

import os
import shutil

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find_program(name: str) -> str | None:
    """The path of a program, None if it is not installed.

    The directories of system programs are searched even if PATH lacks them or is unset, because
    mount(8) runs its helpers without PATH.
    """
    path = os.pathsep.join(filter(None, (os.environ.get("PATH"), _SYSTEM_PATH)))
    return shutil.which(name, path=path)
