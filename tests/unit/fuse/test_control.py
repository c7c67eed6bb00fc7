# SPDX-License-Identifier: MIT
"""The messages of `barfs add` and `barfs remove`."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs.errors import UsageError
from barfs.fuse.control import LONGEST, Outcome, Request

names = st.binary(min_size=1).filter(lambda name: b"\0" not in name).map(os.fsdecode)


@given(st.sampled_from(["add", "remove"]), st.lists(names, min_size=1))
def test_a_request_arrives_as_it_was(command: str, devices: list[str]) -> None:
    request = Request(command, devices)
    assert Request.decode(request.encode()) == request


@given(st.binary())
def test_other_bytes_are_no_request(data: bytes) -> None:
    assert Request.decode(data) is None


@pytest.mark.parametrize(
    "data",
    [
        b"barfs-control 1",
        b"barfs-control 1\0add",
        b"barfs-control 1\0add\0",
        b"barfs-control 1\0add\0demo\0",
        b"barfs-control 1\0mount\0demo",
        b"barfs-control 1\0\xff\0demo",
        b"barfs-control 2\0add\0demo",
    ],
)
def test_near_misses_are_none_either(data: bytes) -> None:
    assert Request.decode(data) is None


def test_too_many_names_are_told_before_they_are_sent() -> None:
    with pytest.raises(UsageError, match="too many devices for one command"):
        Request("add", ["x" * 1000] * 70).encode()


@given(st.integers(0, 2), names | st.just(""))
def test_a_reply_arrives_as_it_was(code: int, text: str) -> None:
    assert Outcome.decode(Outcome(code, text).encode()) == Outcome(code, text)


def test_a_reply_fits() -> None:
    assert len(Outcome(1, "x" * 2 * LONGEST).encode()) == LONGEST


@pytest.mark.parametrize("data", [b"", b"barfs-control 1", b"barfs-control 1\0x\0", b"x\0000\0"])
def test_other_bytes_are_no_reply(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (any)
        Outcome.decode(data)
