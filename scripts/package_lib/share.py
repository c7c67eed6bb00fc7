# SPDX-License-Identifier: MIT
"""Manuals and completion, in the places that they have below /usr/share."""

from pathlib import Path

from package_lib import completion, manual


def write(root: Path, folder: Path) -> list[Path]:
    """Write them below `folder`, for instance ~/.local/share."""
    return [*manual.write(root / "scripts/man", folder), *completion.write(folder)]
