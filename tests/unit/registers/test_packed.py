# SPDX-License-Identifier: MIT
"""Maps as bytes, and the cache of compiled descriptions."""

import multiprocessing
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs.registers import apart, cache
from barfs.registers.apart import Packed, compile_apart
from barfs.registers.compiler import compile_description
from barfs.registers.errors import DescriptionError
from barfs.registers.model import Block, Field, Memory, Node, Register, Value, children_of
from barfs.registers.packed import pack, unpack
from barfs.registers.places import RegisterMap

RDL = "addrmap card { reg { field {} value[31:0]; } %s; };"
INCLUDING = '`include "word.rdl"\naddrmap card { word a; };'

NAMES = st.text("abc_", min_size=1, max_size=3)
FIELDS = st.builds(
    Field,
    st.just("f"),
    st.integers(0, 20),
    st.integers(1, 12),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, "rclr"]),
    st.sampled_from([None, "woclr"]),
    st.booleans(),
    st.booleans(),
    st.none() | st.integers(0, 5),
    st.lists(st.builds(Value, NAMES, st.integers(0, 9), st.text(max_size=3)), max_size=2).map(
        tuple
    ),
    st.text(max_size=5),
)
REGISTERS = st.builds(
    lambda name, field, dims, text, external: Register(
        name, 8, 4, (field,), 2, dims, 4 if dims else 0, text, external
    ),
    NAMES,
    FIELDS,
    st.sampled_from([(), (3,), (2, 2)]),
    st.text(max_size=5),
    st.booleans(),
)


def one_of_a_name(nodes: list[Node]) -> list[Node]:
    return list({node.name: node for node in nodes}.values())


def blocks(nodes: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    inside = st.lists(nodes, max_size=3).map(one_of_a_name)
    return st.builds(lambda name, own: Block.of(name, 0, own), NAMES, inside) | st.builds(
        lambda name, own: Memory(name, 0, 64, 4, children_of(own)), NAMES, inside
    )


@given(st.lists(st.recursive(REGISTERS, blocks, max_leaves=6), max_size=4).map(one_of_a_name))
def test_what_is_packed_comes_back(nodes: list[Node]) -> None:
    root = Block.of("", 0, nodes)
    assert unpack(pack(root)) == root


def test_equal_fields_are_kept_once() -> None:
    parts = tuple(Field(f"field{number}", number, 1) for number in range(32))
    one, many = (
        len(pack(Block.of("", 0, [Register(f"r{n}", 4 * n, 4, parts) for n in range(count)])))
        for count in (1, 11)
    )
    assert many - one < one


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def compiled_files(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The descriptions that were compiled, in the order."""
    seen: list[Path] = []

    def compile_and_tell(path: Path) -> Packed:
        seen.append(path)
        return compile_apart(path)

    monkeypatch.setattr(cache, "compile_apart", compile_and_tell)
    return seen


def names(path: Path) -> list[str]:
    return [place.path for place in RegisterMap(cache.load(path).root, "").registers()]


def entry(home: Path) -> Path:
    (found,) = (home / "cache" / "barfs").iterdir()
    return found


def test_a_description_is_compiled_once(home: Path, compiled_files: list[Path]) -> None:
    path = home / "card.rdl"
    path.write_text(RDL % "a")
    assert [names(path), names(path)] == [["a"], ["a"]]
    assert len(compiled_files) == 1
    status = entry(home).stat()
    assert stat.S_IMODE(status.st_mode) & 0o077 == 0
    assert stat.S_IMODE(entry(home).parent.stat().st_mode) == 0o700


def test_a_change_of_any_file_is_compiled(home: Path, compiled_files: list[Path]) -> None:
    path, included = home / "card.rdl", home / "word.rdl"
    path.write_text(INCLUDING)
    included.write_text("reg word { field {} value[31:0]; };")
    assert names(path) == ["a"]
    included.write_text("reg word { field {} other[31:0]; };")
    assert cache.load(path).root == compile_description(path).root
    path.write_text(INCLUDING.replace("word a", "word b"))
    assert names(path) == ["b"]
    assert len(compiled_files) == 3
    entry(home)  # and there is one of them still
    included.unlink()
    with pytest.raises(DescriptionError):
        cache.load(path)


def spoil_contents(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def be_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def be_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def be_link(path: Path) -> None:
    other = path.with_suffix(".other")
    path.rename(other)
    path.symlink_to(other)


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_contents,
        be_fifo,
        be_folder,
        be_link,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(os.urandom(500)),
        lambda path: path.chmod(0o666),
        lambda path: path.chmod(0o620),
    ],
)
def test_an_entry_that_cannot_be_trusted_is_not_used(
    home: Path, compiled_files: list[Path], spoil: object
) -> None:
    path = home / "card.rdl"
    path.write_text(RDL % "a")
    assert names(path) == ["a"]
    assert callable(spoil)
    spoil(entry(home))
    assert names(path) == ["a"]
    assert len(compiled_files) == 2


def test_an_entry_of_another_user_is_not_used(
    home: Path, compiled_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home / "card.rdl"
    path.write_text(RDL % "a")
    names(path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert names(path) == ["a"]
    assert len(compiled_files) == 2


def test_an_entry_that_others_write_is_read_whole(home: Path, compiled_files: list[Path]) -> None:
    """Mounts that start at once compile one description, and each writes the entry."""
    path = home / "card.rdl"
    path.write_text(RDL % "a")
    parts = (Field("value", 0, 32),)
    entries = [Register(f"r{number}", 4 * number, 4, parts) for number in range(2000)]
    made = Packed(pack(Block.of("", 0, entries)), (path,), ())
    place = cache._entry(path)
    assert place is not None
    cache._write(place, path, made)
    ended = threading.Event()
    partial = []

    def read() -> None:
        while not ended.is_set():
            found = cache._read(place, path)
            if found is None or len(found.root.children) != len(entries):
                partial.append(found)

    readers = [threading.Thread(target=read) for _ in range(2)]
    process = multiprocessing.get_context("spawn").Process
    writers = [process(target=write_often, args=(place, path, made)) for _ in range(2)]
    for reader in readers:
        reader.start()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    ended.set()
    for reader in readers:
        reader.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert partial == []
    assert [file.name for file in place.parent.iterdir()] == [place.name]


def write_often(place: Path, path: Path, made: Packed) -> None:
    for _ in range(100):
        cache._write(place, path, made)


def test_a_cache_that_cannot_be_written_does_no_harm(
    home: Path, compiled_files: list[Path]
) -> None:
    path = home / "card.rdl"
    path.write_text(RDL % "a")
    (home / "cache").write_text("a file, where the folder would be")
    assert [names(path), names(path)] == [["a"], ["a"]]
    assert len(compiled_files) == 2


def test_two_descriptions_of_one_content_have_an_entry_each(
    home: Path, compiled_files: list[Path]
) -> None:
    for name in ("one.rdl", "two.rdl"):
        (home / name).write_text(RDL % "a")
        names(home / name)
        names(home / name)
    assert [path.name for path in compiled_files] == ["one.rdl", "two.rdl"]


def test_warnings_are_told_again(home: Path) -> None:
    path = home / "core.xml"
    path.write_text(
        '<component xmlns="http://www.accellera.org/XMLSchema/IPXACT/1685-2014"><name>c</name>'
        "<memoryMaps><memoryMap><name>m</name><bank><name>lost</name></bank>"
        "<addressBlock><name>b</name><baseAddress>0</baseAddress><range>4</range>"
        "<width>32</width><register><name>a</name><addressOffset>0</addressOffset>"
        "<size>32</size></register></addressBlock></memoryMap></memoryMaps></component>"
    )
    first, second = cache.load(path), cache.load(path)
    assert first.warnings == second.warnings
    assert first.warnings == (f"{path}:1: warning: <bank> lost is left out",)


def test_what_has_no_end_is_not_read(home: Path) -> None:
    fifo, huge = home / "fifo.rdl", home / "huge.rdl"
    os.mkfifo(fifo)
    huge.touch()
    os.truncate(huge, (64 << 20) + 1)
    endless = home / "endless.json"
    endless.symlink_to("/dev/zero")
    for path, words in (
        (fifo, "fifo.rdl: must be a regular file"),
        (endless, "(endless.json|/dev/zero): must be a regular file"),
        (Path("/dev/zero"), "/dev/zero: must be a regular file"),
        (huge, "huge.rdl: must have at most 64 MiB"),
    ):
        with pytest.raises(DescriptionError, match=words):
            cache.load(path)
        with pytest.raises(DescriptionError, match=words):
            compile_description(path)
        including = home / "top.rdl"
        including.write_text(f'`include "{path}"\naddrmap top {{ word a; }};')
        with pytest.raises(DescriptionError, match=f"{words}|Could not find"):
            cache.load(including)


def test_an_included_file_that_became_a_fifo_is_not_read(home: Path) -> None:
    top, word = home / "top.rdl", home / "word.rdl"
    top.write_text('`include "word.rdl"\naddrmap top { word a; };')
    word.write_text("reg word { field {} value[31:0]; };")
    assert cache.load(top).root.children.names == ("a",)
    word.unlink()
    os.mkfifo(word)
    with pytest.raises(DescriptionError, match=r"word\.rdl"):
        cache.load(top)


def test_a_path_that_leads_nowhere(home: Path) -> None:
    loop = home / "loop.rdl"
    loop.symlink_to(loop)
    for path in (loop, home / "gone.rdl"):
        with pytest.raises(DescriptionError, match=rf"{path.name}: "):
            cache.load(path)


def test_a_compiler_that_ends_early_is_one_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home / "card.rdl"
    path.write_text(RDL % "a")
    for program, words in (
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL; is there enough memory"),
        ("raise MemoryError", "the compiler failed: MemoryError"),
    ):
        monkeypatch.setattr(apart, "_PROGRAM", program)
        with pytest.raises(DescriptionError, match=words) as caught:
            cache.load(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_what_lies_in_the_current_folder_is_not_imported(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "systemrdl.py").write_text("raise SystemExit('imported')")
    (home / "card.rdl").write_text(RDL % "a")
    monkeypatch.chdir(home)
    assert names(Path("card.rdl")) == ["a"]
