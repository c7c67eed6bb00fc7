# SPDX-License-Identifier: MIT
"""`barfs run`: the program runs as if it had been started without it."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from barfs.preload import LIBRARY
from tests.support import BARFS, barfs, require
from tests.support.programs import PEEK, compiled, run_mapped


def run(*words: str | Path, **options: object) -> tuple[int, str, str]:
    result = subprocess.run(
        [*BARFS, "run", *words],
        capture_output=True,
        text=True,
        timeout=60,
        **options,  # type: ignore[call-overload]
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize("code", [0, 1, 42, 126, 127, 255])
def test_the_exit_code_is_that_of_the_command(code: int) -> None:
    assert run("sh", "-c", f"exit {code}") == (code, "", "")


def test_a_signal_ends_it_as_it_ends_the_command() -> None:
    assert run("sh", "-c", "kill -TERM $$") == (-signal.SIGTERM, "", "")


def test_the_command_is_this_process() -> None:
    with subprocess.Popen([*BARFS, "run", "sh", "-c", "echo $$"], stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        assert int(shell.stdout.read()) == shell.pid


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["echo", "-n", "--", "-h"], "-- -h"),
        (["--", "echo", "--", "-x"], "-- -x\n"),
        (["echo", "--help", "a b", ""], "--help a b \n"),
        (["printf", "%s|", "-o", "x", "--version"], "-o|x|--version|"),
    ],
)
def test_all_words_behind_the_command_are_its_own(words: list[str], printed: str) -> None:
    assert run(*words) == (0, printed, "")


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        ([], 2, "barfs: run needs a COMMAND; see barfs run --help"),
        (["--"], 2, "barfs: run needs a COMMAND; see barfs run --help"),
        (["-x", "true"], 2, "barfs run: unrecognized arguments: -x"),
        (["--", "-x"], 127, "barfs: -x: No such file or directory"),
        ([""], 127, "barfs: : No such file or directory"),
        (["no-such-command"], 127, "barfs: no-such-command: No such file or directory"),
        (["/no/such/command"], 127, "barfs: /no/such/command: No such file or directory"),
        (["/dev/null/command"], 127, "barfs: /dev/null/command: No such file or directory"),
        (["/etc/passwd"], 126, "barfs: /etc/passwd: Permission denied"),
        (["/etc"], 126, "barfs: /etc: Permission denied"),
    ],
)
def test_a_command_that_cannot_be_run(words: list[str], code: int, error: str) -> None:
    found, output, errors = run(*words)
    assert (found, output) == (code, "")
    (line,) = errors.splitlines()
    assert line.startswith(error)


def test_a_command_is_found_as_a_shell_finds_it(tmp_path: Path) -> None:
    """The first in PATH that may be run; an empty folder there is the current one."""
    for folder in ("data", "program"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tool").write_text('echo "$0" "$@"\n')
    (tmp_path / "program/tool").chmod(0o755)
    path = f"{tmp_path}/data:{tmp_path}/program:{os.environ['PATH']}"
    # Without a first line for the kernel, a shell runs it, as by execvp(3).
    assert run("tool", "1", env={**os.environ, "PATH": path}) == (
        0,
        f"{tmp_path}/program/tool 1\n",
        "",
    )
    path = f":{os.environ['PATH']}"
    inside = tmp_path / "program"
    assert run("tool", cwd=inside, env={**os.environ, "PATH": path})[:2] == (0, "tool\n")
    only = {**os.environ, "PATH": f"{tmp_path}/data"}
    assert run("tool", env=only)[0] == 126


def test_the_environment_is_as_it_was_but_for_the_library() -> None:
    before = {"A": "1", "EMPTY": "", "LANG": "C", "PATH": os.environ["PATH"]}
    code, output, errors = run("env", env=before)
    assert (code, errors) == (0, "")
    expected = {**before, "LD_PRELOAD": str(LIBRARY)}
    assert dict(line.split("=", 1) for line in output.splitlines()) == expected


def test_a_preloaded_library_stays_in_front_and_ours_is_added_once(tmp_path: Path) -> None:
    for before in ("libc.so.6", "libc.so.6 libm.so.6", f"{LIBRARY}:libc.so.6"):
        environment = {**os.environ, "LD_PRELOAD": before}
        _, output, _ = run(*BARFS, "run", "printenv", "LD_PRELOAD", env=environment)
        ours = "" if str(LIBRARY) in before else f":{LIBRARY}"
        assert output == f"{before}{ours}\n"


def test_a_broken_pipe_ends_the_command() -> None:
    """Python ignores SIGPIPE, and a program would inherit that."""
    words = " ".join([*BARFS, "run", "yes"])
    script = f"{words} | head -n 1 >&2; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == (f"{128 + signal.SIGPIPE}\n", "y\n")


def test_an_ignored_signal_stays_ignored() -> None:
    script = 'trap "" INT TERM; exec "$@"'
    words = ["sh", "-c", "kill -INT $$; kill -TERM $$; echo alive"]
    command = ["sh", "-c", script, "sh", *BARFS, "run", *words]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "alive\n"


@pytest.mark.parametrize("fd", [0, 1, 2])
def test_a_stream_that_is_closed_stays_closed(fd: int, tmp_path: Path) -> None:
    report = tmp_path / "report"
    script = f'exec "$@" {fd}>&-'
    check = f'test -e /proc/self/fd/{fd}; echo $? >"{report}"'
    command = ["sh", "-c", script, "sh", *BARFS, "run", "sh", "-c", check]
    subprocess.run(command, check=False, stdin=subprocess.DEVNULL)
    assert report.read_text() == "1\n"


def test_a_program_without_the_dynamic_linker_runs_and_is_warned_of(tmp_path: Path) -> None:
    program = compiled(PEEK, tmp_path, "-static", name="static")
    result = run_mapped(program)
    assert result.returncode == 2  # what peek says of no arguments
    assert result.stderr == f"barfs: {program} is statically linked, and cannot map regions\n"
    assert run_mapped(compiled(PEEK, tmp_path)).stderr == ""


def test_a_setuid_program_is_warned_of(tmp_path: Path) -> None:
    require("fuse", os.geteuid() == 0, "files of another user take root")
    program = Path(shutil.copy(compiled(PEEK, tmp_path), tmp_path / "tool"))
    os.chown(program, 65534, 65534)
    program.chmod(0o4755)
    line = f"barfs: {program} runs with the rights of another user or group, and cannot map regions"
    assert run_mapped(program).stderr == f"{line}\n"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", 0),
        (b"\x7fELF", 126),
        (b"\x7fELF\x02\x01" + b"\xff" * 58, 126),
        (b"\x7fELF\x01\x02" + b"\0" * 58, 126),
        (b"\x7fELF\x02\x01" + b"\x7f" * 99, 126),
        (b"exit 3", 3),
    ],
    ids=range(6),
)
def test_any_file_may_be_tried(tmp_path: Path, content: bytes, code: int) -> None:
    program = tmp_path / "program"
    program.write_bytes(content)
    program.chmod(0o755)
    result = run_mapped(program)
    lines = [f"barfs: {program}: Exec format error"] if code == 126 else []
    assert result.returncode == code
    assert result.stderr.splitlines()[-1:] == lines


def test_the_library_may_be_in_a_folder_with_blanks(tmp_path: Path) -> None:
    """LD_PRELOAD cannot hold that, LD_LIBRARY_PATH can."""
    folder = tmp_path / "a folder"
    shutil.copytree(LIBRARY.parents[1], folder / "barfs", ignore=shutil.ignore_patterns("*.pyc"))
    environment = {**os.environ, "PYTHONPATH": str(folder), "LD_LIBRARY_PATH": "/nonexistent"}
    words = [sys.executable, "-m", "barfs", "run", "cat", "/proc/self/maps"]
    result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"{folder}/barfs/preload/barfs_map.so\n" in result.stdout


def test_help_says_how_to_use_it() -> None:
    result = barfs("run", "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("usage: barfs run [-h] COMMAND [ARGUMENT...]\n")
