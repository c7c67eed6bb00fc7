# SPDX-License-Identifier: MIT
"""Names of registers: paths, files, patterns, and what lies at an offset."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs.registers.children import Children
from barfs.registers.errors import NoSuchName
from barfs.registers.model import Block, Field, Node, Register, children_of
from barfs.registers.names import LONGEST_NAME, ModelError, indices, unique_names
from barfs.registers.places import Place, RegisterMap

WORD = (Field("", 0, 32),)


def register(name: str, offset: int = 0, **more: int | tuple[int, ...]) -> Register:
    return Register(name, offset, 4, WORD, **more)  # type: ignore[arg-type]


def a_map(*nodes: Node) -> RegisterMap:
    return RegisterMap(Block.of("", 0, nodes), "test")


CTRL = Register(
    "ctrl", 0, 4, (Field("enable", 0, 1), Field("mode", 1, 2)), description="starts a channel"
)
CARD = a_map(
    register("id"),
    Block.of(
        "dma",
        0x100,
        [
            Block.of("chan", 0, [CTRL, register("status", 4)], dims=(12,), stride=8),
            register("grid", 0x80, dims=(2, 3), stride=4),
        ],
    ),
)


@pytest.mark.parametrize(
    ("path", "name", "files", "offset"),
    [
        ("id", "id", "id", 0),
        ("dma.chan[2].ctrl", "dma.chan[2].ctrl", "dma/chan2/ctrl", 0x110),
        ("dma/chan11/ctrl", "dma.chan[11].ctrl", "dma/chan11/ctrl", 0x158),
        ("dma.chan2.ctrl.mode", "dma.chan[2].ctrl.mode", "dma/chan2/ctrl", 0x110),
        ("dma/chan2/ctrl.mode", "dma.chan[2].ctrl.mode", "dma/chan2/ctrl", 0x110),
        ("dma.grid[1][2]", "dma.grid[1][2]", "dma/grid1_2", 0x194),
        ("dma/grid1_2", "dma.grid[1][2]", "dma/grid1_2", 0x194),
    ],
)
def test_a_path_names_one_place(path: str, name: str, files: str, offset: int) -> None:
    place = CARD.find(path)
    assert (place.name, place.files, place.offset) == (name, files, offset)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("dma.chan", "chan[0] to chan[11]"),
        ("dma.chan[12].ctrl", "chan[0] to chan[11]"),
        ("dma.grid[1]", "grid[0][0] to grid[1][2]"),
        ("dma.chan[0].ctrl.mod", "did you mean mode"),
        ("dma.chan[0].ctrl.mode.x", "has no x"),
        ("dma..ctrl", "empty name"),
        ("dma.chan02.ctrl", "has no chan02"),
    ],
)
def test_a_path_that_names_nothing_says_what_there_is(path: str, words: str) -> None:
    with pytest.raises(NoSuchName) as caught:
        CARD.find(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("*", 31),
        ("dma", 30),
        ("dma.*", 30),
        ("dma.chan*.status", 12),
        ("dma.chan1*.status", 3),
        ("dma.chan[*].status", 12),
        ("dma.chan[3].*", 2),
        ("dma.chan[3].*.*", 2),
        ("dma.chan?.ctrl.en*", 10),
        ("dma.grid[1][*]", 3),
        ("dma/grid1_*", 3),
        ("id", 1),
    ],
)
def test_a_pattern_matches_registers_and_fields(pattern: str, count: int) -> None:
    assert len(list(CARD.match(pattern))) == count


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(NoSuchName, match=r"dma\.x\* matches no register of test"):
        list(CARD.match("dma.x*"))


@pytest.mark.parametrize(
    "index", ["[-1]", "[0-3]", "[!0]", "[0,1]", "[01-2]", "[12]", "[]", "[", "[0", "[?]", "[1][0]"]
)
@pytest.mark.parametrize("rest", ["", ".ctrl", ".*", ".ctrl.mode"])
def test_brackets_have_an_index_and_are_no_wildcard(index: str, rest: str) -> None:
    message = re.escape(r"write an element from chan[0] to chan[11]")
    with pytest.raises(NoSuchName, match=message):
        list(CARD.match(f"dma.chan{index}{rest}"))
    with pytest.raises(NoSuchName, match=message):
        CARD.find(f"dma.chan{index}{rest}")


@pytest.mark.parametrize(
    "pattern", ["dma.chan*.ctrl.[em]*", "dma.c[h]an*", "[d]ma.*", "dma.ch?n[0-3]"]
)
def test_brackets_elsewhere_match_nothing(pattern: str) -> None:
    with pytest.raises(NoSuchName, match="matches no register"):
        list(CARD.match(pattern))


def test_files_of_a_block() -> None:
    names = list(CARD.find("dma.chan[0]").names())
    assert names == ["ctrl", "ctrl.enable", "ctrl.mode", "status"]
    assert list(CARD.root.names()) == ["id", "dma"]


@pytest.mark.parametrize(
    ("nodes", "names"),
    [
        # An element and a register of one name.
        ([register("x", 0, dims=(2,), stride=4), register("x1", 8)], ["x[0]", "x[1]", "x1"]),
        # Elements of two arrays: x1 + 0 and x + 10.
        (
            [register("x", 0, dims=(11,), stride=4), register("x1", 64, dims=(1,), stride=4)],
            [*(f"x[{i}]" for i in range(11)), "x1[0]"],
        ),
        # The same two, too short to meet.
        (
            [register("x", 0, dims=(2,), stride=4), register("x1", 64, dims=(1,), stride=4)],
            ["x0", "x1", "x10"],
        ),
        ([register("x", 0, dims=(1, 1), stride=4), register("x0_0", 8)], ["x[0][0]", "x0_0"]),
    ],
)
def test_two_nodes_never_share_a_file_name(nodes: list[Node], names: list[str]) -> None:
    assert list(a_map(*nodes).root.names()) == names


NAMES = st.text("x1_0", min_size=1, max_size=4).map(lambda text: f"x{text}")
ARRAYS = st.dictionaries(
    NAMES, st.sampled_from([(), (1,), (2,), (12,), (2, 2), (1, 11)]), min_size=1, max_size=6
)


@given(ARRAYS)
def test_every_file_name_leads_back_to_its_node(arrays: dict[str, tuple[int, ...]]) -> None:
    children: Children[Node] = children_of(
        register(name, dims=dims, stride=4 if dims else 0) for name, dims in arrays.items()
    )
    names = list(children.file_names())
    assert len({name for name, _number, _index in names}) == len(names)
    for name, number, index in names:
        assert children.look_up(name) == (number, index)
        if index:
            bracketed = children.names[number] + "".join(f"[{each}]" for each in index)
            assert children.look_up(bracketed) == (number, index)


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.sampled_from([(), (3,), (2, 2)]), st.integers(4, 12)),
        max_size=6,
    ),
    st.integers(0, 120),
    st.integers(1, 16),
)
def test_what_lies_at_an_offset(
    shapes: list[tuple[int, tuple[int, ...], int]], offset: int, size: int
) -> None:
    nodes = [
        register(f"r{i}_", 4 * at, dims=dims, stride=4 * stride if dims else 0)
        for i, (at, dims, stride) in enumerate(shapes)
    ]
    registers = a_map(Block.of("b", 0x10, nodes)) if nodes else a_map()
    found = {place.path for place in registers.at(offset, size)}
    expected = {
        place.path
        for place in registers.registers()
        if place.offset < offset + size and place.offset + 4 > offset
    }
    assert found == expected


def test_a_lookup_makes_only_the_nodes_on_its_way() -> None:
    made: list[int] = []

    def load(number: int) -> Node:
        made.append(number)
        return register(f"r{number}", 4 * number)

    count = 1000
    starts = [4 * number for number in range(count)]
    children: Children[Node] = Children(
        tuple(f"r{number}" for number in range(count)), {}, starts, [s + 4 for s in starts], load
    )
    registers = RegisterMap(Block("", 0, 4 * count, children), "lazy")
    assert registers.find("r500").offset == 2000
    assert registers.root.child("r7") is not None
    assert [place.path for place in registers.at(400)] == ["r100"]
    assert made == [500, 7, 100]


def test_maps_of_one_region_are_joined() -> None:
    first = RegisterMap(Block.of("", 0, [register("a")]), "a.rdl", 0)
    second = RegisterMap(Block.of("", 0, [register("b", 8)]), "b.rdl", 0x1000)
    both = RegisterMap.joined([first, second])
    assert [(place.path, place.offset) for place in both.registers()] == [("a", 0), ("b", 0x1008)]
    with pytest.raises(ModelError, match="the name a must be given once"):
        RegisterMap.joined([first, first])


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a.b", "a b", "1a", "ä", "a\0", "a" * 101])
def test_a_name_that_is_no_identifier_is_refused(name: str) -> None:
    with pytest.raises(ModelError):
        Register(name, 0, 4, WORD)


@given(st.lists(st.text(max_size=120), max_size=8))
def test_any_names_can_be_made_unique(names: list[str]) -> None:
    made = unique_names(names)
    assert len(made) == len(names) == len(set(made))
    for name in made:
        Register(name, 0, 4, WORD)
        assert len(name) <= LONGEST_NAME


@pytest.mark.parametrize(
    "make",
    [
        lambda: Register("r", 0, 3, WORD),
        lambda: Register("r", 2, 4, WORD),
        lambda: Register("r", 0, 4, WORD, access_width=8),
        lambda: Register("r", 0, 4, ()),
        lambda: Register("r", 0, 2, WORD),
        lambda: Register("r", 0, 4, (Field("a", 0, 1), Field("a", 1, 1))),
        lambda: register("r", 0, dims=(0,), stride=4),
        lambda: register("r", 0, dims=(2,), stride=2),
        lambda: register("r", -4),
        lambda: register("r", (1 << 63) - 4, dims=(2,), stride=4),
        lambda: Field("f", 0, 0),
    ],
)
def test_facts_that_contradict_each_other_are_refused(make: type) -> None:
    with pytest.raises(ModelError):
        make()


def test_indices_run_with_the_last_the_fastest() -> None:
    assert list(indices((2, 3))) == list(itertools.product(range(2), range(3)))


def test_children_of_a_place() -> None:
    kinds = [(type(place.node).__name__, place.path) for place in CARD.root.children()]
    assert kinds == [("Register", "id"), ("Block", "dma")]
    chan: Place | None = CARD.find("dma").child("chan3")
    assert chan is not None
    assert chan.child("ctrl.mode") == CARD.find("dma.chan[3].ctrl.mode")
    assert chan.child("ctrl.nothing") is None
