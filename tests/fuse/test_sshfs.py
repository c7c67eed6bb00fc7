# SPDX-License-Identifier: MIT
"""A mount of another machine, through sshfs: what reaches the device, with and without direct_io.

The other machine is this one, behind an sshd with its own port, keys and configuration.
"""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from barfs.fuse.fusermount import unmount
from tests.support import BARFS, Mounted, Served, mounted, require, served, wait_until
from tests.support.namespace import run

SSHD = "/usr/sbin/sshd"
REGISTER = 0x4000  # of the demo device's BAR 0, in a gap


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The words of an ssh that gets to the host `far`, which is this machine."""
    for program in (SSHD, "ssh", "ssh-keygen", "sshfs"):
        require("fuse", shutil.which(program) is not None, f"{program} is missing; apt install")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd insists on it
    folder = tmp_path_factory.mktemp("ssh")
    for key in ("host", "user"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(words, check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/user.pub\nStrictModes no\nPermitRootLogin yes\n"
        "PasswordAuthentication no\nSubsystem sftp internal-sftp\n"
    )
    (folder / "ssh_config").write_text(
        f"Host far\nHostName 127.0.0.1\nPort {port}\nUser {pwd.getpwuid(os.getuid()).pw_name}\n"
        f"IdentityFile {folder}/user\nIdentitiesOnly yes\nBatchMode yes\n"
        f"UserKnownHostsFile {folder}/known\nStrictHostKeyChecking accept-new\nLogLevel ERROR\n"
    )
    words = ["ssh", "-F", str(folder / "ssh_config")]
    log = folder / "sshd.log"
    command = [SSHD, "-D", "-E", str(log), "-f", str(folder / "sshd_config")]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: answers(port) or server.poll() is not None, "sshd")
            result = run("/usr/bin/env", *words, "far", "true")
            assert result.returncode == 0, result.stderr + log.read_text()
            yield words
        finally:
            server.terminate()


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@contextlib.contextmanager
def far(ssh: list[str], mount: Mounted, folder: Path, *options: str) -> Iterator[Path]:
    """The BAR 0 of a mount, as `sshfs far:MOUNTPOINT` has it."""
    place = folder / "far"
    place.mkdir()
    words = [*(word for option in options for word in ("-o", option)), "-o"]
    command = ["sshfs", *words, f"ssh_command={' '.join(ssh)}", f"far:{mount.path}", str(place)]
    result = run("/usr/bin/env", *command)
    assert result.returncode == 0, result.stderr
    try:
        yield place / "bus" / mount.device().name / "bar0"
    finally:
        unmount(place)
        place.rmdir()


@contextlib.contextmanager
def watched(folder: Path, options: str = "mapping=off") -> Iterator[tuple[Served, Mounted]]:
    with served(folder) as device, mounted(folder, device.name, options=options) as mount:
        device.accesses()
        yield device, mount


def pread(file: Path, count: int = 4, offset: int = REGISTER) -> bytes:
    fd = os.open(file, os.O_RDONLY)
    try:
        return os.pread(fd, count, offset)
    finally:
        os.close(fd)


def reads(device: Served) -> list[tuple[str, str]]:
    """(offset, width) of each access to BAR 0 since the last call."""
    lines = [line.split() for line in device.accesses()]
    return [(line[2], line[3]) for line in lines if line[:2] == ["r", "bar0"]]


def poke(mount: Mounted, value: bytes) -> None:
    """Change the register from the mount's own machine."""
    fd = os.open(mount.device() / "bar0", os.O_WRONLY)
    try:
        os.pwrite(fd, value, REGISTER)
    finally:
        os.close(fd)


def test_with_direct_io_a_read_is_one_access_and_fresh(ssh: list[str], tmp_path: Path) -> None:
    with watched(tmp_path) as (device, mount), far(ssh, mount, tmp_path, "direct_io") as bar0:
        assert pread(bar0) == b"A ga"
        assert reads(device) == [(f"{REGISTER:#x}", "4")]
        poke(mount, b"new!")
        assert pread(bar0) == b"new!"
        assert reads(device) == [(f"{REGISTER:#x}", "4")]
        with bar0.open("r+b", buffering=0) as file:
            file.seek(REGISTER)
            file.write(b"sent")
        writes = [line.split() for line in device.accesses() if line.startswith("w bar0")]
        assert [line[2:4] for line in writes] == [[f"{REGISTER:#x}", "4"]]
        assert pread(mount.device() / "bar0") == b"sent"


def test_without_it_a_read_is_a_thousand_and_the_next_is_stale(
    ssh: list[str], tmp_path: Path
) -> None:
    with watched(tmp_path) as (device, mount), far(ssh, mount, tmp_path) as bar0:
        fd = os.open(bar0, os.O_RDONLY)
        try:
            assert os.pread(fd, 4, REGISTER) == b"A ga"
            assert len(reads(device)) >= 1024
            poke(mount, b"new!")
            assert os.pread(fd, 4, REGISTER) == b"A ga"
        finally:
            os.close(fd)


def test_a_guarded_mount_reads_as_empty_without_it(ssh: list[str], tmp_path: Path) -> None:
    with watched(tmp_path, "mapping=off,guard") as (device, mount):
        with far(ssh, mount, tmp_path) as bar0:
            assert pread(bar0) == b""
            assert reads(device) == []
        with far(ssh, mount, tmp_path, "direct_io") as bar0:
            assert pread(bar0) == b"A ga"


def test_a_command_over_ssh(ssh: list[str], tmp_path: Path) -> None:
    with watched(tmp_path) as (device, mount):
        command = [*BARFS, "md", str(mount.device() / "bar0"), hex(REGISTER)]
        result = run("/usr/bin/env", *ssh, "far", f"cd {Path.cwd()}; {' '.join(command)}")
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith(f"{REGISTER:08x}: 61672041")
        assert reads(device) == [(f"{REGISTER:#x}", "4")]


@pytest.mark.parametrize("options", [["-a"], ["-a", "--inplace"]])
def test_rsync_onto_a_mount_ends_with_23(tmp_path: Path, options: list[str]) -> None:
    require("fuse", shutil.which("rsync") is not None, "rsync is missing; apt install rsync")
    file = tmp_path / "bar0"
    file.write_bytes(b"sent" * 0x4000)
    os.utime(file, (0, 0))  # rsync skips what has the same size and time
    with watched(tmp_path) as (_device, mount):
        target = mount.device() / "bar0"
        result = run("/usr/bin/rsync", *options, file, target)
        assert result.returncode == 23, result.stderr
        inplace = "--inplace" in options
        assert pread(target) == (b"sent" if inplace else b"A ga")
