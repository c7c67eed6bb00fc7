# SPDX-License-Identifier: MIT
"""XML from strangers, as a tree whose elements know their line.

Rule 1: no entity of the file's own is expanded, and nothing is loaded: a declaration of one is an
        error. Depth and size have limits.
"""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from xml.parsers import expat

from barfs.registers.report import Report, read_limited

_DEEPEST = 64


class Element(ElementTree.Element):
    """An element with the line on which it begins."""

    __slots__ = ("line",)

    line: int


def read(path: Path, report: Report) -> Element:
    """The root element; names with a namespace are `{URI}name`. Raises DescriptionError."""
    data = read_limited(path)
    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True
    builder = _Builder(parser, report)
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.EntityDeclHandler = builder.entity
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise report.fail(error.lineno, f"not XML: {expat.ErrorString(error.code)}") from None
    except (ValueError, LookupError) as error:  # an encoding that expat does not have
        raise report.fail(parser.CurrentLineNumber, f"not XML: {error}") from None
    assert builder.root is not None
    return builder.root


class _Builder:
    def __init__(self, parser: expat.XMLParserType, report: Report) -> None:
        self.root: Element | None = None
        self._parser = parser
        self._report = report
        self._open: list[Element] = []
        self._last: Element | None = None

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._open) >= _DEEPEST:
            raise self._report.fail(
                self._parser.CurrentLineNumber, f"elements must be nested at most {_DEEPEST} deep"
            )
        element = Element(_tag(name), {_tag(key): value for key, value in attributes.items()})
        element.line = self._parser.CurrentLineNumber
        if self._open:
            self._open[-1].append(element)
        else:
            self.root = element
        self._open.append(element)
        self._last = None

    def end(self, _name: str) -> None:
        self._last = self._open.pop()

    def text(self, text: str) -> None:
        if self._last is not None:
            self._last.tail = (self._last.tail or "") + text
        elif self._open:
            self._open[-1].text = (self._open[-1].text or "") + text

    def entity(self, name: str, *_rest: object) -> None:
        raise self._report.fail(
            self._parser.CurrentLineNumber,
            f"must not declare entities, as it does with {name}; write its text where it is used",
        )


def _tag(name: str) -> str:
    return "{" + name if "}" in name else name
