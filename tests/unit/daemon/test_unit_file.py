# SPDX-License-Identifier: MIT
"""scripts/systemd/barfs@.service, as far as a machine without systemd's PID 1 can tell."""

import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from barfs.fuse.fusermount import GRACE
from barfs.pci import Bdf
from tests.support import require

UNIT = Path(__file__).parents[3] / "scripts/systemd/barfs@.service"

# exec_needs_mount_namespace() in systemd's src/core/execute.c, and what implies one of these.
MOUNT_NAMESPACE = frozenset(
    """RootImage RootDirectory RootEphemeral ReadWritePaths ReadOnlyPaths InaccessiblePaths
    ExecPaths NoExecPaths BindPaths BindReadOnlyPaths TemporaryFileSystem MountImages
    ExtensionImages ExtensionDirectories MountFlags PrivateTmp PrivateDevices ProtectSystem
    ProtectHome ProtectKernelTunables ProtectKernelModules ProtectKernelLogs ProtectControlGroups
    ProtectProc ProcSubset PrivateIPC IPCNamespacePath PrivatePIDs PrivateBPF PrivateUsers
    DynamicUser BindLogSockets MountAPIVFS NetworkNamespacePath RuntimeDirectory StateDirectory
    CacheDirectory LogsDirectory""".split()  # noqa: SIM905
)


def settings() -> dict[str, list[str]]:
    """The values of each setting of the unit, in order."""
    found = defaultdict(list)
    for line in UNIT.read_text().splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found[name].append(value)
    return found


def systemd_analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    require("systemd", program is not None, "systemd-analyze is missing; apt install systemd")
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with a program that is there."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/bin/barfs", sys.executable))
    return copy


def test_the_mount_is_made_where_all_can_see_it() -> None:
    found = settings()
    assert not MOUNT_NAMESPACE & found.keys()
    # Since systemd 254 a network namespace brings a mount namespace, unless told otherwise.
    assert found["PrivateMounts"] == ["no"]


def test_it_runs_what_the_package_installs() -> None:
    (start,) = settings()["ExecStart"]
    assert start.startswith("/usr/bin/barfs mount -f ")
    assert settings()["Type"] == ["notify"]


def test_the_grace_period_fits_into_its_patience() -> None:
    (patience,) = settings()["TimeoutStopSec"]
    assert int(patience) >= GRACE + 5


def test_many_devices_can_be_open() -> None:
    """A soft limit for what select(2) can count, and a hard one that barfs raises its own to."""
    (limit,) = settings()["LimitNOFILE"]
    soft, hard = map(int, limit.split(":"))
    assert soft <= 1024 < 100_000 < hard


def test_systemd_reads_all_of_it(installed: Path) -> None:
    result = systemd_analyze("verify", "--man=no", str(installed))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_verify_finds_a_mistake(installed: Path) -> None:
    installed.write_text(installed.read_text().replace("KillMode=", "KilMode="))
    assert "KilMode" in systemd_analyze("verify", "--man=no", str(installed)).stderr


def test_exposure() -> None:
    """3.1; of that, 0.1 is for two harmless calls of @privileged, any of which counts as all."""
    result = systemd_analyze("security", "--offline=true", "--threshold=31", str(UNIT))
    assert result.returncode == 0, result.stdout.splitlines()[-1]


def test_of_the_privileged_calls_only_those_of_mount_8_are_let_through() -> None:
    """A list takes calls away or gives them back, in order (systemd.exec(5))."""
    allowed, denied, given_back = settings()["SystemCallFilter"]
    assert (allowed, denied) == ("@system-service mount umount2", "~@privileged @resources")
    assert given_back.split() == ["setuid", "setuid32", "fchown", "fchown32"]


def test_a_device_is_an_instance_as_it_is() -> None:
    """`:` and `.` need no escape in a unit's name (systemd.unit(5))."""
    bdf = str(Bdf.parse("0000:01:00.0"))
    program = shutil.which("systemd-escape")
    require("systemd", program is not None, "systemd-escape is missing; apt install systemd")
    escaped = subprocess.run(
        ["systemd-escape", "--template=barfs@.service", bdf],
        capture_output=True,
        text=True,
        check=True,
    )
    assert escaped.stdout == f"barfs@{bdf}.service\n"
