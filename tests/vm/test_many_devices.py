# SPDX-License-Identifier: MIT
"""Many functions in one mount: opened and closed side by side; those of a group share it."""

from pathlib import Path

import pytest

from tests.support import barfs, guest

from .mounts import mounted, read

IDENTITY = 0x010000ED.to_bytes(4, "little")


def free(bdfs: list[str]) -> None:
    """The kernel takes each back: it would wait for one that is open."""
    for bdf in bdfs:
        guest.bind(bdf, None)
        guest.bind(bdf, guest.VFIO_PCI)


def test_functions_of_one_group_and_of_many(tmp_path: Path) -> None:
    edus = guest.find_all("edu")
    groups = [guest.iommu_group(bdf) for bdf in edus]
    assert 1 < len(set(groups)) < len(groups)
    with mounted(tmp_path, *edus, options=guest.mount_options()) as mount:
        assert [read(mount.device(bdf) / "bar0", 0, 4) for bdf in edus] == [IDENTITY] * len(edus)
    free(edus)


@pytest.mark.parametrize("number", [0, 3, -1])
def test_one_that_fails_is_named_and_the_others_are_closed(tmp_path: Path, number: int) -> None:
    edus = guest.find_all("edu")
    guest.bind(edus[number], None)
    try:
        result = barfs("mount", "-o", guest.mount_options(), *edus, tmp_path)
        others = [bdf for bdf in edus if bdf != edus[number]]
        free(others)
    finally:
        guest.bind(edus[number], guest.VFIO_PCI)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert edus[number] in result.stderr
