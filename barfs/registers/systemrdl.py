# SPDX-License-Identifier: MIT
"""SystemRDL 2.0, by way of systemrdl-compiler: its elaborated tree becomes the model.

Rule 1: the compiler is imported when a description has to be compiled, and not before: that takes
        a tenth of a second.
Rule 2: what PCI cannot do or the tools read in different ways is refused where it is written: a
        bridge, bits that count from the most significant one, and Perl, which would be run.
"""

import atexit
import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from barfs.registers.errors import DescriptionError
from barfs.registers.model import Block, Field, Memory, Node, Register, Value, children_of
from barfs.registers.names import ModelError
from barfs.registers.report import Compiled, Report, check_file

if TYPE_CHECKING:
    from systemrdl import node
    from systemrdl.compiler import RDLCompiler
    from systemrdl.messages import Severity
    from systemrdl.source_ref import SourceRefBase

WHOLE = "barfs_whole_register"
"""The field that an importer gives to a register that has none; SystemRDL wants one."""
_PLAIN = frozenset({"rw", "r", "w", "rw1", "w1"})
_NOTHING_NEW = "aborted due to previous errors"
_EFFECTS = frozenset(
    {"onread", "rclr", "rset", "onwrite", "woclr", "woset", "singlepulse", "encode", "reset"}
)


def compile_systemrdl(path: Path) -> Compiled:
    """The last addrmap that the file defines. Raises DescriptionError."""
    report = Report(path)
    compiler = load_compiler(report)
    with own_errors(report, compiler):
        info = compiler.compile_file(str(path))
        top = compiler.elaborate().top
        root = to_model(top, report)
    report.check()
    files = (path, *map(Path, sorted(info.included_files)))
    return Compiled(root, tuple(dict.fromkeys(files)), tuple(report.warnings))


def load_compiler(report: Report) -> "RDLCompiler":
    """A compiler whose messages go into the report. Raises DescriptionError without the extra."""
    compiler = import_extra("systemrdl", report)
    messages = importlib.import_module("systemrdl.messages")

    class Printer(messages.MessagePrinter):  # type: ignore[name-defined,misc]
        def print_message(
            self, severity: "Severity", text: str, src_ref: "SourceRefBase | None"
        ) -> None:
            if text.endswith(_NOTHING_NEW):
                return
            tell = report.error if severity >= messages.Severity.ERROR else report.warn
            tell(line_of(src_ref) or 1, text, path_of(src_ref))

    made: RDLCompiler = compiler.RDLCompiler(message_printer=Printer())
    return made


def import_extra(name: str, report: Report) -> Any:
    """A package of the extra. colorama, which it loads, replaces stdout and stderr at once."""
    streams, had_colorama = (sys.stdout, sys.stderr), "colorama" in sys.modules
    try:
        return importlib.import_module(name)
    except ImportError:
        raise report.fail(
            0,
            "a description in this language needs barfs[registers]; "
            "install it: pip install 'barfs[registers]'",
        ) from None
    finally:
        if not had_colorama and "colorama" in sys.modules:
            sys.stdout, sys.stderr = streams
            atexit.unregister(sys.modules["colorama"].initialise.reset_all)


@contextlib.contextmanager
def own_errors(report: Report, compiler: "RDLCompiler") -> Iterator[None]:
    """Turn what the compiler raises into the report's errors, and keep it from running Perl and
    from reading an included file that is too large."""
    perl: Any = importlib.import_module("systemrdl.preprocessor.perl_preprocessor")
    source_ref: Any = importlib.import_module("systemrdl.source_ref")
    tokenize, begin = perl.PerlPreprocessor.tokenize, perl.PerlPreprocessor.__init__

    def begin_within_limits(self: Any, env: Any, path: str, *rest: Any) -> None:
        check_file(Path(path))
        begin(self, env, path, *rest)

    def tokenize_without_perl(self: Any) -> Any:
        tokens = tokenize(self)
        for kind, start, end in tokens:
            if kind == "perl":
                where = source_ref.DirectSourceRef(self.path, start, end)
                compiler.msg.fatal("Perl is not run; save what the preprocessor makes of it", where)
        return tokens

    perl.PerlPreprocessor.tokenize = tokenize_without_perl
    perl.PerlPreprocessor.__init__ = begin_within_limits
    try:
        yield
    except DescriptionError:
        raise
    except OSError as error:
        raise report.fail(0, error.strerror or str(error), error.filename) from None
    except UnicodeDecodeError:
        raise report.fail(0, "must be UTF-8 text") from None
    except RecursionError:
        raise report.fail(0, "must be nested less deeply") from None
    except Exception as error:  # the compiler's own, which it has told, or a fault in it
        report.check()
        raise report.fail(0, f"the compiler failed: {type(error).__name__}: {error}") from error
    finally:
        perl.PerlPreprocessor.tokenize = tokenize
        perl.PerlPreprocessor.__init__ = begin


def path_of(src_ref: "SourceRefBase | None") -> str | None:
    return getattr(src_ref, "path", None)


def line_of(src_ref: "SourceRefBase | None") -> int:
    return getattr(src_ref, "line", 0)


def to_model(top: "node.AddrmapNode", report: Report, name: str = "") -> Block:
    """The block of an elaborated addrmap, at offset 0; errors go into the report."""
    return _Converter(report).block(top, name)


class _Converter:
    def __init__(self, report: Report) -> None:
        self._report = report
        self._parts: dict[tuple[Field, ...], tuple[Field, ...]] = {}
        self._values: dict[Any, tuple[Value, ...]] = {}
        self._big_endian = False

    def block(self, block: "node.AddrmapNode | node.RegfileNode", name: str | None = None) -> Block:
        outer, inst = self._big_endian, block.inst
        kind = block.component_type_name
        if kind == "addrmap":
            if block.get_property("bridge"):
                self._error(
                    block,
                    f"{block.inst_name} is a bridge, with a map for each of its buses; describe "
                    "the map that the BAR shows",
                )
            if block.get_property("bigendian") or block.get_property("littleendian"):
                self._big_endian = bool(block.get_property("bigendian"))
        nodes = list(self._nodes(block))
        self._big_endian = outer
        return Block(
            block.inst_name if name is None else name,
            block.raw_address_offset,
            block.size,
            children_of(nodes),
            tuple(block.array_dimensions or ()),
            block.array_stride or 0,
            inst.properties.get("desc") or "",
        )

    def _nodes(self, parent: "node.Node") -> Iterator[Node]:
        for child in parent.children():
            kind = child.component_type_name
            try:
                made: Node | None = None
                if kind == "reg":
                    made = self._register(child)  # type: ignore[arg-type]
                elif kind in ("addrmap", "regfile"):
                    made = self.block(child)  # type: ignore[arg-type]
                elif kind == "mem":
                    made = self._memory(child)  # type: ignore[arg-type]
            except ModelError as error:
                self._error(child, str(error))
            else:
                if made is not None:
                    yield made

    def _memory(self, memory: "node.MemNode") -> Memory:
        return Memory(
            memory.inst_name,
            memory.raw_address_offset,
            memory.size,
            1 << max(memory.get_property("memwidth") // 8 - 1, 0).bit_length(),
            children_of(self._nodes(memory)),
            memory.is_sw_readable,
            memory.is_sw_writable,
            tuple(memory.array_dimensions or ()),
            memory.array_stride or 0,
            memory.inst.properties.get("desc") or "",
        )

    def _register(self, register: "node.RegNode") -> Register | None:
        if register.is_msb0_order:
            self._error(
                register,
                f"the bits of {register.inst_name} must count from the least significant one, like "
                "[7:0], not [0:7] (lsb0, not msb0)",
            )
            return None
        parts = tuple(part for each in register.fields() if (part := self._field(each)))
        if not parts:
            return None  # hardware's alone
        return Register(
            register.inst_name,
            register.raw_address_offset,
            register.get_property("regwidth") // 8,
            self._parts.setdefault(parts, parts),
            register.get_property("accesswidth") // 8,
            tuple(register.array_dimensions or ()),
            register.array_stride or 0,
            register.inst.properties.get("desc") or "",
            register.external,
            self._big_endian,
            self._big_endian,
        )

    def _field(self, field: "node.FieldNode") -> Field | None:
        # Asking for a property costs more than all else here, and most have their default.
        properties = field.inst.properties
        access = field.get_property("sw").name
        if access not in _PLAIN:
            return None
        readable, writable = access[0] == "r", "w" in access
        name = "" if field.inst_name == WHOLE else field.inst_name
        if not _EFFECTS & properties.keys():
            return Field(
                name, field.low, field.width, readable, writable,
                write_once=access.endswith("1"), description=properties.get("desc") or "",
            )  # fmt: skip
        onread, onwrite = field.get_property("onread"), field.get_property("onwrite")
        reset = field.get_property("reset")
        return Field(
            name,
            field.low,
            field.width,
            readable,
            writable,
            onread.name if onread and readable else None,
            onwrite.name if onwrite and writable else None,
            bool(field.get_property("singlepulse")),
            access.endswith("1"),
            reset if isinstance(reset, int) else None,
            self._enumeration(field.get_property("encode")),
            properties.get("desc") or "",
        )

    def _enumeration(self, encode: Any) -> tuple[Value, ...]:
        if encode is None:
            return ()
        if encode not in self._values:
            self._values[encode] = tuple(
                Value(member.name, int(member.value), member.rdl_desc or "") for member in encode
            )
        return self._values[encode]

    def _error(self, where: "node.Node", text: str) -> None:
        source = where.inst_src_ref or where.def_src_ref
        self._report.error(line_of(source) or 1, text, path_of(source))
