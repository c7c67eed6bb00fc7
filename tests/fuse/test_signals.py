# SPDX-License-Identifier: MIT
"""A signal ends a command at any moment, and nothing of it is left: no mount, process or file."""

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import (
    BARFS,
    DEADLINE,
    barfs,
    ended,
    is_mounted,
    mounted,
    require_fuse,
    wait_until,
)
from tests.support.leftovers import processes

MOUNTING = (
    "daemon/background.py,fuse/mount.py,process/signals.py,cli/main.py,cli/mount.py,"
    "fuse/fusermount.py,attached/mounts.py,host/mountinfo.py,host/programs.py"
)
EVERYTHING = ""

FORK = """
import os, signal, sys
from barfs.cli import main
parent = os.getpid()
def interrupt():
    if os.getpid() == parent:
        os.kill(parent, signal.Signals[sys.argv[1]])
os.register_at_fork({moment}=interrupt)
sys.exit(main(sys.argv[2:]))
"""


@contextlib.contextmanager
def settled(folder: Path) -> Iterator[None]:
    """In the end nothing of the folder is in use."""
    yield
    wait_until(lambda: not processes(str(folder)), "the end of all processes")
    assert not is_mounted(folder / "mnt")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("moment", ["before", "after_in_parent"])
def test_a_signal_in_the_fork(tmp_path: Path, moment: str, name: str) -> None:
    """Python discards what its hooks around a fork raise."""
    require_fuse()
    (tmp_path / "mnt").mkdir()
    script = [sys.executable, "-c", FORK.format(moment=moment), name]
    words = ["mount", "demo", str(tmp_path / "mnt")]
    with settled(tmp_path):
        result = subprocess.run(
            [*script, *words], capture_output=True, text=True, timeout=DEADLINE, check=False
        )
        assert (result.returncode, result.stderr) == (128 + signal.Signals[name], "")


def at_point(
    point: int, name: str, files: str, folder: Path, *words: str
) -> subprocess.CompletedProcess[str]:
    stub = [sys.executable, "-m", "tests.support.signal_points", str(point), name, files]
    return subprocess.run(
        [*stub, str(folder / "points"), *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        cwd=Path(__file__).parents[2],
    )


def some(total: int, campaign: str) -> range:
    """Points over the whole way: all of them in a full campaign, some in a short one."""
    step = 1 if campaign == "full" else total // 12
    return range(random.randrange(1, step + 1), total + 1, step)


@pytest.fixture
def campaign(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("campaign"))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_while_a_mount_is_made(tmp_path: Path, name: str, campaign: str) -> None:
    require_fuse()
    path = tmp_path / "mnt"
    path.mkdir()
    words = ["mount", "demo", str(path)]
    assert at_point(0, name, MOUNTING, tmp_path, *words).returncode == 0
    assert barfs("umount", path).returncode == 0
    total = int((tmp_path / "points").read_text())
    assert total > 100
    number = signal.Signals[name]
    for point in some(total, campaign):
        with settled(tmp_path):
            result = at_point(point, name, MOUNTING, tmp_path, *words)
            # One before the handlers kills it, one after it is done is ignored.
            assert result.returncode in (128 + number, -number, 0), point
            assert result.stderr == "", point
            if result.returncode == 0 and is_mounted(path):
                barfs("umount", path)


@pytest.mark.parametrize(
    "words",
    [
        ["layout", "demo"],
        ["poll", "demo:bar0", "0", "0xffffffff", "0x66726162"],
        ["dump", "demo", "-o", "FILE", "--skip", "bar2"],
    ],
    ids=lambda words: words[0],
)
def test_signals_at_any_point(tmp_path: Path, words: list[str], campaign: str) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    words = [str(folder / "dump") if word == "FILE" else word for word in words]
    assert at_point(0, "SIGTERM", EVERYTHING, tmp_path, *words).returncode == 0
    total = int((tmp_path / "points").read_text())
    before = sorted(os.listdir(folder))
    for point in some(total, campaign):
        result = at_point(point, "SIGTERM", EVERYTHING, tmp_path, *words)
        assert result.returncode in (128 + signal.SIGTERM, -signal.SIGTERM), point
        assert "Traceback" not in result.stderr, point
        assert sorted(os.listdir(folder)) == before, point


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("command", ["demo", "serve"])
def test_signals_at_random(tmp_path: Path, command: str, name: str) -> None:
    """Also bursts: to who serves until then, from its start until its end."""
    require_fuse()
    number = signal.Signals[name]
    words = {"demo": ["demo"], "serve": ["serve", "--socket", str(tmp_path / "socket")]}[command]
    launch = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); print(flush=True); "
        "from barfs.cli import main; sys.exit(main())"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    for _round in range(6):
        with (
            settled(tmp_path),
            subprocess.Popen(
                [sys.executable, "-c", launch, *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            ) as process,
        ):
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(random.uniform(0, 0.8))
            for _signal in range(random.choice([1, 1, 3])):
                process.send_signal(number)
            assert ended(process) in (0, 128 + number, -number)
            assert "Traceback" not in process.stderr.read()
        assert os.listdir(tmp_path) == []


def test_a_caller_that_is_killed_leaves_no_daemon(tmp_path: Path) -> None:
    """Its user does not know that there is a mount."""
    require_fuse()
    (tmp_path / "mnt").mkdir()
    script = """
import os, signal, sys
import barfs.daemon.background
def killed(run, *rest, background=barfs.daemon.background.run_in_background):
    def late(ready):
        def when_dead():
            os.kill(caller, signal.SIGKILL)
            while os.getppid() == caller:
                pass
            ready()
        return run(when_dead)
    return background(late, *rest)
caller = os.getpid()
barfs.daemon.background.run_in_background = killed
from barfs.cli import main
main(sys.argv[1:])
"""
    words = ["mount", "demo", str(tmp_path / "mnt")]
    with settled(tmp_path):
        killed = subprocess.run([sys.executable, "-c", script, *words], check=False)
        assert killed.returncode == -signal.SIGKILL


def test_a_daemon_that_is_killed_is_told(tmp_path: Path) -> None:
    require_fuse()
    (tmp_path / "mnt").mkdir()
    script = """
import os, signal, sys
from barfs.cli import main
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGKILL))
sys.exit(main(sys.argv[1:]))
"""
    words = ["mount", "demo", str(tmp_path / "mnt")]
    result = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr == (
        "barfs: signal 9 (Killed) ended the mount's process before the mount answered; "
        "dmesg may tell why\n"
    )


def test_what_was_ignored_stays_ignored(tmp_path: Path) -> None:
    """As under nohup."""
    with mounted(tmp_path, "demo", command=["nohup", *BARFS]) as mount:
        mount.process.send_signal(signal.SIGHUP)
        assert (mount.device() / "bar0").read_bytes()[:4] == b"barf"
        mount.process.terminate()
        assert ended(mount.process) == 0


def test_a_signal_that_python_discards_comes_again() -> None:
    script = """
import os, signal, sys, time
from barfs.process.signals import ended_by_signals
class Thing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        len("")
with ended_by_signals():
    Thing()
    time.sleep(60)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert (result.returncode, result.stderr) == (128 + signal.SIGTERM, "")
