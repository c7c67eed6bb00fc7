# SPDX-License-Identifier: MIT
"""What the gate refused is in the log: the first at once, many alike as one line."""

import errno
import logging
import os
from collections.abc import Iterator

import pytest

from tests.support import wait_until
from tests.unit.fuse.gate_rig import OPEN, OPENED, READ_ONLY, REGION, SIZE, Kernel, gated

FLOOD = 500


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with gated() as found:
        yield found


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING)
    return caplog


def told(log: pytest.LogCaptureFixture) -> int:
    """How many refusals the lines stand for."""
    mores = [line.rpartition(", and ")[2].split()[0] for line in log.messages if ", and " in line]
    return len(log.messages) + sum(map(int, mores))


def test_a_refusal_names_device_region_and_offset(
    kernel: Kernel, log: pytest.LogCaptureFixture
) -> None:
    assert kernel.write(REGION, SIZE, b"1234") == (errno.EFBIG, b"")
    wait_until(lambda: bool(log.messages), "the line")
    assert log.messages == [
        f"0000:01:00.0: write of region+{SIZE:#x} (4 bytes): past the end of the region"
    ]


def test_an_open_that_was_refused(kernel: Kernel, log: pytest.LogCaptureFixture) -> None:
    assert kernel.ask(OPENED, READ_ONLY, OPEN.pack(os.O_RDWR, 0)) == (errno.EACCES, b"")
    wait_until(lambda: bool(log.messages), "the line")
    assert log.messages == ["0000:01:00.0: open of region: Permission denied"]


def test_many_alike_are_counted(kernel: Kernel, log: pytest.LogCaptureFixture) -> None:
    for _ in range(FLOOD):
        assert kernel.write(REGION, SIZE + 4, b"1234") == (errno.EFBIG, b"")

    wait_until(lambda: told(log) == FLOOD, "the rest of the lines")
    assert len(log.messages) < FLOOD / 10
    kernel.in_flight.close()
    assert kernel.read(REGION, 0, 4) == (errno.ENODEV, b"")
    wait_until(lambda: "the device is gone" in log.messages[-1], "the line of another kind")


def test_what_waits_is_told_at_the_end(log: pytest.LogCaptureFixture) -> None:
    with gated() as kernel:
        for _ in range(3):
            kernel.write(REGION, SIZE, b"1234")
    assert told(log) == 3


def test_what_is_no_refusal(kernel: Kernel, log: pytest.LogCaptureFixture) -> None:
    assert kernel.read(REGION, SIZE, 4) == (0, b"")
    assert kernel.read(REGION, 0, 4, read_flags=0) == (errno.EOPNOTSUPP, b"")
    kernel.write(REGION, SIZE, b"1234")
    wait_until(lambda: bool(log.messages), "the line")
    assert len(log.messages) == 1
