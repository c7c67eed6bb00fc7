# SPDX-License-Identifier: MIT
"""A running server of the demo device, its clients, and an eye on descriptors."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from barfs.emulated.demo import demo_device
from barfs.emulated.device import SoftwareDevice
from barfs.pci import Bdf
from barfs.vfio_user.client import VfioUserClient
from tests.support.raw import RawClient, connection, running


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = open_files()
    yield
    for thread in threading.enumerate():
        if thread.name in ("barfs-software-device", "barfs-close"):
            thread.join()
    # The directory that is being listed has a descriptor, too: the lowest that was free.
    assert len(open_files()) <= len(before)


@pytest.fixture
def device() -> Iterator[SoftwareDevice]:
    with contextlib.closing(demo_device()) as made:
        yield made


@pytest.fixture
def path(tmp_path: Path, device: SoftwareDevice) -> Iterator[Path]:
    """The socket of a running server of the demo device."""
    with running(tmp_path / "demo.sock", device):
        yield tmp_path / "demo.sock"


@pytest.fixture
def raw(path: Path) -> Iterator[RawClient]:
    with connection(path) as sock:
        yield RawClient(sock)


@pytest.fixture
def client(path: Path) -> Iterator[VfioUserClient]:
    bdf = Bdf(0xFFFF, 0, 0, 0)
    with contextlib.closing(VfioUserClient(str(path), bdf=bdf, source="test")) as made:
        yield made
