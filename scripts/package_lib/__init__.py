# SPDX-License-Identifier: MIT
"""The parts of `scripts/package`: sdist, wheel, Debian package, manuals and completions.

Rule 1: everything is built from the sdist, so that a file missing from it is noticed here.
Rule 2: manuals and completions are made from the parser of `barfs.cli`; nothing is listed twice.
"""
