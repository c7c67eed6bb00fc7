# SPDX-License-Identifier: MIT
"""The exit codes of all commands besides 0, done, and 128 + N when signal N ends one."""

EXIT_FAILED = 1
EXIT_DIFFERENT = 1  # of `diff`, as of diff(1)
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
