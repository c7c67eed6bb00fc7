# SPDX-License-Identifier: MIT
"""Mounts, sockets and files of any name, in any locale: every command goes on, and says them."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import BARFS, DEADLINE, barfs, is_mounted, mounted, served, wait_until
from tests.support.namespace import in_namespace

NAMES = {
    b"usb-DONN\xc9ES": r"usb-DONN\xc9ES",
    b"car\rriage": r"car\x0driage",
    b"form\x0cfeed": r"form\x0cfeed",
    "nel\u0085".encode(): r"nel\xc2\x85",
    "line\u2028".encode(): r"line\xe2\x80\xa8",
    b"\x1b[31mred": r"\x1b[31mred",
    b"two\nlines": r"two\x0alines",
}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LOCALES = {
    "C.UTF-8": {"LC_ALL": "C.UTF-8"},
    "ascii": ASCII,
    "strict streams": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii:strict"},
}


def run(environment: dict[str, str], *words: str | Path) -> tuple[int, str, str]:
    result = subprocess.run(
        [*BARFS, *words],
        capture_output=True,
        check=False,
        timeout=DEADLINE,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    assert b"Traceback" not in result.stderr
    return result.returncode, result.stdout.decode(), result.stderr.decode()


@pytest.fixture(params=LOCALES)
def locale(request: pytest.FixtureRequest) -> dict[str, str]:
    return LOCALES[request.param]


@pytest.fixture(scope="module")
def odd_mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Mounts of barfs, which any user could have made."""
    folder = tmp_path_factory.mktemp("names")
    paths = [folder / os.fsdecode(name) for name in NAMES]
    try:
        for path in paths:
            path.mkdir()
            result = barfs("mount", "demo", path)
            assert (result.returncode, result.stderr) == (0, "")
        yield paths
    finally:
        for path in paths:
            barfs("umount", path)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["list"], 0),
        (["list", "--json"], 0),
        (["layout", "demo"], 0),
        (["layout", "--json", "demo", "bar0"], 0),
        (["md", "demo:bar0", "0"], 0),
        (["mw", "demo:bar0", "0x1100", "-0x1"], 0),
        (["rmw", "demo:bar0", "0x1100", "1", "1"], 0),
        (["poll", "demo:bar0", "0", "0", "0"], 0),
        (["dump", "demo", "-o", "/dev/null/x"], 2),
        (["doctor", "fffe:1f:1f.7"], 1),
        (["umount", "/nowhere"], 1),
        (["trace", "/nowhere"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("odd_mounts")
def test_beside_mounts_of_any_name(words: list[str], code: int, locale: dict[str, str]) -> None:
    status, output, _errors = run(locale, *words)
    assert status == code
    if "--json" in words:
        json.dumps(json.loads(output), ensure_ascii=False).encode()


def test_a_mount_point_of_any_name(odd_mounts: list[Path]) -> None:
    for path, shown in zip(odd_mounts, NAMES.values(), strict=True):
        code, _, errors = run(ASCII, "mount", "demo", path)
        assert code == 1
        assert errors.startswith(f"barfs: {path.parent}/{shown} is already a barfs mount")
        assert errors.count("\n") == 1
        assert run(ASCII, "umount", path) == (0, "", "")
        code, _, errors = run(ASCII, "umount", path)
        assert errors.startswith(f"barfs: {path.parent}/{shown} is not a barfs mount; ")
        assert run(ASCII, "mount", "demo", path) == (0, "", "")


def test_a_register_below_a_mount_of_any_name(odd_mounts: list[Path]) -> None:
    for path, shown in zip(odd_mounts, NAMES.values(), strict=True):
        file = path / "bus/ffff:00:00.0/bar0"
        code, output, errors = run(ASCII, "md", "--json", file, "0")
        assert (code, errors) == (0, "")
        assert json.loads(output)["values"][0]["value_hex"] == "0x66726162"
        _, output, _ = run(ASCII, "md", "-n", file, "0")
        assert output == (f"read 4 bytes at 0x0 of {path.parent}/{shown}/bus/ffff:00:00.0/bar0\n")


@pytest.mark.parametrize("name", NAMES, ids=NAMES.values())
def test_a_socket_and_a_trace_of_any_name(tmp_path: Path, name: bytes) -> None:
    text, shown = os.fsdecode(name), NAMES[name]
    trace = tmp_path / f"{text}.trace"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(served(tmp_path, name=text))
        with mounted(tmp_path, server.name, options=f"trace={trace}") as mount:
            # By the name that it was mounted by, also where that reads otherwise.
            assert run(ASCII, "md", f"{server.name}:bar0", "0")[1].startswith("00000000: ")
            description = json.loads((mount.path / ".barfs").read_bytes())
            json.dumps(description, ensure_ascii=False).encode()
            with subprocess.Popen(
                [*BARFS, "trace", mount.path],
                stdout=subprocess.PIPE,
                env={**os.environ, **ASCII},
            ) as tracing:
                assert tracing.stdout is not None
                fds = Path(f"/proc/{tracing.pid}/fd")
                opened = os.fsencode(trace)
                wait_until(lambda: opened in map(_target, fds.iterdir()), "barfs trace")
                with trace.open("ab") as file:
                    file.write(b"odd \xc9\x0c\r\x1b[31m\n")
                line = tracing.stdout.readline()
                tracing.terminate()
            assert line == rb"odd \xc9\x0c\x0d\x1b[31m" + b"\n"
    code, _, errors = run(ASCII, "mount", server.name, mount.path)
    assert code == 1
    assert errors.startswith(f"barfs: vfio-user:{tmp_path}/{shown}.sock: there is no such socket;")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("name", NAMES, ids=NAMES.values())
def test_a_file_of_any_name(tmp_path: Path, name: bytes) -> None:
    file, shown = tmp_path / os.fsdecode(name), f"{tmp_path}/{NAMES[name]}"
    assert run(ASCII, "dump", "demo", "-o", file, "--skip", "bar0")[0] == 0
    assert run(ASCII, "diff", file, file) == (0, "", "")
    file.write_bytes(b"vendor = \xc9\n")
    commands: list[list[str | Path]]
    commands = [["diff", file, file], ["serve", file], ["serve", "--from", file]]
    for words in commands:
        code, _, errors = run(ASCII, *words)
        assert code != 0
        assert errors.startswith(f"barfs: {shown}")
        assert errors.count("\n") == 1
    policy = f"policy={os.fsdecode(name).replace(',', '')}"
    code, _, errors = run(ASCII, "mount", "-o", policy, "demo", tmp_path / "none")
    assert code == 2
    assert errors.startswith(f"barfs: policy {NAMES[name]}: ")


def _target(link: Path) -> bytes:
    try:
        return os.fsencode(os.readlink(link))
    except OSError:
        return b""


def test_umount_says_where_else_a_mount_is(tmp_path: Path) -> None:
    """And, when that is done, the devices are given back."""
    script = """
    mount --make-rprivate /
    mnt=$1/mnt bound=$1/bound
    shift
    mkdir "$mnt" "$bound"
    trap 'umount -ql "$mnt" "$bound" || :' EXIT
    "$@" mount demo "$mnt"
    mount --bind "$mnt/bus" "$bound"
    "$@" umount "$mnt" || echo failed $?
    "$@" umount "$bound"
    echo given back
    """
    result = in_namespace(script, tmp_path, *BARFS)
    assert result.stdout == "failed 1\ngiven back\n"
    bound = tmp_path / "bound"
    assert result.stderr == (
        f"barfs: {tmp_path}/mnt is unmounted, but the file system lives on and keeps its devices: "
        f"at {bound} (umount {bound})\n"
    )


def test_umount_says_in_which_namespace_a_mount_is(tmp_path: Path) -> None:
    script = """
    mount --make-rprivate /
    mnt=$1/mnt
    shift
    mkdir "$mnt"
    trap 'umount -ql "$mnt" || :' EXIT
    "$@" mount demo "$mnt"
    daemon=$(sed 's/.*"pid": \\([0-9]*\\).*/\\1/' "$mnt/.barfs")
    mkfifo "$mnt.held"
    unshare -m sh -c 'read word < "$0"' "$mnt.held" &
    exec 3>"$mnt.held"
    "$@" umount "$mnt" || echo failed $?
    echo $!
    nsenter -t $! -m umount "$mnt"
    while kill -0 $daemon 2>/dev/null; do sleep 0.05; done
    """
    result = in_namespace(script, tmp_path, *BARFS)
    mnt = tmp_path / "mnt"
    failed, pid = result.stdout.split("\n", 1)
    assert failed == "failed 1"
    assert result.stderr == (
        f"barfs: {mnt} is unmounted, but the file system lives on and keeps its devices: at "
        f"{mnt} in the mount namespace of process {pid.strip()} (sh) (end it, or as root: "
        f"nsenter -t {pid.strip()} -m umount {mnt})\n"
    )
    assert not is_mounted(mnt)
