# SPDX-License-Identifier: MIT
"""LiteX's csr.json: `csr_bases`, `csr_registers`, `constants` and `memories`.

Rule 1: addresses are those of the SoC; offsets count from the base of its memory `csr`, which is
        what a BAR shows, or from the first block where there is no such memory.
Rule 2: `size` counts words of the CSR bus. The first word has the high bits, unless LiteX was told
        otherwise (`config_csr_ordering_little`).
"""

import json
from pathlib import Path
from typing import Any

from barfs.registers.model import Block, Field, Register, children_of
from barfs.registers.names import ModelError, unique_names
from barfs.registers.report import Compiled, Report, read_limited

_WIDTHS = (8, 16, 32, 64)


def compile_litex(path: Path) -> Compiled:
    """Raises DescriptionError."""
    report = Report(path)
    text = read_limited(path)
    try:
        top = json.loads(text)
    except json.JSONDecodeError as error:
        raise report.fail(error.lineno, f"not JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise report.fail(0, "must be UTF-8 text") from None
    except (RecursionError, ValueError) as error:
        raise report.fail(0, f"not a csr.json: {error}") from None
    reader = _Reader(report, text.decode(errors="replace"))
    root = reader.root(top)
    report.check()
    return Compiled(root, (path,))


class _Reader:
    def __init__(self, report: Report, text: str) -> None:
        self._report = report
        self._text = text
        self._width = 4
        self._high_first = True

    def root(self, top: Any) -> Block:
        if not isinstance(top, dict) or not isinstance(top.get("csr_registers"), dict):
            raise self._report.fail(1, 'must be an object with "csr_registers", as LiteX writes it')
        constants, memories, bases = (
            self._object(top, key) for key in ("constants", "memories", "csr_bases")
        )
        self._bus(constants)
        blocks = {
            name: number
            for name, value in bases.items()
            if (number := self._number(name, value)) is not None
        }
        csr = memories.get("csr")
        base = self._number("csr", csr.get("base")) if isinstance(csr, dict) else None
        if base is None:
            base = min(blocks.values(), default=0)
        nodes: dict[str, list[tuple[str, dict[str, Any]]]] = {name: [] for name in blocks}
        for name, facts in top["csr_registers"].items():
            block = self._block_of(name, blocks)
            if block is None or not isinstance(facts, dict):
                self._report.error(
                    self._line(name), f"register {name} must be an object in one of csr_bases"
                )
                continue
            nodes[block].append((name, facts))
        return self._made(base, blocks, nodes)

    def _made(
        self,
        base: int,
        blocks: dict[str, int],
        nodes: dict[str, list[tuple[str, dict[str, Any]]]],
    ) -> Block:
        made = []
        clean = unique_names(blocks)
        for name, own in zip(blocks, clean, strict=True):
            rows = nodes[name]
            if not rows:
                continue
            names = unique_names(full[len(name) + 1 :] for full, _facts in rows)
            registers = [
                register
                for (full, facts), short in zip(rows, names, strict=True)
                if (register := self._register(full, short, facts, blocks[name]))
            ]
            try:
                made.append(Block.of(own, blocks[name] - base, registers))
            except ModelError as error:
                self._report.error(self._line(name), str(error))
        return Block("", 0, max((b.offset + b.size for b in made), default=0), children_of(made))

    def _register(self, full: str, name: str, facts: dict[str, Any], base: int) -> Register | None:
        address, size = (self._number(full, facts.get(key)) for key in ("addr", "size"))
        kind = facts.get("type")
        if kind not in ("rw", "ro", "wo"):
            self._report.error(self._line(full), f"{full}: type must be rw, ro or wo, not {kind!r}")
            return None
        if address is None or size is None:
            return None
        part = Field("", 0, 8 * self._width * max(size, 1), kind != "wo", kind != "ro")
        try:
            return Register(
                name,
                address - base,
                self._width * size,
                (part,),
                self._width,
                high_first=self._high_first,
            )
        except ModelError as error:
            self._report.error(self._line(full), str(error))
            return None

    def _bus(self, constants: dict[str, Any]) -> None:
        width = constants.get("config_csr_data_width", 32)
        alignment = constants.get("config_csr_alignment", 32)
        if width not in _WIDTHS or width != alignment:
            raise self._report.fail(
                self._line("config_csr_data_width"),
                f"config_csr_data_width must be the config_csr_alignment of {alignment}, not "
                f"{width}; build the SoC with --csr-data-width={alignment}",
            )
        self._width = width // 8
        ordering = str(constants.get("config_csr_ordering", "")).lower()
        self._high_first = "config_csr_ordering_little" not in constants and ordering != "little"

    def _object(self, top: dict[str, Any], key: str) -> dict[str, Any]:
        found = top.get(key, {})
        if not isinstance(found, dict):
            raise self._report.fail(self._line(key), f"{key} must be an object")
        return found

    def _block_of(self, name: str, blocks: dict[str, int]) -> str | None:
        """The block with the longest name that the register's begins with."""
        position = len(name)
        while (position := name.rfind("_", 0, position)) > 0:
            if name[:position] in blocks and position + 1 < len(name):
                return name[:position]
        return None

    def _number(self, name: str, value: Any) -> int | None:
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63:
            return value
        self._report.error(self._line(name), f"{name} must have numbers of 0 to 2**63 - 1")
        return None

    def _line(self, key: str) -> int:
        """The line on which a key is first written; json does not tell."""
        position = self._text.find(json.dumps(key))
        return self._text.count("\n", 0, position) + 1 if position >= 0 else 0
