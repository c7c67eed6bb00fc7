# SPDX-License-Identifier: MIT
"""Rules from a file: what they leave, and the mistakes that are told instead of ignored."""

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs.errors import UsageError
from barfs.policy import AccessPolicy, Permission, Restriction, Rule
from barfs.ranges import Range

NAMES = ("0000:01:00.0", "0000:01:00.0")
SIZES = {"bar0": 0x1000, "bar2": 0x100, "config": 0x1000}


def policy(text: str) -> AccessPolicy:
    return AccessPolicy.from_toml(tomllib.loads(text))


def left(text: str) -> dict[str, list[tuple[int, int, str]]]:
    found = policy(text).restrictions(NAMES, SIZES)
    return {
        region: [(part.start, part.end, part.permission) for part in parts]
        for region, parts in found.items()
    }


def test_a_name_with_bytes_that_toml_cannot_hold() -> None:
    """They are written as barfs shows them; what TOML can hold is written as it is."""
    rule = "[[rule]]\ndevice = '{}'\naccess = \"none\"\n"
    for device, name in {
        r"vfio-user:/run/\xc9.sock": os.fsdecode(b"vfio-user:/run/\xc9.sock"),
        "vfio-user:/run/*.sock": os.fsdecode(b"vfio-user:/run/\xc9.sock"),
        "vfio-user:/run/é.sock": "vfio-user:/run/é.sock",
    }.items():
        found = policy(rule.format(device)).restrictions(["ffff:00:00.0", name], SIZES)
        assert set(found) == set(SIZES)


def test_no_rule_is_no_restriction() -> None:
    assert AccessPolicy().restrictions(NAMES, SIZES) == {}


def test_a_range_and_what_is_around_it() -> None:
    text = '[[rule]]\nregion = "bar0"\nrange = "0x100-0x13f"\naccess = "ro"\n'
    assert left(text) == {"bar0": [(0x100, 0x140, "ro")]}


def test_the_last_rule_decides() -> None:
    text = """
        [[rule]]
        access = "none"
        [[rule]]
        region = "bar*"
        range = "0x10+0x20"
        access = "rw"
        [[rule]]
        region = "bar0"
        range = "0x18+8"
        access = "ro"
    """
    assert left(text) == {
        "bar0": [(0, 0x10, "none"), (0x18, 0x20, "ro"), (0x30, 0x1000, "none")],
        "bar2": [(0, 0x10, "none"), (0x30, 0x100, "none")],
        "config": [(0, 0x1000, "none")],
    }


def test_neighbours_are_one_range() -> None:
    text = "".join(
        f'[[rule]]\nregion = "bar2"\nrange = "{at}+4"\naccess = "ro"\n' for at in (8, 0, 4)
    )
    assert left(text) == {"bar2": [(0, 12, "ro")]}


def allowed(text: str) -> dict[str, list[tuple[int, int, tuple[int, ...]]]]:
    found = policy(text).widths(NAMES, SIZES)
    return {
        region: [(part.start, part.end, part.widths) for part in parts]
        for region, parts in found.items()
    }


def test_widths_of_a_range_leave_its_access_alone() -> None:
    text = """
        [[rule]]
        region = "bar0"
        widths = [4, 8]
        [[rule]]
        region = "bar0"
        range = "0x10+0x10"
        access = "ro"
        widths = [4]
        [[rule]]
        region = "bar0"
        range = "0x18+8"
        access = "rw"
        [[rule]]
        range = "0x40+1"
        widths = [1]
    """
    assert left(text) == {"bar0": [(0x10, 0x18, "ro")]}
    assert allowed(text) == {
        "bar0": [
            (0, 0x10, (4, 8)),
            (0x10, 0x20, (4,)),
            (0x20, 0x40, (4, 8)),
            (0x40, 0x41, (1,)),
            (0x41, 0x1000, (4, 8)),
        ],
        "bar2": [(0x40, 0x41, (1,))],
    }


def test_configuration_space_has_widths_only_by_its_name() -> None:
    text = '[[rule]]\nregion = "{}"\nwidths = [4]\n'
    assert set(allowed(text.format("*"))) == {"bar0", "bar2"}
    assert allowed(text.format("config")) == {"config": [(0, 0x1000, (4,))]}


@pytest.mark.parametrize("value", ["[]", "4", '["4"]', "[3]", "[4, 16]", "[true]", "[4.0]", "{}"])
def test_widths_are_a_list_of_widths(value: str) -> None:
    with pytest.raises(UsageError, match="rule 1: widths must be a list of some of 1, 2, 4 and 8"):
        policy(f"[[rule]]\nwidths = {value}\n")


@pytest.mark.parametrize("span", ["0x102+4", "0x100+6", "0x100-0x100"])
def test_a_range_with_widths_is_whole_accesses(span: str) -> None:
    with pytest.raises(UsageError, match="must consist of whole, aligned accesses of 4 bytes"):
        policy(f'[[rule]]\nrange = "{span}"\nwidths = [8, 4]\n')


def test_a_device_is_known_by_its_address_and_its_name() -> None:
    rule = '[[rule]]\ndevice = "vfio-user:/run/*"\nregion = "bar0"\naccess = "none"\n'
    assert left(rule) == {}
    found = policy(rule).restrictions(["ffff:00:00.0", "vfio-user:/run/x.sock"], SIZES)
    assert found == {"bar0": (Restriction(0, 0x1000, "none"),)}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ('region = "bar5"\naccess = "ro"', "has no bar5; it has bar0, bar2, config"),
        ('region = "bar2"\nrange = "0xf0+0x20"\naccess = "ro"', "0xf0-0x10f leaves bar2 of"),
    ],
)
def test_rules_that_miss_the_device_that_they_name(rule: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        left(f'[[rule]]\ndevice = "0000:01:00.0"\n{rule}\n')
    assert left(f'[[rule]]\ndevice = "0000:02:00.0"\n{rule}\n') == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold \\[\\[rule\\]\\] tables and nothing else"),
        ("rule = 1", "must hold \\[\\[rule\\]\\] tables and nothing else"),
        ('[[rule]]\naccess="ro"\n[other]\n', "nothing else"),
        ("[[rule]]\n", 'rule 1: access must be "rw", "ro" or "none"'),
        ('[[rule]]\naccess = "r"\n', 'rule 1: access must be "rw", "ro" or "none"'),
        ('[[rule]]\naccess = "ro"\nbar = "bar0"\n', "rule 1: unknown bar; there are access"),
        ('[[rule]]\naccess = "ro"\nrange = 4\n', "rule 1: every value must be a string"),
        ('[[rule]]\naccess = "ro"\nrange = "4"\n', "rule 1: '4' is not a range"),
        ('[[rule]]\naccess = "ro"\nrange = "8-4"\n', "rule 1: '8-4' is an empty range"),
        ("[[rule", "Expected"),
        ("\xff", "TOML must be UTF-8 text"),
    ],
)
def test_files_that_are_no_policy(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=message) as caught:
        AccessPolicy.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_an_end() -> None:
    with pytest.raises(UsageError, match="must have at most 1048576 bytes"):
        AccessPolicy.load("/dev/zero")


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20), st.sampled_from(["rw", "ro"]))))
def test_bytes_are_decided_one_by_one(spans: list[tuple[int, int, Permission]]) -> None:
    rules = [Rule(access, span=Range(start, start + size)) for start, size, access in spans]
    found = AccessPolicy(tuple(rules)).restrictions(["x"], {"bar0": 32}).get("bar0", ())
    for byte in range(32):
        deciding = [access for start, size, access in spans if start <= byte < start + size]
        restricted = any(part.start <= byte < part.end for part in found)
        assert restricted == (deciding[-1:] == ["ro"])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        AccessPolicy.load(tmp_path / "missing.toml")
