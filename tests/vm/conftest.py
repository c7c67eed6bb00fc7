# SPDX-License-Identifier: MIT
"""These tests need the guest of scripts/vm-test, and are skipped elsewhere."""

from collections.abc import Iterator

import pytest

from tests.support.guest import HostSharedMemory, inside


@pytest.fixture(scope="session", autouse=True)
def _in_guest() -> None:
    # scripts/test runs scripts/vm-test by itself, so BARFS_REQUIRE=vm is that script's to honour.
    if not inside():
        pytest.skip("not inside the vm-test guest; run scripts/vm-test")


@pytest.fixture
def host_shared_memory() -> Iterator[HostSharedMemory]:
    """The host's side of the memory behind ivshmem's BAR 2."""
    memory = HostSharedMemory()
    yield memory
    memory.close()
