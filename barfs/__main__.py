# SPDX-License-Identifier: MIT
"""The command `barfs`, also `python -m barfs`.

Rule 1: nothing is imported before `main` but what it needs to tell in a line that an import failed:
        there may be no memory for it, or a ^C.
"""

import signal
import sys


def main() -> int:
    """Run the command line of this process; returns its exit code."""
    try:
        from barfs.cli import edge

        edge.take_streams()
        code = edge.guarded(_run)
    except KeyboardInterrupt:
        code = 130
    except (ImportError, MemoryError, OSError) as error:
        print(f"barfs: {error or type(error).__name__}", file=sys.stderr)
        code = 1
    # Python's own end has no place where a ^C could be told.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return code


def _run() -> int:
    from barfs.cli import main as run_command

    return run_command()


if __name__ == "__main__":
    sys.exit(main())
