# SPDX-License-Identifier: MIT
"""`barfs script`: the commands' output, the accesses, and what ends a script."""

import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import BARFS, DEADLINE, Served, barfs, ended, mounted, served, wait_until

GAP = 0x4000
MAGIC = "00001000: 66726162                               barf\n"


@dataclass(frozen=True)
class Bench:
    server: Served
    bar0: Path
    folder: Path

    def run(self, *lines: str) -> subprocess.CompletedProcess[str]:
        """Run a script in a file; `@` in it is bar0."""
        file = self.folder / "script"
        file.write_text("\n".join(lines).replace("@", str(self.bar0)))
        self.server.accesses()
        return barfs("script", file)

    def told(self, *lines: str) -> tuple[int, str]:
        """The exit code and the error of a script that makes no access."""
        result = self.run(*lines)
        assert self.server.accesses() == []
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1
        error = result.stderr.strip()
        assert error.startswith(f"barfs: {self.folder}/script:")
        return result.returncode, error.removeprefix(f"barfs: {self.folder}/script:")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("script")
    with served(folder) as server, mounted(folder, server.name) as mount:
        yield Bench(server, mount.device() / "bar0", folder)


def test_lines_print_what_the_commands_print(bench: Bench) -> None:
    lines = [
        ["md", "@", "0x1000+0x24"],
        ["md", "-b", "@", "0x1001-0x1003"],
        ["md", "@", "0x1000[15:8]"],
        ["md", "--json", "@", "0x1000+8"],
        ["md", "@", "ID"],
        ["mw", "@", f"{GAP:#x}", "0xcafe", "-1"],
        ["mw", "--json", "-w", "@", f"{GAP:#x}", "7"],
        ["rmw", "@", f"{GAP:#x}[7:4]", "5"],
        ["rmw", "--json", "@", f"{GAP:#x}", "0xff00", "0x1200"],
        ["poll", "@", f"{GAP:#x}", "0xff00", "0x1200"],
        ["md", "-n", "@", "0x1000+8"],
    ]
    result = bench.run(*(" ".join(words) for words in lines))
    made = bench.server.accesses()
    assert (result.returncode, result.stderr) == (0, "")
    alone = [barfs(*(word.replace("@", str(bench.bar0)) for word in words)) for words in lines]
    assert result.stdout == "".join(one.stdout for one in alone)
    assert made == bench.server.accesses()


def test_a_line_is_one_access_of_its_width_each_time_that_it_runs(bench: Bench) -> None:
    result = bench.run(
        f"mw -b @ {GAP:#x} 1",
        f"  md -w @ {GAP:#x}  # the same register",
        "",
        f"md -w '@' {GAP:#x}",
        f"md -w @ {GAP:#x}",
        f"md -w @ {GAP:#x}",
    )
    assert result.returncode == 0
    assert result.stdout.count("00004000: ") == 4
    made = [line.split()[:4] for line in bench.server.accesses()]
    assert made == [["w", "bar0", f"{GAP:#x}", "1"]] + 4 * [["r", "bar0", f"{GAP:#x}", "2"]]


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("md", 2, "the following arguments are required: FILE, RANGE; see barfs md --help"),
        ("md --help", 2, "the following arguments are required: FILE, RANGE; see barfs md --help"),
        ("reg @ ID", 2, "a line must begin with md, mw, rmw, poll or sleep, not 'reg'"),
        ("md '@ 0", 2, "the quotation that begins at column 4 does not end"),
        ("md @ 0 \\", 2, "the backslash at the end quotes nothing: a line is one command"),
        ("md @ 0x1", 2, "0x1+0x4 must be aligned 4-byte registers; -b, -w, -l and -q choose "),
        ("md @ 0x10000", 2, "0x10000+0x4 exceeds the region, which has 0x10000 bytes"),
        ("md @ 0x10+x", 2, "'x' is not a number; write it like 256, 0x100, 4k or 1M"),
        ("md @x 0", 2, "must be a file or DEVICE:REGION, like 0000:01:00.0:bar0"),
        ("mw -b @ 0 256", 2, "256 does not fit in 1 bytes"),
        ("rmw @ 0 1", 2, "use OFFSET MASK VALUE or OFFSET[HIGH:LOW] VALUE"),
        ("poll @ 0 1 1 --timeout soon", 2, "argument --timeout: invalid float value: 'soon'"),
        ("sleep -1", 2, "SECONDS must be from 0 to 1e+09, not -1"),
        ("sleep nan", 2, "SECONDS must be from 0 to 1e+09, not nan"),
        ("sleep 1s", 2, "argument SECONDS: invalid float value: '1s'"),
        ("md /dev/null 0", 2, "0x0+0x4 exceeds the region"),
    ],
)
def test_a_script_is_checked_before_its_first_access(
    bench: Bench, line: str, code: int, error: str
) -> None:
    status, told = bench.told("md @ 0x1000", f"mw @ {GAP:#x} 1", "", line, "md @ 0")
    assert (status, told.partition(" ")[0]) == (code, "4:")
    assert error in told


def test_the_first_line_that_fails_ends_a_script(bench: Bench) -> None:
    result = bench.run(
        "md @ 0x1000",
        f"mw @ {GAP:#x} 0",
        f"poll @ {GAP:#x} 1 1 --timeout 0.05",
        "md @ 0x1000",
    )
    assert (result.returncode, result.stdout) == (1, MAGIC)
    told = f"{bench.folder}/script:3: {bench.bar0}: {GAP:#x} is 0x00000000 after 0.05 s; "
    assert result.stderr.startswith(f"barfs: {told}")
    assert result.stderr.count("\n") == 1


def test_a_name_is_looked_up_when_its_line_runs(bench: Bench) -> None:
    result = bench.run("md @ 0x1000", "md @ NO_SUCH_NAME", "md @ 0x1000")
    assert (result.returncode, result.stdout) == (2, MAGIC)
    assert result.stderr.startswith(f"barfs: {bench.folder}/script:2: NO_SUCH_NAME: the map has")
    # An error of another kind after it is found before all.
    assert bench.told("md @ 0x1000", "md @ NO_SUCH_NAME", "md -z @ ID")[1].startswith("3: ")


def test_names_of_registers_and_fields(bench: Bench) -> None:
    lines = ["md @ ID", "md @ SCRATCH", "rmw @ SCRATCH 0xff 0x5a", "md @ SCRATCH", "md -q @ ID"]
    result = bench.run(*lines)
    alone = [barfs(*line.replace("@", str(bench.bar0)).split()) for line in lines[1:2]]
    assert (result.returncode, result.stderr) == (0, "")
    printed = result.stdout.splitlines()
    assert printed[0] == printed[4] == "00000000: 66726162                               barf"
    assert printed[3] == alone[0].stdout.rstrip("\n")
    assert printed[3].split()[1].endswith("5a")


@pytest.mark.parametrize("words", [["script"], ["script", "-"]])
def test_lines_of_a_pipe_run_as_they_come(bench: Bench, words: list[str]) -> None:
    """Each answer comes before the next line is sent."""
    with subprocess.Popen(
        [*BARFS, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(3):
            process.stdin.write(f"md {bench.bar0} 0x1000\n".encode())
            process.stdin.flush()
            assert process.stdout.readline().decode() == MAGIC
        process.stdin.write(f"md {bench.bar0} 0x1000\nmd {bench.bar0}".encode())
        process.stdin.close()
        assert process.stdout.read().decode() == MAGIC
        assert process.wait(DEADLINE) == 2
        assert process.stderr.read().startswith(b"barfs: standard input:5: the following arg")


def test_standard_input_that_is_a_file_is_checked_as_a_whole(bench: Bench) -> None:
    file = bench.folder / "input"
    file.write_text(f"mw {bench.bar0} {GAP:#x} 1\nnonsense\n")
    bench.server.accesses()
    with file.open() as stream:
        result = subprocess.run(
            [*BARFS, "script"], stdin=stream, capture_output=True, text=True, check=False
        )
    assert result.returncode == 2
    assert result.stderr.startswith("barfs: standard input:2: a line must begin with")
    assert bench.server.accesses() == []


def test_lines_of_a_terminal(bench: Bench) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "r+b", buffering=0) as terminal:
        process = subprocess.Popen([*BARFS, "script"], stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        seen = b""
        for _ in range(2):
            terminal.write(f"md {bench.bar0} 0x1000[7:0]\n".encode())
            while not seen.endswith(b"00001000[7:0]: 62\r\n"):
                seen += terminal.read(4096)
            seen = b""
        terminal.write(b"\4")
        assert process.wait(DEADLINE) == 0


@pytest.mark.parametrize("waiting", ["sleep 1000", "poll @ 0x4000 1 1 --timeout 1000"])
def test_what_is_printed_does_not_wait_and_a_signal_ends_a_script(
    bench: Bench, waiting: str
) -> None:
    file = bench.folder / "waiting"
    lines = ["md @ 0x1000", "mw @ 0x4000 0", waiting, "mw @ 0x4000 2"]
    bench.server.accesses()
    file.write_text("\n".join(lines).replace("@", str(bench.bar0)))
    process = subprocess.Popen(
        [*BARFS, "script", str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == MAGIC
        # Not at once, or the signal hits the write that printed this.
        if waiting.startswith("poll"):
            log = bench.server.log
            wait_until(lambda: log.read_text().count("r bar0 0x4000") > 1, "the polling")
        else:
            state = Path(f"/proc/{process.pid}/wchan")
            wait_until(lambda: "nanosleep" in state.read_text(), "the sleep")
        process.send_signal(signal.SIGINT)
        assert ended(process) == 130
        assert (process.stdout.read(), process.stderr.read()) == ("", "")
    assert not any(line.startswith("w") and line.endswith("2") for line in bench.server.accesses())


def test_a_device_is_opened_once_and_keeps_its_state(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        file = tmp_path / "script"
        bar = f"{server.name}:bar"
        file.write_text(f"mw {bar}0 0x4 0xcafe\nmd {bar}0 0x4\nmd {bar}2 0x0[7:0]\nmd {bar}0 0x4\n")
        result = barfs("script", file)
    assert (result.returncode, result.stdout.count("0000cafe")) == (0, 2)
    assert result.stderr == f"opened {server.name}\n"


def test_a_region_that_a_device_lacks(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        file = tmp_path / "script"
        file.write_text(f"md {server.name}:bar0 0x1000\nmd {server.name}:bar1 0\n")
        result = barfs("script", file)
    assert (result.returncode, result.stdout) == (2, MAGIC)
    assert f"{file}:2: ffff:00:00.0 has no bar1; it has bar0, bar2," in result.stderr


@pytest.mark.parametrize("text", [b"", b"\n\n", b"# nothing\n", b"\r\n# nothing\r\n"])
def test_a_script_may_do_nothing(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "script").write_bytes(text)
    result = barfs("script", tmp_path / "script")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_names_of_any_bytes(tmp_path: Path) -> None:
    data = os.fsencode(tmp_path) + b"/d\xff a#\xc3\xa4"
    with open(data, "wb") as file:
        file.write(bytes(range(16)))
    script = tmp_path / "script"
    script.write_bytes(b"md '" + data + b"' 0\nmd " + data.replace(b" ", b"\\ ") + b" 4\nmd \xff 0")
    result = barfs("script", script)
    assert result.returncode == 2
    assert f"{script}:3: \\xff must be a file or DEVICE:REGION" in result.stderr
    script.write_bytes(script.read_bytes().rpartition(b"\n")[0])
    result = barfs("script", script)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 2


@pytest.mark.parametrize(
    ("name", "code", "error"),
    [
        ("absent", 2, "absent: No such file or directory"),
        (".", 1, "Is a directory"),
    ],
)
def test_a_script_that_cannot_be_read(tmp_path: Path, name: str, code: int, error: str) -> None:
    result = barfs("script", tmp_path / name)
    assert result.returncode == code
    assert result.stderr.count("\n") == 1
    assert error in result.stderr


def test_closed_and_full_streams(bench: Bench) -> None:
    file = bench.folder / "long"
    file.write_text(f"md {bench.bar0} 0x1000\n" * 5000)
    run = f'{" ".join(BARFS)} script "$0"'
    for script, code, error in (
        (f"{run} >/dev/full", 1, "barfs: standard output: no space left on the device; free some"),
        (f"{run} >&-", 1, "barfs: standard output: Bad file descriptor"),
        (f"set -o pipefail; {run} | head -n 1 >/dev/null", 1, ""),
        (f"{run.replace('$0', '-')} <&-", 1, "barfs: standard input: Bad file descriptor"),
    ):
        result = subprocess.run(
            ["bash", "-c", script, str(file)], capture_output=True, text=True, check=False
        )
        assert (result.returncode, result.stderr.strip()) == (code, error)


def test_a_script_of_more_lines_than_are_kept(bench: Bench) -> None:
    """Each line does what it says, though its parsed form is not kept."""
    data = bench.folder / "memory"
    data.write_bytes(bytes(range(256)) * 1024)
    count = (1 << 16) + 500
    file = bench.folder / "script"
    file.write_text("".join(f"md -b {data} {offset}[7:0]\n" for offset in range(count)))
    result = barfs("script", file)
    expected = "".join(f"{offset:08x}[7:0]: {offset % 256:x}\n" for offset in range(count))
    assert (result.returncode, result.stderr, result.stdout == expected) == (0, "", True)


def test_a_device_that_leaves_ends_a_script(tmp_path: Path) -> None:
    with served(tmp_path) as server, mounted(tmp_path, server.name) as mount:
        bar0 = mount.device() / "bar0"
        process = subprocess.Popen(
            [*BARFS, "script"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdin.write(f"md {bar0} 0x1000\n")
            process.stdin.flush()
            assert process.stdout.readline() == MAGIC
            server.process.kill()
            log = mount.log
            wait_until(lambda: "is lost" in log.read_text(), "the device to be lost")
            process.stdin.write(f"md {bar0} 0x1000\nmd {bar0} 0x1000\n")
            process.stdin.close()
            assert ended(process) == 1
            told = f"barfs: standard input:2: {bar0}: read of 4 bytes at 0x1000: No such device\n"
            assert (process.stdout.read(), process.stderr.read()) == ("", told)
        server.socket.unlink()
