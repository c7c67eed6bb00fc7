# SPDX-License-Identifier: MIT
"""No log line vanishes, whatever becomes of syslog."""

import io
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from barfs.daemon import logs
from barfs.errors import BarfsError
from barfs.process import places
from barfs.text import take_all_text
from tests.support import BARFS, DEADLINE
from tests.unit.sockets import fill


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the syslog's socket `log` and the file `barfs.log` are."""
    monkeypatch.setattr(logs, "_SYSLOG", tmp_path / "log")
    monkeypatch.setattr(logs, "log_folders", lambda: iter([tmp_path]))
    return tmp_path


@pytest.fixture
def log(folder: Path) -> Iterator[logging.Logger]:
    """A logger with the handler of the background; syslog listens when it is first used."""
    logger = logging.Logger("test")
    yield logger
    for handler in logger.handlers:
        handler.close()


def listen(folder: Path) -> socket.socket:
    (folder / "log").unlink(missing_ok=True)
    syslog = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    syslog.bind(str(folder / "log"))
    syslog.settimeout(DEADLINE)
    return syslog


def in_file(folder: Path) -> str:
    return (folder / "barfs.log").read_text()


@pytest.mark.parametrize(
    ("level", "priority"), [(logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3)]
)
def test_a_line_comes_to_syslog_as_it_is(
    folder: Path, log: logging.Logger, level: int, priority: int
) -> None:
    with listen(folder) as syslog:
        log.addHandler(logs.background_handler())
        log.log(level, "hear, %s", "hear")
        daemon = 3 << 3
        assert syslog.recv(100).decode() == f"<{daemon | priority}>barfs[{os.getpid()}]: hear, hear"


ODD = os.fsdecode("é\0\r\n<3>barfs: forged\x1b[31m\u2028\u0085".encode() + b"\xc9")
SHOWN = r"é\x00\x0d\x0a<3>barfs: forged\x1b[31m\xe2\x80\xa8\xc2\x85\xc9"


def test_a_message_is_one_line_whatever_a_name_holds(folder: Path, log: logging.Logger) -> None:
    with listen(folder) as syslog:
        log.addHandler(logs.background_handler())
        log.warning("%s is lost", ODD)
        assert syslog.recv(1000).decode().endswith(f"]: {SHOWN} is lost")
    log.warning("%s is lost", ODD)
    (folder / "log").unlink()
    log.addHandler(logs.background_handler())
    log.warning("%s is lost", ODD)
    lines = (folder / "barfs.log").read_bytes().decode().removesuffix("\n").split("\n")
    assert len(lines) == 3
    assert all(line.endswith(f"WARNING: {SHOWN} is lost") for line in lines)


def test_a_traceback_keeps_its_lines(folder: Path, log: logging.Logger) -> None:
    log.addHandler(logs.background_handler())
    try:
        raise ValueError("a\x1b")
    except ValueError:
        log.exception("it %s", "failed")
    first, *frames, last = in_file(folder).removesuffix("\n").split("\n")
    assert first.endswith("ERROR: it failed")
    assert frames[0] == "Traceback (most recent call last):"
    assert last == r"ValueError: a\x1b"


def test_an_error_is_one_line_on_a_standard_error_of_any_encoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = io.BytesIO()
    stream = io.TextIOWrapper(data, encoding="ascii")
    take_all_text(stream)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logging, "root", logging.RootLogger(logging.WARNING))
    logs.log_to_stderr()
    logs.tell_error(BarfsError(ODD))
    logging.root.warning("%s", ODD)
    stream.flush()
    shown = SHOWN.replace("é", r"\xc3\xa9")
    assert data.getvalue().decode() == f"barfs: {shown}\nbarfs: WARNING: {shown}\n"


def test_a_syslog_that_goes_away_and_comes_back(folder: Path, log: logging.Logger) -> None:
    with listen(folder) as syslog:
        log.addHandler(logs.background_handler())
        log.warning("first")
        assert syslog.recv(100).endswith(b": first")
    log.warning("without a listener")
    (folder / "log").unlink()
    log.warning("while there is none")
    with listen(folder) as syslog:
        log.warning("again")
        assert syslog.recv(100).endswith(b": again")
    text = in_file(folder)
    assert "WARNING: without a listener\n" in text
    assert "WARNING: while there is none\n" in text
    assert "first" not in text
    assert "again" not in text


def test_a_dead_socket_is_no_syslog(folder: Path, log: logging.Logger) -> None:
    listen(folder).close()
    log.addHandler(logs.background_handler())
    log.warning("here")
    assert "WARNING: here\n" in in_file(folder)


def test_a_syslog_that_does_not_read_holds_nothing_up(folder: Path, log: logging.Logger) -> None:
    with listen(folder), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as crowd:
        log.addHandler(logs.background_handler())
        fill(crowd, str(folder / "log"))
        start = time.monotonic()
        log.warning("late")
        assert time.monotonic() - start < 5
    assert "WARNING: late\n" in in_file(folder)


def test_a_long_line_is_cut(folder: Path, log: logging.Logger) -> None:
    with listen(folder) as syslog:
        log.addHandler(logs.background_handler())
        log.warning("long %s", "\N{LATIN SMALL LETTER E WITH ACUTE}" * 1_000_000)
        received = syslog.recv(1 << 20)
    assert 1000 < len(received) <= 8192
    assert not (folder / "barfs.log").exists()


def new_logs(folder: Path) -> list[Path]:
    return list(folder.glob("barfs-log-*/barfs.log"))


def test_without_a_folder_the_first_line_makes_a_new_one(
    folder: Path, log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").touch()
    monkeypatch.setattr(logs, "log_folders", lambda: iter([folder / "file"]))
    monkeypatch.setenv("TMPDIR", str(folder))
    log.addHandler(logs.background_handler())
    assert list(folder.glob("barfs-*")) == []
    log.warning("one")
    log.warning("two")
    (file,) = new_logs(folder)
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert [line.rpartition(": ")[2] for line in file.read_text().splitlines()] == ["one", "two"]


@pytest.mark.parametrize("obstacle", ["symlink", "hard link", "fifo", "directory", "public"])
def test_what_others_could_have_put_there_is_not_opened(
    folder: Path, log: logging.Logger, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    victim = folder / "victim"
    victim.write_text("precious")
    file = folder / "barfs.log"
    match obstacle:
        case "symlink":
            file.symlink_to(victim)
        case "hard link":
            file.hardlink_to(victim)
        case "fifo":
            os.mkfifo(file)
        case "directory":
            file.mkdir()
        case "public":
            folder.chmod(0o777)
    monkeypatch.setenv("TMPDIR", str(folder))
    log.addHandler(logs.background_handler())
    log.warning("here")
    assert victim.read_text() == "precious"
    assert len(new_logs(folder)) == 1


def test_a_user_without_anything_has_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1234")
    monkeypatch.setenv("HOME", "relative")
    found = list(places.log_folders())
    assert Path("/run/user/1234") in found
    assert all(folder.is_absolute() for folder in found)


DAEMON = """
import sys
from pathlib import Path
from barfs.daemon import logs
from barfs.daemon.background import run_in_background
from barfs.cli.edge import exit_code
from barfs.errors import BarfsError

def run(ready):
    print("early", file=sys.stderr)
    ready()
    raise BarfsError("late")

logs._SYSLOG = Path(sys.argv[1])
logs.log_to_stderr()
sys.exit(run_in_background(lambda ready: exit_code(lambda: run(ready))))
"""


def test_a_daemon_speaks_to_its_caller_and_then_to_syslog(folder: Path) -> None:
    with listen(folder) as syslog:
        command = [sys.executable, "-c", DAEMON, str(folder / "log")]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=DEADLINE, check=False
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "early\n")
        message = syslog.recv(1000)
        assert message.startswith(b"<27>barfs[")
        assert message.endswith(b"]: late")


def failed_mount(folder: Path, stream: str | None) -> list[str]:
    """Standard error of a mount of nothing, in a file that JOURNAL_STREAM names, or not."""
    file = folder / "errors"
    with file.open("w") as errors:
        status = os.fstat(errors.fileno())
        named = stream or f"{status.st_dev}:{status.st_ino}"
        subprocess.run(
            [*BARFS, "mount", "-f", f"vfio-user:{folder}/none", str(folder)],
            stderr=errors,
            env={**os.environ, "JOURNAL_STREAM": named},
            check=False,
            timeout=DEADLINE,
        )
    return file.read_text().splitlines()


def test_errors_have_a_priority_in_the_journal_only(tmp_path: Path) -> None:
    (line,) = failed_mount(tmp_path, None)
    assert line.startswith("<3>barfs: ")
    (line,) = failed_mount(tmp_path, "1:1")
    assert line.startswith("barfs: ")


def test_each_line_has_a_priority_in_the_journal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    monkeypatch.setattr(logging, "root", logging.RootLogger(logging.WARNING))
    logs.log_to_stderr()
    logging.root.warning("one", exc_info=ValueError("two"))
    assert capfd.readouterr().err == "<4>barfs: WARNING: one\n<4>ValueError: two\n"
