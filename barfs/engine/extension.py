# SPDX-License-Identifier: MIT
"""The one place that imports the built extension, and nothing more than that."""

try:
    from barfs.engine._engine import ffi, lib
except ModuleNotFoundError as error:
    raise ImportError("barfs.engine is not built: run `pip install -e .`") from error

__all__ = ["ffi", "lib"]
