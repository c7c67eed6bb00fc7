# SPDX-License-Identifier: MIT
"""The subjects of the contract: kernel VFIO in the guest, a software device everywhere else."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import Mounted, guest, mounted, served


@dataclass(frozen=True)
class Subject:
    """A mount with a register that identifies its device, and with memory to write to.

    `memory` is a range of a region that keeps what is written, and has windows and gaps.
    """

    mount: Mounted
    registers: Path
    identity: bytes
    region: Path
    memory: range


# Areas of BAR 2 that leave windows and gaps of several shapes.
IVSHMEM_AREAS = ((0x1000, 0x1000), (0x3000, 0x1000), (0x5800, 0x2000), (0x100000, 0x200000))


@contextlib.contextmanager
def software(folder: Path, options: str) -> Iterator[Subject]:
    with served(folder) as device, mounted(folder, device.name, options=options) as mount:
        directory = mount.device()
        yield Subject(
            mount, directory / "bar0", b"barf", directory / "bar0", range(0x3000, 0x10000)
        )


@contextlib.contextmanager
def kernel(folder: Path, options: str) -> Iterator[Subject]:
    with (
        guest.bound("edu") as edu,
        guest.sparse("ivshmem", IVSHMEM_AREAS, bar=2) as ivshmem,
        mounted(folder, edu, ivshmem, options=guest.mount_options(options)) as mount,
    ):
        identity = 0x010000ED.to_bytes(4, "little")
        region = mount.device(ivshmem) / "bar2"
        yield Subject(mount, mount.device(edu) / "bar0", identity, region, range(0, 0x10000))


KINDS = {"software": software, "kernel": kernel}


@pytest.fixture(scope="session", params=["kernel" if guest.inside() else "software"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def subject(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    with KINDS[kind](tmp_path_factory.mktemp(kind), "") as found:
        yield found


@pytest.fixture
def read_only_subject(
    kind: str, subject: Subject, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Subject]:
    """A second device of the kind, mounted `ro`; only the software one can be opened twice."""
    if kind == "kernel":
        pytest.skip("a kernel device is opened once; test_release mounts it again, ro")
    with KINDS[kind](tmp_path, "ro") as found:
        yield found
