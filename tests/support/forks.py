# SPDX-License-Identifier: MIT
"""Forks of the test's own process."""

import os
import pickle
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def fork() -> int:
    """As os.fork(); that this process has threads is the point of some tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def in_child(work: Callable[[], T]) -> T:
    """Run `work` in a child of this process, and return its result. It must not raise."""
    reading, writing = os.pipe()
    child = fork()
    if child == 0:
        code = 1
        try:
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(work(), pipe)
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    result: T = pickle.loads(data)
    return result
