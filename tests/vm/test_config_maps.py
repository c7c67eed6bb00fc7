# SPDX-License-Identifier: MIT
"""The map of configuration space against lspci: all values, and each field that lspci decodes."""

from collections.abc import Iterator

import pytest

from barfs.registers.fields import extract, show
from barfs.registers.places import RegisterMap
from barfs.registers.shipped.config_space import config_space
from tests.support import Mounted
from tests.support.guest import find, find_physical_function

from .lspci import Function, functions
from .mounts import mounted


def decoded(function: Function) -> dict[str, int]:
    """Registers and fields of the map that the function's bytes make, by name."""
    found = {}
    for place in RegisterMap(config_space(function.data), "lspci").registers():
        register, end = place.register, place.offset + place.register.width
        value = int.from_bytes(function.data[place.offset : end], "little")
        found[place.path] = value
        for field in register.fields:
            found[f"{place.path}.{field.name}"] = extract(field, value)
    return found


def test_the_fields_of_every_function_are_those_of_lspci() -> None:
    """Also those that VFIO cannot have: a root port has a link, a slot, errors, access control."""
    capabilities = set()
    for function in functions():
        assert function.decoded["COMMAND.MEMORY"] in (0, 1)
        own = decoded(function)
        assert {name: own.get(name) for name in function.decoded} == function.decoded, function.bdf
        capabilities |= {name.partition(".")[0] for name in function.decoded}
    assert {
        "BRIDGE_CONTROL", "CAP_MSI", "CAP_MSIX", "CAP_PM", "CAP_EXP", "CAP_SATA", "ECAP_AER",
        "ECAP_ACS", "ECAP_ARI", "ECAP_SRIOV",
    } <= capabilities  # fmt: skip


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """MSI and SATA; MSI-X and a link; power management and virtual functions."""
    bdfs = (find("ahci"), find("xhci"), find_physical_function())
    with mounted(tmp_path_factory.mktemp("mount"), *bdfs) as found:
        yield found


def test_the_files_of_a_mount_have_what_lspci_shows(mount: Mounted) -> None:
    seen = {function.bdf: function for function in functions()}
    for device in (mount.path / "bus").iterdir():
        data = seen[device.name].data
        count = 0
        for place in RegisterMap(config_space(data), "lspci").registers():
            register = place.register
            path = device / "registers" / "config" / place.path.replace(".", "/")
            value = int.from_bytes(data[place.offset :][: register.width], "little")
            if register.readable:
                assert int(path.read_text(), 16) == value, path
            for field in filter(lambda field: field.readable, register.fields):
                text = path.with_name(f"{path.name}.{field.name}").read_text()
                assert text == f"{show(field, extract(field, value))}\n", (path, field.name)
                count += 1
        assert count > 30
