# SPDX-License-Identifier: MIT
"""The exit codes of all commands. 0 is done; a signal that ends a command gives 128 + its number."""

EXIT_FAILED = 1
EXIT_DIFFERENT = 1  # of `diff`, as of diff(1)
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
