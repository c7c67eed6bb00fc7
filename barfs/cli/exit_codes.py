# SPDX-License-Identifier: MIT
"""The exit codes of all commands, besides 0 for success and 128 + N after signal N."""

EXIT_FAILED = 1
EXIT_DIFFERENT = 1  # of `diff`, as of diff(1)
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_NOT_RUN = 126  # of `run`, as of env(1)
EXIT_NOT_FOUND = 127
