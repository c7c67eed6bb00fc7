# SPDX-License-Identifier: MIT
"""IP-XACT (IEEE 1685-2009, 2014 and 2022), by way of peakrdl-ipxact onto systemrdl-compiler.

Rule 1: what the importer would leave out in silence is put into a form that it takes (registers
        without fields, the access policies and arrays of 2022), or is an error or a warning.
Rule 2: every message has the line of its element; the importer itself knows only the file.
Rule 3: a number may be a parameter whose value is one. Expressions are refused.
Rule 4: one memory map is the root, of several each is a block.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from barfs.registers.model import Block
from barfs.registers.names import ModelError, check_name, unique_names
from barfs.registers.report import Compiled, Report
from barfs.registers.systemrdl import WHOLE, import_extra, load_compiler, own_errors, to_model
from barfs.registers.xml_reader import Element

_POLICIES = (("accessPolicies", "accessPolicy"), ("fieldAccessPolicies", "fieldAccessPolicy"))
_FROM_POLICY = ("access", "modifiedWriteValue", "readAction", "testable", "reserved")
_LEFT_OUT = ("bank", "subspaceMap", "memoryRemap")
_REFERENCES = (
    "addressBlockDefinitionRef",
    "registerFileDefinitionRef",
    "registerDefinitionRef",
    "fieldDefinitionRef",
    "memoryMapDefinitionRef",
    "fieldAccessPolicyDefinitionRef",
    "enumerationDefinitionRef",
)
_WIDTHS = (8, 16, 32, 64)


def import_component(component: Element, report: Report) -> Compiled:
    """The memory maps of a `<component>`. Raises DescriptionError."""
    compiler = load_compiler(report)
    package = import_extra("peakrdl_ipxact", report)
    _Component(component, report).prepare()
    report.check()
    with own_errors(report, compiler):
        importer = _importer(package, compiler, component, report)
        found = importer.import_component()
        report.check()
        maps = [to_model(compiler.elaborate(kind).top, report, name) for kind, name in found]
    report.check()
    return Compiled(_root(maps, component, report), (report.path,), tuple(report.warnings))


def _root(maps: list[Block], component: Element, report: Report) -> Block:
    if not maps:
        raise report.fail(component.line, "must have a memoryMap with registers")
    if len(maps) == 1:
        return Block("", 0, maps[0].size, maps[0].children, description=maps[0].description)
    try:
        return Block.of("", 0, maps)
    except ModelError as error:
        raise report.fail(component.line, str(error)) from None


class _Component:
    """The tree, changed in place into what the importer understands."""

    def __init__(self, component: Element, report: Report) -> None:
        self._report = report
        self._component = component
        self._space = component.tag[: component.tag.rindex("}") + 1] if "}" in component.tag else ""

    def prepare(self) -> None:
        for endianness in self._all("endianness"):
            if (endianness.text or "").strip() == "big":
                self._report.error(
                    endianness.line, "the bus must be little-endian; barfs reads it as PCI has it"
                )
        for kind in _LEFT_OUT:
            for element in self._all(kind):
                self._report.warn(element.line, f"<{kind}> {self._name(element)} is left out")
        for kind in _REFERENCES:
            for element in self._all(kind):
                self._report.error(
                    element.line, f"<{kind}> is not followed; write the definition where it is used"
                )
        for kind in ("addressBlock", "registerFile", "register", "field"):
            for element in self._all(kind):
                self._flatten(element)
        for block in self._all("addressBlock"):
            self._give_fields(block)

    def _flatten(self, element: Element) -> None:
        for holder, single in _POLICIES:
            policies = element.findall(f"{self._space}{holder}/{self._space}{single}")
            # The one that is for no mode in particular, else the first.
            plain = [each for each in policies if each.find(f"{self._space}modeRef") is None]
            for policy in (plain or policies)[:1]:
                element.extend(
                    each for each in policy if each.tag.rpartition("}")[2] in _FROM_POLICY
                )
        array = element.find(f"{self._space}array")
        if isinstance(array, Element):
            stride = array.find(f"{self._space}stride")
            if isinstance(stride, Element):
                self._check_stride(element, stride)
            element.extend(array.findall(f"{self._space}dim"))
        dims = element.findall(f"{self._space}dim")
        if element.tag.endswith("}field") and dims:
            self._report.error(element.line, "<field> must not be an array; write out each field")

    def _check_stride(self, element: Element, stride: Element) -> None:
        size = element.findtext(f"{self._space}size") or element.findtext(f"{self._space}range")
        if (stride.text or "").strip() != (size or "").strip():
            self._report.warn(stride.line, "<stride> is taken to be the size of the element")

    def _give_fields(self, block: Element) -> None:
        for register in block.iter(f"{self._space}register"):
            assert isinstance(register, Element)
            if register.find(f"{self._space}field") is not None:
                continue
            field = self._new(register, "field")
            for name, text in (
                ("name", WHOLE),
                ("bitOffset", "0"),
                ("bitWidth", register.findtext(f"{self._space}size") or "0"),
            ):
                self._new(field, name).text = text

    def _new(self, parent: Element, tag: str) -> Element:
        made = Element(self._space + tag)
        made.line = parent.line
        parent.append(made)
        return made

    def _all(self, tag: str) -> Iterator[Element]:
        """Of the registers' part of the component; others have elements of the same names."""
        for element in list(self._component.iter(self._space + tag)):
            assert isinstance(element, Element)
            yield element

    def _name(self, element: Element) -> str:
        return (element.findtext(f"{self._space}name") or "").strip()


def _importer(package: Any, compiler: Any, component: Element, report: Report) -> Any:
    """An importer of the tree that was read, which knows the lines of its elements."""
    sources: Any = importlib.import_module("systemrdl.source_ref")
    definitions: Any = importlib.import_module("systemrdl.component")

    class Line(sources.FileSourceRef):  # type: ignore[misc]
        def __init__(self, path: Path, line: int) -> None:
            super().__init__(str(path))
            self.line = line

    class Importer(package.IPXACTImporter):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(compiler)
            self._element = component
            self._width = 0
            self._map = ""
            namespace = component.tag.rpartition("}")[0]
            self.ns = f"{namespace}}}" if namespace else ""
            self._parameters = {
                name: each.findtext(f"{self.ns}value") or ""
                for each in component.iter(f"{self.ns}parameter")
                if (name := each.get("parameterId"))
            }
            self._found: list[tuple[str, str]] = []

        @property
        def default_src_ref(self) -> Any:
            return Line(report.path, self._element.line)

        def import_component(self) -> list[tuple[str, str]]:
            """The address maps that it defines: their types, and the names of the memory maps."""

            class Tree:
                getroot = staticmethod(lambda: component)

            self.get_component(Tree)
            names = unique_names(self._name_of(each) for each in self._maps())
            for element, name in zip(self._maps(), names, strict=True):
                self._at(element)
                self._map = name
                self.import_memoryMap(element, name, None)
            return self._found

        def _maps(self) -> list[Element]:
            return [
                each
                for each in component.iterfind(f"{self.ns}memoryMaps/{self.ns}memoryMap")
                if isinstance(each, Element)
            ]

        def _name_of(self, element: Element) -> str:
            return (element.findtext(f"{self.ns}name") or "").strip()

        def _at(self, element: Element) -> None:
            self._element = element

        def register_root_component(self, definition: Any) -> None:
            # A memory map, whose name here is NAME__NAME, and each of its blocks, which nothing
            # has to be elaborated of.
            if isinstance(definition, definitions.Addrmap) and self._element.tag.endswith("Map"):
                self._found.append((definition.type_name, self._map))
                super().register_root_component(definition)

        def get_sanitized_element_name(self, element: Element) -> str | None:
            name: str | None = super().get_sanitized_element_name(element)
            if name and name != WHOLE:
                self._at(element)
                name = unique_names([name])[0]
                check_name(name)
            return name

        def flatten_element_values(self, element: Element) -> Any:
            self._at(element)
            return super().flatten_element_values(element)

        def parse_integer(self, text: str) -> int:
            try:
                return int(super().parse_integer(self._parameters.get(text.strip(), text)))
            except ValueError:
                raise report.fail(
                    self._line_of(text),
                    f"must have a number in the place of {text.strip()[:60]!r}; expressions are "
                    "not computed",
                ) from None

        def _line_of(self, text: str) -> int:
            lines = (
                each.line
                for each in self._element.iter()
                if isinstance(each, Element) and each.text == text
            )
            return next(lines, self._element.line)

        def parse_boolean(self, text: str) -> bool:
            try:
                return bool(super().parse_boolean(text))
            except ValueError:
                raise report.fail(
                    self._line_of(text), f"must be true or false, not {text.strip()[:60]!r}"
                ) from None

        def parse_addressBlock(self, element: Element, prefix: str) -> Any:
            outer = self._element
            text = element.findtext(f"{self.ns}width") or "0"
            self._at(element)
            self._width = self.parse_integer(text)
            try:
                return super().parse_addressBlock(element, prefix)
            finally:
                self._element = outer

        def parse_registerFile(self, element: Element) -> Any:
            outer = self._element
            try:
                return super().parse_registerFile(element)
            finally:
                self._element = outer

        def parse_register(self, element: Element) -> Any:
            outer = self._element
            try:
                made = super().parse_register(element)
                if made is not None and self._width in _WIDTHS:
                    width = min(self._width, made.properties["regwidth"])
                    self.assign_property(made, "accesswidth", width)
                return made
            finally:
                self._element = outer

        def parse_field(self, name: str, element: Element, *rest: Any) -> Any:
            outer = self._element
            try:
                return super().parse_field(name, element, *rest)
            finally:
                self._element = outer

    return Importer()
