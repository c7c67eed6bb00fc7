# SPDX-License-Identifier: MIT
"""A description with an error mounts nothing, whatever its language and wherever it is found."""

from pathlib import Path

import pytest

from tests.support import barfs, is_mounted

IPXACT = """\
<ipxact:component xmlns:ipxact="http://www.accellera.org/XMLSchema/IPXACT/1685-2014">
  <ipxact:name>bad</ipxact:name>
  <ipxact:memoryMaps><ipxact:memoryMap>
    <ipxact:name>bad</ipxact:name>
    <ipxact:addressBlock>
      <ipxact:name>block</ipxact:name><ipxact:baseAddress>0</ipxact:baseAddress>
      <ipxact:range>8</ipxact:range><ipxact:width>32</ipxact:width>
      <ipxact:register>
        <ipxact:name>a</ipxact:name><ipxact:addressOffset>0</ipxact:addressOffset>
        <ipxact:size>wide</ipxact:size>
      </ipxact:register>
    </ipxact:addressBlock>
  </ipxact:memoryMap></ipxact:memoryMaps>
</ipxact:component>
"""
SVD = """\
<device>
  <name>bad</name>
  <peripherals><peripheral>
    <name>BLOCK</name><baseAddress>0</baseAddress>
    <registers><register>
      <name>a</name>
      <addressOffset>far</addressOffset>
    </register></registers>
  </peripheral></peripherals>
</device>
"""
BAD = {
    "rdl": ("addrmap bad {\n    reg { field {} a; } r\n};\n", 2),
    "xml": (IPXACT, 10),
    "svd": (SVD, 5),
    "json": ('{\n  "csr_registers": {\n    "a": ,\n  }\n}\n', 3),
}


@pytest.mark.parametrize("way", ["option", "folder"])
@pytest.mark.parametrize("suffix", BAD)
def test_an_error_has_its_line_and_nothing_is_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, way: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "config" / "barfs" / "registers"
    folder.mkdir(parents=True)
    text, line = BAD[suffix]
    path = folder / f"1234:ba5f.{suffix}" if way == "folder" else tmp_path / f"bad.{suffix}"
    path.write_text(text)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    options = ["-o", f"registers=bar0={path}"] if way == "option" else []
    for background in ([], ["-f"]):
        result = barfs("mount", *background, *options, "demo", mountpoint)
        lines = result.stderr.splitlines()
        assert (result.returncode, result.stdout) == (2, "")
        assert f"{path}:{line}: " in lines[0]
        assert all(f"{path}:" in each for each in lines)
        assert not is_mounted(mountpoint)
    # Another description, or none, is a way out.
    result = barfs("mount", "-o", "registers=off", "demo", mountpoint)
    assert result.returncode == 0, result.stderr
    assert barfs("umount", mountpoint).returncode == 0
