# SPDX-License-Identifier: MIT
"""The command `barfs`, which gets a signal at a chosen point of its own.

    python -m tests.support.signal_points POINT SIGNAL FILES REPORT WORD...

A point is where Python looks for signals: the entry of a function, and the return from one that is
written in C. Counted are those of the main thread in FILES of barfs (with commas; "" is all of
them). At the POINT-th comes SIGNAL. REPORT becomes a file with their count at the end. A daemon
that is forked goes on counting, and gets the signal, too.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

import barfs
from barfs.cli import main

PACKAGE = str(Path(barfs.__file__).parent)


class Points:
    def __init__(self, point: int, number: int, files: list[str]) -> None:
        self.count = 0
        self._point = point
        self._number = number
        self._files = files

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        name = frame.f_code.co_filename
        if event not in ("call", "c_return") or not name.startswith(PACKAGE):
            return
        if any(name.endswith(file) for file in self._files):
            self.count += 1
            if self.count == self._point:
                os.kill(os.getpid(), self._number)


def run() -> int:
    point, name, files, report, *words = sys.argv[1:]
    # As the command itself does while it is imported: what comes then kills it without a word.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    points = Points(int(point), signal.Signals[name], files.split(","))
    sys.setprofile(points)
    try:
        return main(words)
    finally:
        sys.setprofile(None)
        Path(report).write_text(str(points.count))


if __name__ == "__main__":
    sys.exit(run())
