# SPDX-License-Identifier: MIT
import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs.host.uevents import Bound, parse
from barfs.pci import Bdf


def message(**fields: str) -> bytes:
    head = f"{fields.get('ACTION', 'x')}@/devices/pci0000:00/0000:00:10.0"
    return b"\0".join([head.encode(), *(f"{k}={v}".encode() for k, v in fields.items()), b""])


def test_a_bound_function() -> None:
    event = message(ACTION="bind", SUBSYSTEM="pci", DRIVER="vfio-pci", PCI_SLOT_NAME="0000:00:10.0")
    assert parse(event) == Bound(Bdf(0, 0, 0x10, 0))


@pytest.mark.parametrize(
    "fields",
    [
        {"ACTION": "unbind", "SUBSYSTEM": "pci", "PCI_SLOT_NAME": "0000:00:10.0"},
        {"ACTION": "bind", "SUBSYSTEM": "usb", "PCI_SLOT_NAME": "0000:00:10.0"},
        {"ACTION": "bind", "SUBSYSTEM": "pci"},
        {"ACTION": "bind", "SUBSYSTEM": "pci", "PCI_SLOT_NAME": "elsewhere"},
    ],
)
def test_what_is_about_something_else(fields: dict[str, str]) -> None:
    assert parse(message(**fields)) is None


@given(st.binary(max_size=200))
def test_any_message_is_read(data: bytes) -> None:
    parse(data)
    parse(b"bind@x\0ACTION=bind\0SUBSYSTEM=pci\0PCI_SLOT_NAME=" + data)
