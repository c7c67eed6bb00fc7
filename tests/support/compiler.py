# SPDX-License-Identifier: MIT
"""Flags to compile the C of barfs without Python."""

from barfs.engine import build

STRICT = [
    "-std=gnu11",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Werror",
    f"-I{build.HERE.parent}",
    "-pthread",
]
