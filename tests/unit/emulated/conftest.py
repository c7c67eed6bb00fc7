# SPDX-License-Identifier: MIT
"""An eye on descriptors: a device that is closed holds none."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before
