# SPDX-License-Identifier: MIT
"""Reading and writing regions: registers, ends, truncation, data across windows and gaps."""

import errno
import os
import random
import subprocess
from collections.abc import Iterator

import pytest

from .conftest import Subject
from .test_tree import layout_of, region_files


@pytest.fixture
def memory(subject: Subject) -> Iterator[int]:
    """A descriptor of the region that holds the subject's memory."""
    fd = os.open(subject.region, os.O_RDWR)
    yield fd
    os.close(fd)


def read_register(subject: Subject) -> bytes:
    with subject.registers.open("rb", buffering=0) as file:
        return file.read(4)


def test_a_register_reads_as_itself(subject: Subject) -> None:
    assert read_register(subject) == subject.identity


def test_dd_reads_one_register(subject: Subject) -> None:
    result = subprocess.run(
        ["dd", f"if={subject.registers}", "bs=4", "count=1", "status=none"],
        capture_output=True,
        check=True,
    )
    assert result.stdout == subject.identity


def test_the_end_of_each_region(subject: Subject) -> None:
    for region in region_files(subject):
        layout = layout_of(region)
        with region.open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), 4, layout.size) == b""
            assert os.pread(file.fileno(), 4, layout.size + 0x1000) == b""
            assert len(os.pread(file.fileno(), 64, layout.size - 4)) == 4


def test_writing_at_the_end(subject: Subject, memory: int) -> None:
    size = subject.region.stat().st_size
    for offset in (size, size + 4096):
        with pytest.raises(OSError, match="large") as caught:
            os.pwrite(memory, b"1234", offset)
        assert caught.value.errno == errno.EFBIG
    assert os.pwrite(memory, bytes(64), size - 8) == 8


def test_appending_does_not_reach_a_register(subject: Subject) -> None:
    before = read_register(subject)
    fd = os.open(subject.region, os.O_WRONLY | os.O_APPEND)
    try:
        with pytest.raises(OSError, match="large") as caught:
            os.write(fd, b"1234")
        assert caught.value.errno == errno.EFBIG
    finally:
        os.close(fd)
    assert read_register(subject) == before


def test_truncation_is_accepted_and_does_nothing(subject: Subject, memory: int) -> None:
    at = subject.memory.start
    size = subject.region.stat().st_size
    os.pwrite(memory, b"keep", at)
    os.truncate(subject.region, 0)
    os.close(os.open(subject.region, os.O_WRONLY | os.O_TRUNC))
    os.ftruncate(memory, 12345)
    assert subject.region.stat().st_size == size
    assert os.fstat(memory).st_size == size
    assert os.pread(memory, 4, at) == b"keep"


def test_dd_without_notrunc_and_a_shell_redirection(subject: Subject, memory: int) -> None:
    word = subject.memory.start // 4
    script = f"printf abcd | dd of={subject.region} bs=4 seek={word} status=none"
    subprocess.run(["bash", "-ec", script], check=True)
    assert os.pread(memory, 4, subject.memory.start) == b"abcd"
    if subject.memory.start == 0:
        subprocess.run(["bash", "-ec", f"printf ABCD > {subject.region}"], check=True)
        assert os.pread(memory, 4, 0) == b"ABCD"


def test_touch_is_accepted(subject: Subject) -> None:
    os.utime(subject.region)


@pytest.mark.parametrize("seed", range(3))
def test_data_across_windows_and_gaps(subject: Subject, memory: int, seed: int) -> None:
    """Random requests against a model of the memory."""
    source = random.Random(seed)
    start, size = subject.memory.start, len(subject.memory)
    model = bytearray(os.pread(memory, size, start))
    assert len(model) == size
    for _ in range(100):
        offset = source.randrange(size)
        count = min(source.choice((1, 2, 3, 4, 7, 8, 64, 4096, 9000)), size - offset)
        if source.random() < 0.5:
            data = source.randbytes(count)
            assert os.pwrite(memory, data, start + offset) == count
            model[offset : offset + count] = data
        else:
            assert os.pread(memory, count, start + offset) == model[offset : offset + count]
    assert os.pread(memory, size, start) == model


def test_a_read_only_mount(read_only_subject: Subject) -> None:
    region = read_only_subject.region
    with pytest.raises(OSError, match="Read-only") as caught:
        os.open(region, os.O_RDWR)
    assert caught.value.errno == errno.EROFS
    assert {segment.perm for segment in layout_of(region).segments} == {"r-"}
    assert region.stat().st_mode & 0o777 == 0o400
    assert read_register(read_only_subject) == read_only_subject.identity
