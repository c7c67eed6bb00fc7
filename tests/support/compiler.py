# SPDX-License-Identifier: MIT
"""How the tests compile the C of barfs by itself."""

from barfs.engine import build

INCLUDE = f"-I{build.HERE.parent}"
STRICT = [
    "-std=gnu11",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Werror",
    f"-I{build.HERE.parent}",
    "-pthread",
]
