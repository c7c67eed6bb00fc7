# SPDX-License-Identifier: MIT
"""The executor of steps: it writes to sysfs, loads modules, gives device nodes away, and writes the
rules of udev."""

import os
import subprocess
from pathlib import Path

from barfs.errors import DeviceError, UsageError
from barfs.host.programs import find_program
from barfs.host.steps import Load, Own, Reload, Remove, Save, Step, Write
from barfs.process.output import OutputError, save
from barfs.text.system_errors import reason


class Executor:
    """Changes the machine; tests put a simulated kernel in its place."""

    def permitted(self) -> bool:
        return os.geteuid() == 0

    def run(self, step: Step) -> None:
        """Take one step. Raises OSError; DeviceError, where more is known of the reason."""
        match step:
            case Write(path, text):
                # One write(2), like echo, but without creating the file.
                fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, os.fsencode(f"{text}\n"))
                finally:
                    os.close(fd)
            case Load(module):
                _modprobe(module)
            case Own(path, owner, mode):
                uid, gid = (-1 if number is None else number for number in (owner.uid, owner.gid))
                os.chown(path, uid, gid, follow_symlinks=False)
                if mode is not None:
                    os.chmod(path, mode)
            case Save(path, text):
                _save(path, text)
            case Remove(path):
                _remove(path)
            case Reload():
                _reload()


def _save(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        save(path, os.fsencode(text), 0o644)
        path.chmod(0o644)  # whatever the umask: barfs list reads it
    except OSError as error:
        raise DeviceError(f"{path}: {reason(error)}") from error
    except (UsageError, OutputError) as error:
        raise DeviceError(str(error)) from error


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DeviceError(f"{path}: {reason(error)}") from error


def _reload() -> None:
    program = find_program("udevadm")
    if program is None:
        raise DeviceError("--persist needs udev, and udevadm is not installed; apt install udev")
    # It fails if udev is not running. udev then reads the rules when it starts.
    subprocess.run(
        [program, "control", "--reload"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )


def _modprobe(module: str) -> None:
    program = find_program("modprobe")
    if program is None:
        raise DeviceError("modprobe is not installed; apt install kmod")
    result = subprocess.run(
        [program, "--", module],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
    )
    if result.returncode:
        problem = result.stderr.strip().replace("\n", "; ") or "no reason given"
        raise DeviceError(f"modprobe cannot load {module}: {problem}")
