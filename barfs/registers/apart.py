# SPDX-License-Identifier: MIT
"""Compiling in a process of its own, which gives back all memory that it took.

systemrdl-compiler keeps its parse trees for as long as its process lives: 6 GB for 100,000
registers that are each spelled out. A mount lives for weeks.
"""

import marshal
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from barfs.registers import packed
from barfs.registers.compiler import compile_description
from barfs.registers.errors import DescriptionError
from barfs.text import printable

_PROGRAM = "from barfs.registers.apart import main; main()"


@dataclass(frozen=True, slots=True)
class Packed:
    """A compiled description as bytes: `packed` reads them."""

    data: bytes
    files: tuple[Path, ...]
    warnings: tuple[str, ...]


def compile_apart(path: Path) -> Packed:
    """The map of a file, as `compile_description` makes it. Raises DescriptionError."""
    # -P and a path of our own: the folder that barfs is started in has no say in what is imported.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        result = subprocess.run(
            [sys.executable, "-P", "-c", _PROGRAM, path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            check=False,
        )
    except OSError as error:
        raise DescriptionError(
            f"{printable(path)}: {printable(sys.executable)}, which compiles it, cannot be run: "
            f"{error.strerror}"
        ) from None
    if result.returncode:
        raise DescriptionError(f"{printable(path)}: {_ending(result)}")
    lines, data, files, warnings = marshal.loads(result.stdout)
    if lines:
        raise DescriptionError(*lines)
    return Packed(data, tuple(map(Path, files)), warnings)


def _ending(result: "subprocess.CompletedProcess[bytes]") -> str:
    if result.returncode < 0:
        name = signal.Signals(-result.returncode).name
        return f"the compiler was ended by {name}; is there enough memory for it?"
    last = result.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    return f"the compiler failed: {printable(last)}"


def main() -> None:
    """What the process does: a record on stdout, of errors or of a map."""
    # What a compiler prints must not get into the record.
    output, sys.stdout = sys.stdout.buffer, sys.stderr
    try:
        compiled = compile_description(Path(sys.argv[1]))
    except DescriptionError as error:
        record = marshal.dumps((error.lines, b"", (), ()))
    else:
        files = tuple(map(str, compiled.files))
        record = marshal.dumps(((), packed.pack(compiled.root), files, compiled.warnings))
    output.write(record)
    output.flush()
    os._exit(0)  # what the compiler holds takes longer to take apart than to give back
