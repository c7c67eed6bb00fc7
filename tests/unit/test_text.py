# SPDX-License-Identifier: MIT
"""Names that others chose, whatever bytes they hold, are shown, sent as JSON and read back."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import barfs
from barfs.attached.mounts import MountInfo
from barfs.errors import UsageError
from barfs.fuse.tree import Directory, Link, Text, Tree
from barfs.host.inventory import Function, to_json, to_table
from barfs.host.mountinfo import mounts, unescape
from barfs.host.pci_ids import Ids, Names
from barfs.layout import Layout, LayoutError
from barfs.text import (
    dump_json,
    printable,
    printable_lines,
    shell_word,
    take_all_text,
    unicode,
    with_hex,
)
from tests.support import DEADLINE
from tests.unit.fake_machine import BDF

NAMES = {
    b"usb-DONN\xc9ES": r"usb-DONN\xc9ES",
    b"a\rb": r"a\x0db",
    b"form\x0cfeed": r"form\x0cfeed",
    "nel\u0085".encode(): r"nel\xc2\x85",
    "line\u2028para\u2029".encode(): r"line\xe2\x80\xa8para\xe2\x80\xa9",
    "right\u202eleft".encode(): r"right\xe2\x80\xaeleft",
    b"\x1b]0;title\x07\x1b[31m": r"\x1b]0;title\x07\x1b[31m",
    b"two\nlines": r"two\x0alines",
    "café 漢字".encode(): "café 漢字",
    b"back\\slash": "back\\slash",
}


@pytest.mark.parametrize(("name", "shown"), NAMES.items(), ids=NAMES.values())
def test_what_cannot_be_printed_is_shown_as_bytes(name: bytes, shown: str) -> None:
    assert printable(os.fsdecode(name)) == shown


def test_a_lone_surrogate_that_no_byte_made() -> None:
    assert printable("\ud800") == r"\xed\xa0\x80"
    assert unicode("\ud800") == r"\xed\xa0\x80"


@pytest.mark.parametrize("name", [*NAMES, b"it's \\x \xc9'", b"a b", b"$(x)"])
def test_a_shell_reads_the_word_that_is_shown(name: bytes) -> None:
    word = shell_word(os.fsdecode(name))
    assert printable(word) == word
    result = subprocess.run(
        ["bash", "-c", f"printf %s {word}"], capture_output=True, check=True, timeout=DEADLINE
    )
    assert result.stdout == name


def test_lines_stay_lines() -> None:
    assert printable_lines("a\x1b\nb\r\n") == "a\\x1b\nb\\x0d\n"


@pytest.mark.parametrize("name", NAMES, ids=NAMES.values())
def test_json_can_be_sent_and_keeps_what_is_text(name: bytes) -> None:
    text = os.fsdecode(name)
    found = json.loads(dump_json({"name": [text], text: (1, None)}).encode().decode())
    assert found == {"name": [unicode(text)], unicode(text): [1, None]}
    assert found["name"][0].encode() == (b"usb-DONN\\xc9ES" if b"\xc9" in name else name)


def test_numbers_that_jq_would_round() -> None:
    number = (1 << 64) - 1
    assert with_hex(value=number) == {"value": number, "value_hex": "0xffffffffffffffff"}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_stream_takes_what_its_encoding_does_not_have(encoding: str) -> None:
    data = io.BytesIO()
    stream = io.TextIOWrapper(data, encoding=encoding)
    take_all_text(stream)
    print("é漢", file=stream, flush=True)
    shown = {"ascii": rb"\xc3\xa9\xe6\xbc\xa2", "latin-1": b"\xe9" rb"\xe6\xbc\xa2"}
    assert data.getvalue() == shown.get(encoding, "é漢".encode()) + b"\n"


def test_a_closed_stream_is_left_alone() -> None:
    take_all_text(None)


def escaped(name: bytes) -> bytes:
    """As the kernel does in mountinfo (fs/proc_namespace.c: mangle)."""
    for byte in b"\\ \t\n":
        name = name.replace(bytes([byte]), b"\\%03o" % byte)
    return name


def mountinfo(proc: Path, *lines: bytes) -> Path:
    (proc / "self").mkdir(parents=True)
    (proc / "self/mountinfo").write_bytes(b"".join(line + b"\n" for line in lines))
    return proc


@pytest.mark.parametrize("name", NAMES, ids=NAMES.values())
def test_mounts_of_any_name(tmp_path: Path, name: bytes) -> None:
    field = escaped(name)
    odd = b"22 1 0:9 / /mnt/%s rw shared:1 - fuse.%s %s rw" % (field, field, field)
    proc = mountinfo(tmp_path, odd, b"23 1 0:10 / /data rw - ext4 /dev/sda rw")
    first, second = mounts(proc)
    assert os.fsencode(first.mountpoint) == b"/mnt/" + name
    assert os.fsencode(first.source) == name
    assert os.fsencode(first.fstype) == b"fuse." + name
    assert (str(second.mountpoint), second.device) == ("/data", "0:10")


def test_lines_that_are_no_mounts_are_left_out(tmp_path: Path) -> None:
    lines = b"", b"22 1 0:9 /", b"22 1 0:9 / /a rw - ", b"23 1 0:9 / /b rw - tmpfs  rw"
    assert [entry.mountpoint for entry in mounts(mountinfo(tmp_path, *lines))] == [Path("/b")]


def test_octal_numbers_are_bytes_of_a_name() -> None:
    assert unescape(rb"\303\251\040\011\012\134x \777 \8") == "é \t\n\\x \\777 \\8"


@pytest.mark.parametrize("name", NAMES, ids=NAMES.values())
def test_the_description_of_a_mount_comes_back(name: bytes) -> None:
    text = os.fsdecode(name)
    info = MountInfo(7, {"0000:01:00.0": f"vfio-user:/{text}"}, f"/{text}.trace")
    sent = info.to_text().encode()
    assert sent.count(b"\n") == 1
    assert MountInfo.from_text(sent) == info
    json.dumps(json.loads(sent), ensure_ascii=False).encode()  # every name has an encoding


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b"{}",
        b'{"pid": 1, "devices": {"../../etc": "x"}, "trace": null}',
        b'{"pid": 1, "devices": {}, "trace": 1}',
        b'{"pid": 1, "devices": {}, "trace": "a\\u0000b"}',
        b'{"pid": 1, "devices": {}, "trace": "\\udcc9"}',
        b'{"pid": 1, "devices": {}, "trace": "x", "bytes": {"x": "0g"}}',
        b'{"pid": 1, "devices": {}, "trace": "x", "bytes": 7}',
        b'{"pid": 1, "devices": [], "trace": null}',
    ],
)
def test_a_mount_that_says_nonsense(text: bytes) -> None:
    with pytest.raises(UsageError):
        MountInfo.from_text(text)


def test_a_layout_of_somebody_else() -> None:
    head = "# barfs layout v1: bar0 of x\u2028y"
    with pytest.raises(LayoutError, match="not a barfs layout"):
        Layout.from_text(head)


def function(mounted: bytes, driver: bytes) -> Function:
    where = Path(os.fsdecode(mounted))
    return Function(BDF, Ids(1, 2, 0), Names(), os.fsdecode(driver), 12, None, None, where, None)


@pytest.mark.parametrize(("name", "shown"), NAMES.items(), ids=NAMES.values())
def test_the_list_keeps_its_lines_and_columns(name: bytes, shown: str) -> None:
    found = [function(b"/mnt/" + name, name), function(b"/mnt", b"vfio-pci")]
    heading, odd, plain = to_table(found).removesuffix("\n").split("\n")
    assert f" {shown} " in odd
    assert f" /mnt/{shown} " in odd
    assert odd[heading.index("GROUP") :].startswith("12")
    assert plain[heading.index("GROUP") :].startswith("12")
    assert json.loads(to_json(found))[0]["driver"] == unicode(os.fsdecode(name))


SHOW = """
import os, sys
from barfs.text import printable, unicode
print(ascii(printable(os.fsdecode(b"\\xc3\\xa9\\xc9\\x9b"))))
print(ascii(unicode(os.fsdecode(b"\\xc3\\xa9"))))
"""


def test_where_names_of_files_are_ascii() -> None:
    result = subprocess.run(
        [sys.executable, "-c", SHOW],
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "'\\\\xc3\\\\xa9\\\\xc9\\\\x9b'\n'\\xe9'\n"


def test_texts_and_links_of_a_device_keep_their_bytes() -> None:
    with barfs.open("demo") as device:
        device.attributes["label"] = os.fsdecode(b"Slot \xc9\r\n")
        device.links = {"driver": os.fsdecode(b"drivers/\xc9\x1b")}
        tree = Tree()
        tree.add(device)
    (directory,) = tree.bus.children.values()
    assert isinstance(directory, Directory)
    label, driver = directory.children[b"label"], directory.children[b"driver"]
    assert isinstance(label, Text)
    assert label.content == b"Slot \xc9\r\n"
    assert isinstance(driver, Link)
    assert driver.target.endswith(b"/drivers/\xc9\x1b")
