# SPDX-License-Identifier: MIT
"""What `scripts/package` makes: sdist, wheel, Debian package, manuals and completions.

Rule 1: everything is built from the sdist, so that what it lacks is missed here and not by others.
Rule 2: manuals and completions are made from the parser of `barfs.cli`; nothing is listed twice.
"""
