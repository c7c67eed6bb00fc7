# SPDX-License-Identifier: MIT
"""Which description a region has."""

from pathlib import Path

import pytest

from barfs.errors import UsageError
from barfs.registers.errors import DescriptionError
from barfs.registers.find import (
    Choice,
    Named,
    choice_of,
    find_maps,
    installed,
    parse_choice,
    user_folders,
)
from barfs.registers.shipped import Ids

IDS = Ids(0x1234, 0x11E8, 0x1AF4, 0x1100, 0x00FF00)
SIZES = {"bar0": 0x1000, "bar2": 0x100, "config": 256}
RDL = "addrmap card { reg { field {} value[31:0]; } %s; };"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read(_region: str, _offset: int, _width: int) -> int:
    return 0


def sources(choice: Choice, *folders: Path) -> dict[str, str]:
    found = find_maps(choice, IDS, SIZES, read, folders)
    return {region: Path(source.source).name for region, source in found.maps.items()}


def written(folder: Path, name: str, register: str = "a") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(RDL % register)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("card.rdl", Named(Path("card.rdl"), "bar0", 0)),
        ("bar2=card.rdl", Named(Path("card.rdl"), "bar2", 0)),
        ("bar2+0x1000=card.rdl", Named(Path("card.rdl"), "bar2", 0x1000)),
        ("region9+4k=a=b.rdl", Named(Path("a=b.rdl"), "region9", 4096)),
        ("bar6=card.rdl", Named(Path("bar6=card.rdl"))),
        ("./bar0=card.rdl", Named(Path("./bar0=card.rdl"))),
        ("x=y.rdl", Named(Path("x=y.rdl"))),
    ],
)
def test_what_an_option_says(text: str, expected: Named) -> None:
    assert parse_choice([text]).named == (expected,)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["off", "card.rdl"], "must be the only"),
        ([""], r"must be off or \[REGION"),
        (["bar0+zz=card.rdl"], "'zz' is not a number"),
    ],
)
def test_an_option_that_makes_no_sense(texts: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_choice(texts)


def test_the_order_of_search(tmp_path: Path) -> None:
    user, system = tmp_path / "user", tmp_path / "system"
    assert sources(Choice(), user, system) == {"bar0": "barfs:edu", "config": "barfs:config"}
    written(system, "1234:11e8.rdl")
    assert sources(Choice(), user, system)["bar0"] == "1234:11e8.rdl"
    written(system, "1234:11e8:1af4:1100.rdl")
    assert sources(Choice(), user, system)["bar0"] == "1234:11e8:1af4:1100.rdl"
    written(user, "1234:11e8.rdl")
    assert installed(IDS, [user, system]) == user / "1234:11e8.rdl"
    named = parse_choice([str(written(tmp_path, "own.rdl"))])
    assert sources(named, user, system)["bar0"] == "own.rdl"
    assert sources(parse_choice(["off"]), user, system) == {}


def test_another_region_leaves_bar0_to_the_search(tmp_path: Path) -> None:
    path = written(tmp_path, "own.rdl")
    assert sources(parse_choice([f"bar2={path}"])) == {
        "bar2": "own.rdl",
        "bar0": "barfs:edu",
        "config": "barfs:config",
    }


def test_several_descriptions_of_one_region_are_one_map(tmp_path: Path) -> None:
    one, two = written(tmp_path, "one.rdl", "a"), written(tmp_path, "two.rdl", "b")
    choice = parse_choice([str(one), f"bar0+0x10={two}"])
    found = find_maps(choice, IDS, SIZES, read).maps["bar0"].load()
    assert [(place.path, place.offset) for place in found.registers()] == [("a", 0), ("b", 0x10)]
    with pytest.raises(DescriptionError, match=r"the name a must be given once in a block"):
        find_maps(parse_choice([str(one), str(one)]), IDS, SIZES, read)


def test_a_description_that_does_not_fit(tmp_path: Path) -> None:
    path = written(tmp_path, "own.rdl")
    with pytest.raises(DescriptionError, match=r"own.rdl: a ends at 0x104, past the end of bar2"):
        find_maps(parse_choice([f"bar2+0x100={path}"]), IDS, SIZES, read)


@pytest.mark.parametrize(("offset", "fits"), [(2, False), (4, False), (12, False), (8, True)])
def test_a_description_that_would_lie_across_accesses(
    tmp_path: Path, offset: int, fits: bool
) -> None:
    path = tmp_path / "own.rdl"
    path.write_text(
        "addrmap card { regfile { reg { regwidth = 64; field {} value[63:0]; } wide[2] @ 0; } "
        "part[3] @ 0x10; };"
    )
    for choice in (parse_choice([f"bar0+{offset}={path}"]), choice_of({f"bar0+{offset}": path})):
        if fits:
            found = find_maps(choice, IDS, SIZES, read).maps["bar0"].load()
            assert found.find("part[0].wide[0]").offset == offset + 0x10
            continue
        with pytest.raises(
            DescriptionError,
            match=rf"own.rdl: part\.wide at {offset + 0x10:#x} must lie at a multiple of its "
            rf"access width, 8 bytes; it is read from bar0\+{offset:#x} on",
        ):
            find_maps(choice, IDS, SIZES, read)


def test_a_region_that_the_device_does_not_have(tmp_path: Path) -> None:
    path = written(tmp_path, "own.rdl")
    with pytest.raises(UsageError, match=r"the device has no bar5; it has bar0, bar2, config"):
        find_maps(parse_choice([f"bar5={path}"]), IDS, SIZES, read)


def test_a_file_that_is_found_and_is_wrong_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "1234:11e8.rdl").write_text("addrmap {")
    with pytest.raises(DescriptionError, match=r"1234:11e8.rdl:1: "):
        sources(Choice(), tmp_path)


def test_where_a_user_puts_descriptions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/somewhere")
    assert user_folders() == (
        Path("/somewhere/barfs/registers"),
        Path("/etc/barfs/registers"),
    )
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert user_folders()[0] == Path("/home/me/.config/barfs/registers")
