# SPDX-License-Identifier: MIT
"""The C that asks a mount, under sanitizers: a server may answer anything, late, or not at all."""

import array
import contextlib
import errno
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from barfs.attached.wire import MOST_DESCRIPTORS, MOST_WINDOWS, Reply, Request, Window
from tests.support import require
from tests.support.compiler import STRICT
from tests.unit.engine.test_c import SANITIZERS, SOURCES

Answer = Callable[[socket.socket], object]

GOOD = Reply(0, 0x3000, [Window(0, 0x1000, 0x2000, 0, True, True)], 1)


def compiled(name: str, folder: Path, *sources: str) -> Path:
    require("cc", shutil.which("cc") is not None, "cc is not installed")
    program = folder / name
    files = [
        Path(__file__).with_name(f"{name}.c"),
        *(SOURCES / "preload" / each for each in sources),
    ]
    command = ["cc", *STRICT, *SANITIZERS, "-O1", "-g", *map(str, files), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find" in built.stderr and "san" in built.stderr:
        pytest.skip("the compiler's sanitizer libraries are not installed")
    assert built.returncode == 0, built.stderr
    return program


def test_a_reply_that_passes_can_be_followed_blindly(tmp_path: Path) -> None:
    program = compiled("fuzz_reply", tmp_path, "reply.c")
    result = subprocess.run([program], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("ask", tmp_path_factory.mktemp("ask"), "ask.c", "reply.c")


@contextlib.contextmanager
def mount(folder: Path, answers: list[Answer], target: Path | None = None) -> Iterator[Path]:
    """A directory like the root of a mount, whose socket answers each connection in turn."""
    path = target or folder / "socket"
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(str(path))
    server.listen()
    (folder / ".barfs-map").symlink_to(path)

    def serve() -> None:
        for answer in answers:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield folder
        thread.join(30)
        assert not thread.is_alive()
    finally:
        server.close()
        (folder / ".barfs-map").unlink()
        path.unlink()


def asked(ask: Path, folder: Path, count: int = 1) -> list[tuple[int, int]]:
    """The error and the windows of each answer."""
    command = [str(ask), str(folder), str(count)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    pairs = (line.split() for line in result.stdout.splitlines())
    return [(int(error), int(windows)) for error, windows in pairs]


def sending(data: bytes, fds: int = 1) -> Answer:
    def answer(connection: socket.socket) -> None:
        assert Request.decode(connection.recv(1024)) == Request(42)
        with open(os.devnull) as file:
            rights = array.array("i", [file.fileno()] * fds)
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
            connection.sendmsg([data], ancillary)

    return answer


def test_a_good_reply(ask: Path, tmp_path: Path) -> None:
    windows = [Window(n * 0x1000, 0x1000, n * 0x1000, 0, True, False) for n in range(MOST_WINDOWS)]
    many = Reply(0, MOST_WINDOWS * 0x1000, windows, MOST_DESCRIPTORS)
    part = Reply(0, 0x1800, [Window(0x1000, 0x800, 0, 0, True, True)], 1)
    answers = [
        sending(GOOD.encode()),
        sending(many.encode(), MOST_DESCRIPTORS),
        sending(part.encode()),
        sending(Reply(0, 0x1000).encode(), 0),
    ]
    with mount(tmp_path, answers) as folder:
        assert asked(ask, folder, 4) == [(0, 1), (0, MOST_WINDOWS), (0, 1), (0, 0)]


def test_the_mount_may_refuse(ask: Path, tmp_path: Path) -> None:
    answers = [sending(Reply(error).encode(), 0) for error in (errno.ENOENT, errno.ENODEV)]
    with mount(tmp_path, answers) as folder:
        assert asked(ask, folder, 2) == [(errno.ENOENT, 0), (errno.ENODEV, 0)]


def test_a_closed_connection_is_a_refusal(ask: Path, tmp_path: Path) -> None:
    answers: list[Answer] = [
        lambda connection: None,
        lambda connection: connection.recv(99),
    ]
    with mount(tmp_path, answers) as folder:
        assert asked(ask, folder, 2) == [(errno.EPERM, 0)] * 2


def bad_replies() -> Iterator[tuple[bytes, int]]:
    good = GOOD.encode()
    yield b"", 1
    yield b"x", 1
    yield good[:-1], 1
    yield good + b"x", 1
    yield good * 2, 1
    yield good + bytes(1 << 17), 1
    yield b"BARFSMAP" + good[8:], 1
    yield good[:8] + struct.pack("=I", 2) + good[12:], 1
    yield Reply(1 << 31).encode(), 0
    yield good, 0
    yield good, 2
    yield Reply(0, 1 << 40, [GOOD.windows[0]] * (MOST_WINDOWS + 1), 1).encode(), 1
    for window in (
        Window(0x800, 0x1000, 0, 0, True, True),
        Window(0, 0x1000, 0x800, 0, True, True),
        Window(0, 0x800, 0, 0, True, True),
        Window(0, 0, 0, 0, True, True),
        Window(0, 0x4000, 0, 0, True, True),
        Window(0x3000, 0x1000, 0, 0, True, True),
        Window(0x1000, (1 << 64) - 0x1000, 0, 0, True, True),
        Window(0, 0x1000, (1 << 63) - 0x1000, 0, True, True),
        Window(0, 0x1000, (1 << 64) - 0x1000, 0, True, True),
        Window(0, 0x1000, 0, 1, True, True),
        Window(0, 0x1000, 0, 0, False, False),
    ):
        yield Reply(0, 0x3000, [window], 1).encode(), 1
    yield Reply(0, 0x3000, [GOOD.windows[0]] * 2, 1).encode(), 1


def test_no_bad_reply_is_followed(ask: Path, tmp_path: Path) -> None:
    replies = list(bad_replies())
    with mount(tmp_path, [sending(*reply) for reply in replies]) as folder:
        answers = asked(ask, folder, len(replies))
    # An empty message is like a closed connection.
    assert answers == [(errno.EPERM, 0), *[(errno.EPROTO, 0)] * (len(replies) - 1)]


def test_thousands_of_hostile_replies(ask: Path, tmp_path: Path) -> None:
    source = random.Random(1)

    def hostile() -> tuple[bytes, int]:
        data = bytearray(GOOD.encode())
        for _ in range(source.randrange(6)):
            data[source.randrange(len(data))] = source.randrange(256)
        if source.random() < 0.2:
            data = data[: source.randrange(len(data))]
        return bytes(data), source.choice((0, 1, 1, 1, 2, MOST_DESCRIPTORS))

    replies = [hostile() for _ in range(3000)]
    with mount(tmp_path, [sending(*reply) for reply in replies]) as folder:
        answers = asked(ask, folder, len(replies))
    assert {0, errno.EPROTO} <= {error for error, _ in answers}


def test_a_mount_that_does_not_answer_is_left_in_time(ask: Path, tmp_path: Path) -> None:
    done = threading.Event()
    with mount(tmp_path, [lambda connection: done.wait(60)]) as folder:
        assert asked(ask, folder) == [(errno.ETIMEDOUT, 0)]
        done.set()


def test_interrupted_calls_do_not_prolong_the_wait(ask: Path, tmp_path: Path) -> None:
    """Nor end it. A socket with a timeout says EINTR after SIGCONT (signal(7))."""
    done = threading.Event()
    with mount(tmp_path, [lambda connection: done.wait(60)]) as folder:
        command = [str(ask), str(folder), "1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout is not None
            for number in (signal.SIGSTOP, signal.SIGCONT) * 20:
                program.send_signal(number)
            assert program.stdout.read() == f"{errno.ETIMEDOUT} 0\n"
        done.set()


def test_links_that_lead_nowhere(ask: Path, tmp_path: Path) -> None:
    assert asked(ask, tmp_path) == [(errno.ENXIO, 0)]
    (tmp_path / ".barfs-map").symlink_to(tmp_path / "socket")
    assert asked(ask, tmp_path) == [(errno.EHOSTUNREACH, 0)]
    (tmp_path / "socket").touch()
    assert asked(ask, tmp_path) == [(errno.EHOSTUNREACH, 0)]
    (tmp_path / "socket").unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(tmp_path / "socket"))
    assert asked(ask, tmp_path) == [(errno.EHOSTUNREACH, 0)]


def test_the_path_of_the_socket_may_be_long(
    ask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("d" * 200)
    folder.mkdir()
    monkeypatch.chdir(folder)
    with mount(tmp_path, [sending(GOOD.encode())], Path("socket")) as root:
        (root / ".barfs-map").unlink()
        (root / ".barfs-map").symlink_to(folder / "socket")
        assert asked(ask, root) == [(0, 1)]
