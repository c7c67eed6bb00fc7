# SPDX-License-Identifier: MIT
"""The command `barfs`, also `python -m barfs`.

Rule 1: before `main`, import only what it takes to report a failed import in one line: memory may
        run out, or ^C may arrive.
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
    # From here on, Python exits, and could only answer ^C with a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return code


def _run() -> int:
    from barfs.cli import main as run_command

    return run_command()


if __name__ == "__main__":
    sys.exit(main())
