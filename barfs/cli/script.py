# SPDX-License-Identifier: MIT
"""`barfs script`: many accesses in one process.

Rule 1: a line is what the command of its first word takes, parsed by that command's parser and done
        by its code, so both accept, print and refuse the same. The first line that fails ends the
        script, with its number and the command's exit code.
Rule 2: a script in a regular file is checked as a whole before its first access: a typing error at
        its end must not leave a device half set up. Names are looked up when their line runs, since
        a description may depend on the device. Lines from a pipe or a terminal run as they come.
Rule 3: a device is opened when its first line runs, and closed at the end; in between it keeps its
        state, as in a mount.
Rule 4: nothing that is printed waits for what may take long: the next line of a pipe, `sleep`, or
        `poll`.
"""

import argparse
import contextlib
import io
import os
import re
import select
import shlex
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TextIO

from barfs.cli import registers
from barfs.cli.edge import STANDARD_OUTPUT
from barfs.cli.help import explain
from barfs.cli.operands import Session, is_name
from barfs.cli.parser import Parser
from barfs.cli.register_file import Registers
from barfs.cli.register_operations import (
    PREPARE,
    Operation,
    rehearse,
)
from barfs.errors import BarfsError, UsageError
from barfs.text import quoted
from barfs.text.system_errors import line as text_of
from barfs.text.system_errors import reason

if TYPE_CHECKING:
    from barfs.cli.register_operations import Output

_RECEIVE = 1 << 16
_PIECE = 1 << 13
_LONGEST_LINE = 1 << 20
_LONGEST_SLEEP = 1e9
_MOST_KEPT = 1 << 16
"""How many lines, and forms of a line, are kept in their parsed form."""


class ScriptError(BarfsError):
    """A line of a script has failed."""


def add_script(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        default="-",
        help="the script; - (the default) is standard input",
    )
    explain(
        parser,
        "barfs script bring-up.barfs",
        "barfs script -",
        details="Each line is md, mw, rmw or poll with the arguments of that command, or sleep "
        "SECONDS. # begins a comment; words are quoted as in a shell, and nothing is expanded. The "
        "first line that fails ends the script: the error names it, and the exit code is its own. "
        "A regular file is checked as a whole before the first access; lines from a pipe or a "
        "terminal run as they come. A device that no barfs mount holds is opened once, and closed "
        "at the end of the script.",
    )
    parser.set_defaults(run=_script)


def _script(choice: argparse.Namespace) -> int:
    output: Output = sys.stdout if sys.stdout.isatty() else _Lines(sys.stdout)
    with contextlib.ExitStack() as stack:
        name, fd = "standard input", 0
        if choice.file != "-":
            name, fd = choice.file, _open(choice.file)
            stack.callback(os.close, fd)
        script = _Script(name, stack.enter_context(Session()), output)
        lines: Iterable[str] = _lines(name, fd, output)
        stack.callback(output.flush)  # before the devices are closed, which takes long
        if _is_regular(fd):
            lines = list(lines)
            script.check(lines)
        script.run(lines)
    return 0


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{path}: {reason(error)}") from error


def _is_regular(fd: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:  # reading will tell
        return False


def _lines(name: str, fd: int, output: "Output") -> Iterator[str]:
    """The lines of an open file, without their ends. Raises ScriptError."""
    rest = b""
    while data := _next(name, fd, output):
        *lines, rest = (rest + data).split(b"\n")
        yield from map(os.fsdecode, lines)
        if len(rest) > _LONGEST_LINE:
            raise ScriptError(f"{name}: a line must have at most {_LONGEST_LINE} bytes")
    if rest:
        yield os.fsdecode(rest)


def _next(name: str, fd: int, output: "Output") -> bytes:
    output.flush()
    while True:
        try:
            return os.read(fd, _RECEIVE)
        except BlockingIOError:  # another process that shares it set O_NONBLOCK
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.poll()
        except OSError as error:
            raise ScriptError(f"{name}: {reason(error)}") from error


_PLAIN = re.compile(r"[ \t\r!$-&(-\[\]-~]*")
"""A line without quotes, backslashes, comments, or characters that are not ASCII."""

_TOKEN = re.compile(
    r"""[ \t\r]+ | \#.* | ( (?: [^ \t\r'"\\] | \\. | '[^']*' | "(?:[^"\\]|\\.)*" )+ )""",
    re.VERBOSE | re.DOTALL,
)


def split_line(line: str) -> list[str]:
    """The words of a line, as a shell would see them; none of a comment. Raises UsageError.

    >>> split_line("mw 'a b'/bar0 0x4 '#1'  # a comment")
    ['mw', 'a b/bar0', '0x4', '#1']
    """
    if _PLAIN.fullmatch(line):
        return line.split()
    if "\0" in line:
        raise UsageError("a line must not contain a NUL")
    words: list[str] = []
    place = 0
    while place < len(line):
        token = _TOKEN.match(line, place)
        if token is None:
            if line[place] == "\\":
                raise UsageError("the backslash at the end quotes nothing: a line is one command")
            raise UsageError(f"the quotation that begins at column {place + 1} does not end")
        if token[1] is not None:
            words.append(_unquoted(token[1]))
        place = token.end()
    return words


def _unquoted(token: str) -> str:
    """The word of a token."""
    inner = token[1:-1]
    if token == f"'{inner}'" and "'" not in inner:
        return inner
    (word,) = shlex.split(token)
    return word


class _Mark(str):
    """Takes the place of the word `number` in a form. Its text is no word, and no number."""

    number: int

    @classmethod
    def of(cls, number: int) -> "_Mark":
        mark = cls("\0")
        mark.number = number
        return mark


@dataclass(frozen=True, slots=True)
class _Form:
    """What the arguments are for lines that differ in their operands alone.

    `words` and `lists` are the arguments that take one operand, and several, with its number; a
    negative value in a list is itself.
    """

    options: dict[str, Any]
    words: list[tuple[str, int]]
    lists: list[tuple[str, list[str]]]

    @classmethod
    def of(cls, parsed: argparse.Namespace) -> "_Form":
        found = vars(parsed)
        words = {name: value.number for name, value in found.items() if isinstance(value, _Mark)}
        lists = {name: value for name, value in found.items() if isinstance(value, list)}
        options = {name: value for name, value in found.items() if name not in words | lists}
        return cls(options, [*words.items()], [*lists.items()])

    def filled(self, words: Sequence[str]) -> argparse.Namespace:
        choice = argparse.Namespace()
        values = choice.__dict__
        values.update(self.options)
        for name, number in self.words:
            values[name] = words[number]
        for name, marks in self.lists:
            values[name] = [words[one.number] if isinstance(one, _Mark) else one for one in marks]
        return choice


class _LineParser(Parser):
    """The parser of a command, whose errors do not end the process, and without `--help`."""

    def __init__(self, name: str) -> None:
        super().__init__(prog=f"barfs {name}", add_help=False)
        if name == "sleep":
            self.add_argument("seconds", metavar="SECONDS", type=float)
        else:
            getattr(registers, f"add_{name}")(self)
        self._forms: dict[tuple[str | None, ...], _Form | None] = {}

    def error(self, message: str) -> NoReturn:
        where = "" if self.prog.endswith("sleep") else f"; see {self.prog} --help"
        raise UsageError(message + where)

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """The same as `parse_args`, in a twentieth of its time. Raises UsageError.

        argparse looks no further into a word than whether it begins with `-`: lines that differ in
        their other words have one form, which is parsed with marks in their places.
        """
        key = tuple([word if word[:1] == "-" else None for word in words])
        if key not in self._forms:
            if len(self._forms) >= _MOST_KEPT:
                self._forms.clear()
            self._forms[key] = self._form(key)
        form = self._forms[key]
        return self.parse_args(words) if form is None else form.filled(words)

    def _form(self, key: Sequence[str | None]) -> _Form | None:
        """None if an operand is looked into (a number), or if the line is wrong."""
        marked = [_Mark.of(number) if word is None else word for number, word in enumerate(key)]
        try:
            return _Form.of(self.parse_args(marked))
        except UsageError:
            return None


class _Lines:
    """Standard output, in pieces of many lines: PYTHONUNBUFFERED makes each a system call."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._parts: list[str] = []
        self._size = 0

    def write(self, text: str, /) -> None:
        self._parts.append(text)
        self._size += len(text)
        if self._size >= _PIECE:
            self._hand_on()

    def flush(self) -> None:
        self._hand_on()
        self._stream.flush()

    def _hand_on(self) -> None:
        parts, self._parts, self._size = self._parts, [], 0
        self._stream.write("".join(parts))


class _Step(Protocol):
    """A line that was prepared."""

    def check(self) -> None:
        """Check what can be checked without an access. Raises BarfsError."""

    def run(self, output: "Output") -> None:
        """Raises BarfsError, OSError."""


@dataclass(slots=True)
class _Access:
    operation: Operation
    session: Session
    registers: Registers | None = None

    def check(self) -> None:
        if self.operation.target.file.path is not None:
            self._open()

    def run(self, output: "Output") -> None:
        self.operation.run(self.registers or self._open(), output)

    def _open(self) -> Registers:
        self.registers = self.session.open(self.operation.target, self.operation.flags)
        return self.registers


@dataclass(frozen=True, slots=True)
class _Rehearsal:
    operation: Operation

    def check(self) -> None:
        rehearse(self.operation, io.StringIO())

    def run(self, output: "Output") -> None:
        rehearse(self.operation, output)


@dataclass(frozen=True, slots=True)
class _Sleep:
    seconds: float

    def check(self) -> None:
        """All is checked."""

    def run(self, output: "Output") -> None:
        output.flush()
        time.sleep(self.seconds)


class _Script:
    """Runs the lines of the script `name`."""

    def __init__(self, name: str, session: Session, output: "Output") -> None:
        self._name = name
        self._session = session
        self._output = output
        self._parsers: dict[str, _LineParser] = {}
        self._kept: dict[str, _Step] = {}

    def check(self, lines: Iterable[str]) -> None:
        """Raises BarfsError for the first line that is sure to fail."""
        for number, line in enumerate(lines, 1):
            try:
                if line not in self._kept and (step := self._prepare(line, named=False)):
                    step.check()
            except (BarfsError, OSError) as error:
                raise self._failed(number, error) from error

    def run(self, lines: Iterable[str]) -> None:
        """Raises BarfsError for the first line that fails."""
        output = self._output
        for number, line in enumerate(lines, 1):
            try:
                step = self._kept.get(line) or self._prepare(line)
                if step is not None:
                    step.run(output)
            except (BarfsError, OSError) as error:
                raise self._failed(number, error) from error

    def _failed(self, number: int, error: BarfsError | OSError) -> Exception:
        if isinstance(error, OSError) and error.filename == STANDARD_OUTPUT:
            return error
        self._output.flush()
        told = text_of(error) if isinstance(error, OSError) else str(error)
        kind = UsageError if isinstance(error, UsageError) else ScriptError
        return kind(f"{self._name}:{number}: {told}")

    def _prepare(self, line: str, *, named: bool = True) -> _Step | None:
        """None for a line that does nothing, and, unless `named`, for one that needs a name."""
        words = split_line(line)
        if not words:
            return None
        parser = self._parsers.get(words[0])
        if parser is None:
            if words[0] not in _COMMANDS:
                raise UsageError(f"a line must begin with {_COMMANDS_TOLD}, not {quoted(words[0])}")
            parser = self._parsers[words[0]] = _LineParser(words[0])
        choice = parser.parse(words[1:])
        step: _Step
        if words[0] == "sleep":
            step = _sleep(choice.seconds)
        elif named or not is_name(choice.range if words[0] == "md" else choice.offset):
            operation = PREPARE[words[0]](choice, self._session)
            step = _Rehearsal(operation) if choice.dry_run else _Access(operation, self._session)
        else:
            return None
        if len(self._kept) < _MOST_KEPT:
            self._kept[line] = step
        return step


def _sleep(seconds: float) -> _Sleep:
    if not 0 <= seconds <= _LONGEST_SLEEP:
        raise UsageError(f"SECONDS must be from 0 to {_LONGEST_SLEEP:g}, not {seconds:g}")
    return _Sleep(seconds)


_COMMANDS = (*PREPARE, "sleep")
_COMMANDS_TOLD = f"{', '.join(PREPARE)} or sleep"
