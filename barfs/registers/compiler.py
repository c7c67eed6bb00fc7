# SPDX-License-Identifier: MIT
"""A description in any of the languages, made into a map."""

import importlib
from pathlib import Path

from barfs.registers.errors import DescriptionError
from barfs.registers.model import first_misplaced
from barfs.registers.report import Compiled, check_file
from barfs.text import printable

_LANGUAGES = {
    ".rdl": ("systemrdl", "compile_systemrdl"),
    ".xml": ("xml_kinds", "compile_xml"),
    ".svd": ("svd", "compile_svd"),
    ".json": ("litex", "compile_litex"),
}
SUFFIXES = tuple(_LANGUAGES)


def compile_description(path: Path) -> Compiled:
    """The map of a file; its suffix says the language. Raises DescriptionError."""
    check_file(path)
    found = _LANGUAGES.get(path.suffix.lower())
    if found is None:
        raise DescriptionError(
            f"{printable(path)}: must end in .rdl (SystemRDL), .xml (IP-XACT), .svd (CMSIS-SVD) or "
            ".json (LiteX)"
        )
    module, function = found
    compile_it = getattr(importlib.import_module(f"barfs.registers.{module}"), function)
    compiled: Compiled = compile_it(path)
    if misplaced := first_misplaced(compiled.root):
        raise DescriptionError(f"{printable(path)}: {misplaced}")
    return compiled
