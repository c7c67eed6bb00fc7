# SPDX-License-Identifier: MIT
"""Descriptions in four languages: what becomes of them, and what is refused where."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from barfs.registers.compiler import compile_description
from barfs.registers.errors import DescriptionError
from barfs.registers.model import Memory
from barfs.registers.places import RegisterMap
from barfs.registers.report import Compiled


def compiled(folder: Path, name: str, text: str) -> Compiled:
    path = folder / name
    path.write_text(text)
    return compile_description(path)


def registers(folder: Path, name: str, text: str) -> RegisterMap:
    return RegisterMap(compiled(folder, name, text).root, name)


def errors(folder: Path, name: str, text: str) -> list[str]:
    with pytest.raises(DescriptionError) as caught:
        compiled(folder, name, text)
    assert caught.value.lines == tuple(str(caught.value).split("\n"))
    return [line.removeprefix(f"{folder}/") for line in caught.value.lines]


RDL = """
enum mode_e { single = 1; burst = 2 { desc = "many at once"; }; };
addrmap card #(longint unsigned CHANNELS = 4) {
    regfile {
        reg {
            regwidth = 32;
            field { sw = rw; singlepulse; reset = 0; } enable[0:0] = 0;
            field { sw = rw; encode = mode_e; } mode[2:1] = 1;
            field { sw = rw; onwrite = wzc; hw = w; } irq[3:3];
            field { sw = w; } command[7:4];
            field { sw = r; hw = w; onread = rclr; } count[15:8];
            field { sw = rw1; } lock[16:16];
        } ctrl;
        reg { field { sw = r; hw = w; } value[63:0]; regwidth = 64; accesswidth = 32; } wide @ 8;
    } chan[CHANNELS][2] @ 0x100 += 0x20;
    external mem { mementries = 64; memwidth = 16; } buffer @ 0x1000;
    reg word { field {} value[31:0]; };
    word plain @ 0x1800;
    alias plain word again @ 0x1804;
    external word far @ 0x1808;
};
"""


def test_systemrdl(tmp_path: Path) -> None:
    found = registers(tmp_path, "card.rdl", RDL)
    ctrl = found.find("chan[3][1].ctrl")
    assert ctrl.offset == 0x100 + 7 * 0x20
    fields = {field.name: field for field in ctrl.register.fields}
    assert list(fields) == ["enable", "mode", "irq", "command", "count", "lock"]
    assert fields["enable"].singlepulse
    assert [(value.name, value.value) for value in fields["mode"].values] == [
        ("single", 1),
        ("burst", 2),
    ]
    assert (fields["mode"].low, fields["mode"].width, fields["mode"].reset) == (1, 2, 1)
    assert fields["irq"].onwrite == "wzc"
    assert fields["command"].access == "-w"
    assert (fields["count"].access, fields["count"].onread) == ("r-", "rclr")
    assert fields["lock"].write_once
    wide = found.find("chan[0][0].wide").register
    assert (wide.width, wide.access_width) == (8, 4)
    memory = found.find("buffer").node
    assert isinstance(memory, Memory)
    assert (memory.size, memory.width) == (128, 2)
    assert found.find("again").offset == 0x1804
    assert found.find("far").register.external


def test_a_big_endian_map(tmp_path: Path) -> None:
    text = """
        addrmap inner { littleendian; reg { field {} value[31:0]; } ra; };
        addrmap outer { bigendian; reg { field {} value[31:0]; } ra; inner i @ 0x10; };
    """
    found = registers(tmp_path, "ends.rdl", text)
    assert found.find("ra").register.big_endian
    assert not found.find("i.ra").register.big_endian


def test_includes_are_among_the_files(tmp_path: Path) -> None:
    (tmp_path / "common.rdl").write_text("reg word { field {} value[31:0]; };")
    result = compiled(tmp_path, "top.rdl", '`include "common.rdl"\naddrmap top { word a; };')
    assert sorted(file.name for file in result.files) == ["common.rdl", "top.rdl"]


BRIDGE = """addrmap a { reg { field {} f[8]; } ra; };
addrmap b {
    bridge;
    a x @ 0;
    a y @ 0;
};
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BRIDGE, ["bad.rdl:2: b is a bridge, with a map for each of its buses"]),
        (
            "addrmap a { reg {\n field {} f[0:7];\n} ra; };",
            ["bad.rdl:3: the bits of ra must count from the least significant one"],
        ),
        ("addrmap a {\n <% print 1; %>\n};", ["bad.rdl:2: Perl is not run"]),
        ("addrmap a {\n reg { field {} f[8]; } ra\n};", ["bad.rdl:3: "]),
        (
            "addrmap a { reg { field {} f[8]; } ra @ 0;\n reg { field {} f[8]; } s @ 0; };",
            ["bad.rdl:2: "],
        ),
        ("reg word { field {} f[8]; };", ["bad.rdl:1: Could not find any 'addrmap'"]),
        ('`include "nothing.rdl"', ["bad.rdl:1: Could not find 'nothing.rdl'"]),
        ("", ["bad.rdl:1: "]),
        (
            "addrmap a {\n reg { field {} f[8]; } " + "r" * 101 + ";\n};",
            ["bad.rdl:2: the name rrrrrrrrrrrrrrrrrrrr... must have at most 100"],
        ),
        (
            "addrmap a {\n reg { regwidth = 8; field {} a[1]; field {} b[0:0]; } ra;\n"
            " reg { regwidth = 8; field {} a[9]; } s;\n};",
            ["bad.rdl:"],
        ),
    ],
)  # fmt: skip
def test_what_systemrdl_cannot_do_is_refused_where_it_is(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    found = errors(tmp_path, "bad.rdl", text)
    assert len(found) >= len(expected)
    for line, start in zip(found, expected, strict=False):
        assert line.startswith(start)


def test_a_compiler_leaves_the_streams_and_perl_alone(tmp_path: Path) -> None:
    script = (
        "import sys; before = sys.stdout, sys.stderr\n"
        "from pathlib import Path; from barfs.registers.compiler import compile_description\n"
        "compile_description(Path(sys.argv[1]))\n"
        "assert before == (sys.stdout, sys.stderr)\n"
        "from systemrdl.preprocessor.perl_preprocessor import PerlPreprocessor\n"
        "assert PerlPreprocessor.tokenize.__module__.startswith('systemrdl')\n"
    )
    path = tmp_path / "card.rdl"
    path.write_text(RDL)
    result = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
    )
    assert (result.stdout, result.stderr) == ("", "")


@pytest.mark.parametrize(("name", "text"), [("a.rdl", RDL), ("a.xml", "<component/>")])
def test_without_the_extra_the_error_names_it(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    script = (
        "import sys; sys.modules['systemrdl'] = None\n"
        "from pathlib import Path; from barfs.registers.compiler import compile_description\n"
        "try: compile_description(Path(sys.argv[1]))\n"
        "except Exception as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
    )
    assert "needs barfs[registers]" in result.stdout
    assert result.stdout.count("\n") == 1


def ipxact(registers: str, version: str = "1685-2014", space: str = "IPXACT") -> str:
    return f"""<?xml version="1.0"?>
<ipxact:component xmlns:ipxact="http://www.accellera.org/XMLSchema/{space}/{version}">
  <ipxact:name>core</ipxact:name>
  <ipxact:memoryMaps><ipxact:memoryMap><ipxact:name>map</ipxact:name>
    <ipxact:addressBlock>
      <ipxact:name>block</ipxact:name>
      <ipxact:baseAddress>'h100</ipxact:baseAddress>
      <ipxact:range>4096</ipxact:range>
      <ipxact:width>32</ipxact:width>
{registers}
    </ipxact:addressBlock>
  </ipxact:memoryMap></ipxact:memoryMaps>
</ipxact:component>
"""


FIELD = """
      <ipxact:register><ipxact:name>ctrl</ipxact:name><ipxact:dim>3</ipxact:dim>
        <ipxact:addressOffset>0x10</ipxact:addressOffset><ipxact:size>32</ipxact:size>
        <ipxact:field><ipxact:name>irq</ipxact:name>
          <ipxact:bitOffset>4</ipxact:bitOffset><ipxact:bitWidth>2</ipxact:bitWidth>
          <ipxact:access>read-write</ipxact:access>
          <ipxact:modifiedWriteValue>oneToClear</ipxact:modifiedWriteValue>
          <ipxact:readAction>clear</ipxact:readAction>
        </ipxact:field>
      </ipxact:register>"""
POLICIES = (
    FIELD.replace(
        "<ipxact:access>", "<ipxact:fieldAccessPolicies><ipxact:fieldAccessPolicy><ipxact:access>"
    )
    .replace(
        "</ipxact:readAction>",
        "</ipxact:readAction></ipxact:fieldAccessPolicy></ipxact:fieldAccessPolicies>",
    )
    .replace(
        "<ipxact:dim>3</ipxact:dim>", "<ipxact:array><ipxact:dim>3</ipxact:dim></ipxact:array>"
    )
)


@pytest.mark.parametrize(
    ("text", "version"), [(FIELD, "1685-2014"), (FIELD, "1685-2009"), (POLICIES, "1685-2022")]
)
def test_ipxact(tmp_path: Path, text: str, version: str) -> None:
    space = "SPIRIT" if version == "1685-2009" else "IPXACT"
    text = ipxact(text, version, space)
    if space == "SPIRIT":
        text = text.replace("ipxact", "spirit").replace("accellera", "spiritconsortium")
    found = registers(tmp_path, "core.xml", text)
    place = found.find("block.ctrl[2]")
    assert place.offset == 0x100 + 0x10 + 8
    irq = place.register.field("irq")
    assert irq is not None
    assert (irq.low, irq.width, irq.onread, irq.onwrite) == (4, 2, "rclr", "woclr")


def test_ipxact_registers_without_fields_are_kept(tmp_path: Path) -> None:
    text = """<ipxact:register><ipxact:name>data</ipxact:name>
        <ipxact:addressOffset>0</ipxact:addressOffset><ipxact:size>64</ipxact:size>
        <ipxact:access>write-only</ipxact:access></ipxact:register>"""
    data = registers(tmp_path, "core.xml", ipxact(text)).find("block.data").register
    assert (data.fields, data.access, data.width, data.access_width) == ((), "-w", 8, 4)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("<ipxact:size>32", "<ipxact:size>2 ** 5", 12, "expressions are not computed"),
        ("<ipxact:access>read-write", "<ipxact:access>sometimes", 13, "Invalid value 'sometimes'"),
        ("<ipxact:bitWidth>2", "<ipxact:bitWidth>40", 13, ""),
        ("<ipxact:size>32</ipxact:size>", "", 11, "missing required tag 'size'"),
        ("<ipxact:field>", "<ipxact:fieldDefinitionRef/><ipxact:field>", 13, "is not followed"),
        ("</ipxact:field>", "", 19, "not XML: mismatched tag"),
        (
            "<ipxact:memoryMaps>",
            "<ipxact:endianness>big</ipxact:endianness><ipxact:memoryMaps>",
            4,
            "little-endian",
        ),
    ],
)
def test_what_ipxact_cannot_do_is_refused_where_it_is(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    text = ipxact(FIELD)
    assert old in text
    found = errors(tmp_path, "bad.xml", text.replace(old, new))
    assert any(each.startswith(f"bad.xml:{line}: ") and words in each for each in found), found


def svd(peripherals: str) -> str:
    return f"""<device><name>chip</name><addressUnitBits>8</addressUnitBits><width>32</width>
<size>32</size><access>read-write</access><resetValue>0</resetValue>
<peripherals>{peripherals}</peripherals></device>"""


UART = """
<peripheral><name>UART0</name><baseAddress>0xF0001000</baseAddress><registers>
<register><name>CH%s_DATA</name><dim>2</dim><dimIncrement>4</dimIncrement>
<addressOffset>0</addressOffset><readAction>modify</readAction></register>
<register><name>FLAG[%s]</name><dim>4</dim><dimIncrement>4</dimIncrement>
<addressOffset>0x10</addressOffset><fields>
<field><name>DONE</name><bitRange>[3:2]</bitRange>
<modifiedWriteValues>oneToClear</modifiedWriteValues></field>
<field><name>MODE</name><lsb>4</lsb><msb>5</msb><access>write-only</access><enumeratedValues>
<enumeratedValue><name>off</name><value>0</value></enumeratedValue>
<enumeratedValue><name>on</name><value>#1x</value></enumeratedValue></enumeratedValues></field>
<field derivedFrom="DONE"><name>AGAIN</name><bitOffset>8</bitOffset></field>
</fields></register>
<cluster><name>SUB%s</name><dim>2</dim><dimIncrement>0x10</dimIncrement>
<addressOffset>0x40</addressOffset>
<register><name>A.B</name><addressOffset>4</addressOffset><size>16</size></register></cluster>
</registers></peripheral>
<peripheral derivedFrom="UART0"><name>UART1</name><baseAddress>0xF0002000</baseAddress></peripheral>
"""


def test_svd(tmp_path: Path) -> None:
    found = registers(tmp_path, "chip.svd", svd(UART))
    places = {place.path: place.offset for place in found.registers()}
    assert places["UART0.CH1_DATA"] == 0x1004
    assert places["UART1.FLAG[3]"] == 0x201C
    assert places["UART0.SUB[1].A_B"] == 0x1054
    assert found.find("UART0.CH0_DATA").register.read_has_effects
    fields = {field.name: field for field in found.find("UART1.FLAG[0]").register.fields}
    assert (fields["DONE"].bits, fields["DONE"].onwrite) == ("3:2", "woclr")
    assert [(v.name, v.value) for v in fields["MODE"].values] == [("off", 0), ("on", 2), ("on", 3)]
    assert (fields["MODE"].access, fields["AGAIN"].onwrite, fields["AGAIN"].low) == (
        "-w",
        "woclr",
        8,
    )


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("[3:2]", "[2:3]", 9, "must end at a bit not below its first"),
        ("[3:2]", "[33:2]", 7, "must lie in the 32 bits"),
        ("oneToClear", "never", 9, "<modifiedWriteValues> must be oneToClear"),
        ("<addressOffset>0x10", "<addressOffset>ten", 7, "<addressOffset> must be a number"),
        ("<size>16", "<size>24", 18, "size must be 8, 16, 32 or 64 bits, not 24"),
        ('derivedFrom="UART0"', 'derivedFrom="UART9"', 20, "derivedFrom names no <peripheral>"),
        ('derivedFrom="UART0"', 'derivedFrom="UART1"', 20, "derivedFrom leads back"),
        ("<dim>4<", "<dim>400000000000000000000<", 7, "must lie below"),
        ("_DATA</name><dim>2<", "_DATA</name><dim>9999<", 5, "dim must be at most 4096"),
    ],
)
def test_what_svd_cannot_do_is_refused_where_it_is(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    text = svd(UART)
    assert old in text
    found = errors(tmp_path, "bad.svd", text.replace(old, new))
    assert any(each.startswith(f"bad.svd:{line}: ") and words in each for each in found), found


LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>'


@pytest.mark.parametrize("suffix", ["xml", "svd"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{LAUGHS}<device>&b;</device>", "must not declare entities, as it does with a"),
        ('<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><device/>', "entities"),
        ('<!DOCTYPE x [<!ENTITY % a SYSTEM "x.dtd"> %a;]><device/>', "entities"),
        ("<a>" * 100 + "</a>" * 100, "at most 64 deep"),
        ("<a>", "not XML"),
        ("", "not XML"),
        ("<device>\0</device>", "not XML"),
        ('<?xml version="1.0" encoding="nonsense"?><device/>', "not XML"),
        ("<other/>", "must be a"),
        ("<device/>", "must have a peripheral"),
    ],
)
def test_hostile_xml_is_refused(tmp_path: Path, suffix: str, text: str, words: str) -> None:
    found = errors(tmp_path, f"bad.{suffix}", text)
    assert len(found) == 1
    assert found[0].startswith(f"bad.{suffix}:1: ")
    assert words in found[0]


LITEX = {
    "csr_bases": {"ctrl": 0xF000_0000, "ctrl_ev": 0xF000_0800},
    "csr_registers": {
        "ctrl_reset": {"addr": 0xF000_0000, "size": 1, "type": "wo"},
        "ctrl_wide": {"addr": 0xF000_0004, "size": 3, "type": "ro"},
        "ctrl_ev_pending": {"addr": 0xF000_0804, "size": 1, "type": "rw"},
    },
    "constants": {"config_csr_data_width": 32, "config_csr_alignment": 32},
    "memories": {"csr": {"base": 0xF000_0000, "size": 0x10000, "type": "io"}},
}


def test_litex(tmp_path: Path) -> None:
    found = registers(tmp_path, "csr.json", json.dumps(LITEX))
    places = {place.path: place for place in found.registers()}
    assert {path: place.offset for path, place in places.items()} == {
        "ctrl.reset": 0,
        "ctrl.wide": 4,
        "ctrl_ev.pending": 0x804,
    }
    wide = places["ctrl.wide"].register
    assert (wide.width, wide.access_width, wide.high_first, wide.access) == (12, 4, True, "r-")
    assert places["ctrl.reset"].register.access == "-w"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"config_csr_data_width": 32', '"config_csr_data_width": 8', "--csr-data-width=32"),
        ('"type": "wo"', '"type": "xx"', "ctrl_reset: type must be rw, ro or wo, not 'xx'"),
        ('"addr": 4026531844', '"addr": "here"', "ctrl_wide must have numbers"),
        ('"size": 3', '"size": 99999', "must have 8 to 4096 bits"),
        ('"ctrl_reset"', '"other_reset"', "other_reset must be an object in one of csr_bases"),
        ('"csr_registers"', '"registers"', "must be an object with"),
        ("{", "[", "not JSON"),
        ("[" * 100_000, "", ""),
    ],
)
def test_what_litex_cannot_do_is_refused_where_it_is(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    text = json.dumps(LITEX, indent=1).replace(old, new, 1) if new else old
    (line, *_more) = errors(tmp_path, "bad.json", text)
    assert line.startswith("bad.json")
    assert words in line


def test_a_file_that_is_none_of_them(tmp_path: Path) -> None:
    assert errors(tmp_path, "card.txt", "")[0].startswith("card.txt: must end in .rdl (SystemRDL)")
    for suffix in ("rdl", "xml", "svd", "json"):
        with pytest.raises(DescriptionError, match=f"gone.{suffix}:.* No such file or directory"):
            compile_description(tmp_path / f"gone.{suffix}")
        folder = tmp_path / f"folder.{suffix}"
        folder.mkdir()
        with pytest.raises(DescriptionError, match=r"[Ii]s a directory"):
            compile_description(folder)


@pytest.mark.parametrize("suffix", ["rdl", "json"])
def test_a_file_that_is_no_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(b"\xff\xfe\x00addrmap")
    with pytest.raises(DescriptionError):
        compile_description(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("regfile { word one @ 0; } part @ 2;", "part.one at 0x2 must lie at a multiple"),
        ("regfile { word one @ 0; } part[3] @ 4 += 6;", "part.one at 0xa must lie at a multiple"),
        (
            "external mem { mementries = 4; memwidth = 32; word one @ 0; } part @ 2;",
            "part.one at 0x2 must lie at a multiple",
        ),
    ],
)
def test_a_block_whose_registers_lie_across_accesses(tmp_path: Path, text: str, words: str) -> None:
    (error,) = errors(
        tmp_path, "a.rdl", f"reg word {{ field {{}} value[31:0]; }}; addrmap x {{ {text} }};"
    )
    assert words in error
