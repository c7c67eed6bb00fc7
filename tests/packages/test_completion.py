# SPDX-License-Identifier: MIT
"""Completion, asked as the shells ask."""

import os
import pty
import re
import select
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.packages.conftest import require_programs
from tests.support import DEADLINE, Mounted, mounted, served

BASH = """
source "$1"
COMP_LINE=$2 COMP_POINT=${#2}
# As readline does it: words end at colons and equals signs, too.
read -ra COMP_WORDS <<<"$(sed 's/[:=]/ & /g' <<<"$2")"
[[ $2 == *[[:blank:]:=] ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
"$(complete -p barfs | sed 's/.*-F \\([^ ]*\\) .*/\\1/')" barfs
printf '%s\\n' "${COMPREPLY[@]}"
"""

Ask = Callable[[Path, Path, str], set[str]]

LINES = [
    ("barfs mou", {"mount"}),
    ("barfs mount --a", {"--all"}),
    ("barfs mount dem", {"demo"}),
    ("barfs mount demo one", {"one.d"}),
    ("barfs umount ", {"one.d"}),
    ("barfs mount -o ro,gu", {"ro,guard"}),
    ("barfs layout demo co", {"config"}),
    ("barfs serve one", {"one.d", "one.toml"}),
    ("barfs bind --user roo", {"root"}),
    ("barfs bind --driver ", set()),
    ("barfs run mkfif", {"mkfifo"}),
    ("barfs run cat one", {"one.d", "one.toml"}),
]


def ask(shell: list[str], folder: Path) -> set[str]:
    (folder / "one.d").mkdir(exist_ok=True)
    (folder / "one.toml").touch()
    result = subprocess.run(
        shell, cwd=folder, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )
    assert (result.returncode, result.stderr) == (0, "")
    return {line.partition("\t")[0].rstrip("/") for line in result.stdout.splitlines() if line}


def bash(share: Path, folder: Path, line: str) -> set[str]:
    script = share / "bash-completion/completions/barfs"
    return ask(["bash", "--norc", "-c", BASH, "bash", str(script), line], folder)


def fish(share: Path, folder: Path, line: str) -> set[str]:
    require_programs("shells", "fish")
    script = share / "fish/vendor_completions.d/barfs.fish"
    return ask(
        ["fish", "--no-config", "-c", "source $argv[1]; complete -C $argv[2]", str(script), line],
        folder,
    )


@pytest.mark.parametrize(("line", "answer"), LINES)
@pytest.mark.parametrize("shell", [bash, fish])
def test_what_a_line_completes_to(
    share: Path,
    tmp_path: Path,
    shell: Ask,
    line: str,
    answer: set[str],
) -> None:
    assert shell(share, tmp_path, line) == answer


@pytest.mark.parametrize("command", ["mount", "layout", "bind", "doctor"])
def test_addresses_are_those_of_the_machine(share: Path, tmp_path: Path, command: str) -> None:
    addresses = [path.name for path in Path("/sys/bus/pci/devices").glob("*:*")]
    answers = bash(share, tmp_path, f"barfs {command} ")
    assert set(addresses) <= answers
    for address in addresses[:1]:
        # Readline puts the answer behind the last colon.
        start, rest = address[:8], address[8:]
        assert rest in bash(share, tmp_path, f"barfs {command} {start}")


def test_an_option_with_a_value_is_completed_behind_its_equals_sign(
    share: Path, tmp_path: Path
) -> None:
    assert bash(share, tmp_path, "barfs mount -o ro,mapping=o") == {"off"}


CARD = Path(__file__).parents[1] / "support" / "card.rdl"


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mounted]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # A colon, a blank and a percent sign: what shells and printf(1) act on.
    folder = tmp_path / "a %d: b"
    folder.mkdir()
    source = f"vfio-user:{tmp_path / 'device.sock'}"
    with served(tmp_path), mounted(folder, source, options=f"registers={CARD}") as running:
        (tmp_path / "link").symlink_to(running.device())
        yield running


NAMES = [
    ("reg {link} dma.chan1.", {"ctrl", "status", "wide"}, "dma.chan1."),
    ("reg {link} dma.chan1.ctrl.m", {"mode"}, "dma.chan1.ctrl."),
    ("reg {link} dma/chan1/st", {"status"}, "dma/chan1/"),
    ("reg {link} dma/chan1.st", {"status"}, "dma/chan1."),
    ("reg {link} d", {"dma."}, ""),
    ("reg {link} bar0.dma.chan3.c", {"ctrl"}, "bar0.dma.chan3."),
    ("reg {link} DEV", {"DEVICE_ID"}, ""),
    ("reg {link} identity bar0", {"bar0."}, ""),
    ("reg {socket} config.COMMAND.MAS", {"MASTER"}, "config.COMMAND."),
    ("watch --interval 1 {link} dma.chan0.w", {"wide"}, "dma.chan0."),
    ("md {link}/bar0 dma.chan0.ct", {"ctrl"}, "dma.chan0."),
    ("md -w {link}/config CAP_MS", {"CAP_MSIX."}, ""),
    ("mw {socket}:bar0 comm", {"command"}, ""),
    ("rmw {link}/bar0 ident", {"identity"}, ""),
    ("poll {link}/bar0 dma.chan0.status.d", {"done"}, "dma.chan0.status."),
    ("trace {link}/bar0 dma.chan0.status.d", {"done"}, "dma.chan0.status."),
    ("md {link}/bar0 0x", set(), ""),
    ("md {link}/bar2 d", set(), ""),
    ("reg {link}/none d", set(), ""),
    ("reg /sys d", set(), ""),
]


@pytest.mark.parametrize("shell", [bash, fish])
def test_names_of_registers_are_those_of_the_mount(
    share: Path, tmp_path: Path, mount: Mounted, shell: Ask
) -> None:
    assert mount.device().exists()
    for line, answer, before in NAMES:
        words = line.format(link=tmp_path / "link", socket=f"vfio-user:{tmp_path}/device.sock")
        expected = {f"{before}{name}" for name in answer}
        found = shell(share, tmp_path, f"barfs {words}")
        assert found == expected, line


def test_names_are_found_by_the_address_and_the_path_of_a_mount(
    share: Path, tmp_path: Path, mount: Mounted
) -> None:
    escaped = re.sub(r"([ :%])", r"\\\1", str(mount.device()))
    assert fish(share, tmp_path, f"barfs reg {escaped} dma.chan1.w") == {"dma.chan1.wide"}
    assert bash(share, tmp_path, f"barfs reg '{tmp_path}/link' dma.chan1.w") == {"dma.chan1.wide"}


def test_names_of_a_device_that_is_not_mounted_open_nothing(share: Path, tmp_path: Path) -> None:
    with served(tmp_path) as server:
        server.accesses()
        assert bash(share, tmp_path, f"barfs reg {server.name} bar0.S") == set()
        assert server.accesses() == []


def test_zsh_completes_names_of_registers(share: Path, tmp_path: Path, mount: Mounted) -> None:
    require_programs("shells", "zsh")
    assert mount.device().exists()
    (tmp_path / ".zshrc").write_text(
        f"fpath=({share / 'zsh/vendor-completions'} $fpath)\n"
        "autoload -Uz compinit; compinit -u -D; bindkey -e\n"
    )
    for line, answer in (
        ("md link/bar0 dma.chan1.wi", "wide"),
        ("reg link dma.chan2.ctrl.m", "mode"),
    ):
        before = line.rpartition(".")[0]
        keys = f"barfs {line}\t\x01print -r -- ANSWER-\x05\n"
        assert typed(["zsh", "-i"], tmp_path, keys, f"ANSWER-barfs {before}.{answer}")


def test_the_bash_function_is_registered(share: Path) -> None:
    script = share / "bash-completion/completions/barfs"
    command = ["bash", "--norc", "-c", 'source "$1"; complete -p barfs', "bash", str(script)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("barfs\n")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("barfs mou", "mount"),
        ("barfs mount dem", "demo"),
        ("barfs mount -o ro,gu", "ro,guard"),
        ("barfs layout demo conf", "config"),
        ("barfs umount one", "one.d"),
        ("barfs serve --log one.t", "one.toml"),
        ("barfs bind --user roo", "root"),
    ],
)
def test_zsh_completes_the_line(share: Path, tmp_path: Path, line: str, answer: str) -> None:
    require_programs("shells", "zsh")
    (tmp_path / "one.d").mkdir()
    (tmp_path / "one.toml").touch()
    (tmp_path / ".zshrc").write_text(
        f"fpath=({share / 'zsh/vendor-completions'} $fpath)\n"
        "autoload -Uz compinit; compinit -u -D; bindkey -e\n"
    )
    # What was completed becomes an argument of the command that prints it.
    keys = f"{line}\t\x01print -r -- ANSWER-\x05\n"
    assert typed(["zsh", "-i"], tmp_path, keys, f"ANSWER-{line.rpartition(' ')[0]} {answer}")


def typed(shell: list[str], folder: Path, keys: str, sign: str) -> bool:
    """Whether `sign` is a line of what a shell on a terminal shows after keys were pressed."""
    ours, theirs = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "ZDOTDIR": str(folder)}
    process = subprocess.Popen(
        shell,
        cwd=folder,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    os.write(ours, keys.encode())
    shown = b""
    try:
        while f"\n{sign}\n" not in re.sub(r" *\r", "", shown.decode(errors="replace")):
            ready, _, _ = select.select([ours], [], [], DEADLINE)
            assert ready, shown
            shown += os.read(ours, 65536)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return True
