# SPDX-License-Identifier: MIT
"""Keeps the SIGBUS guard in force; sigbus.h tells what it does and guarantees."""

import faulthandler
import os

from barfs.engine.extension import lib

# What faulthandler's state was when the guard was last put on top of it; None: never.
seen_faulthandler: bool | None = None


def arm_guard() -> None:
    """Put the SIGBUS guard in force, on top of any handler there is now. Idempotent.

    `Mapping` calls this, and so does the next access after faulthandler was enabled or disabled.
    Other code that changes the handling of SIGBUS calls it afterwards.
    """
    global seen_faulthandler
    state = faulthandler.is_enabled()
    if error := lib.barfs_sigbus_install():
        raise OSError(-error, os.strerror(-error))
    seen_faulthandler = state
