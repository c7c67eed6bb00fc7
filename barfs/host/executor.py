# SPDX-License-Identifier: MIT
"""The executor of steps: it writes to sysfs, loads modules and gives device nodes away."""

import os
import subprocess

from barfs.errors import DeviceError
from barfs.host.programs import find_program
from barfs.host.steps import Load, Own, Step, Write


class Executor:
    """Changes the machine; tests put a simulated kernel in its place."""

    def permitted(self) -> bool:
        return os.geteuid() == 0

    def run(self, step: Step) -> None:
        """Take one step. Raises OSError; DeviceError for a module that cannot be loaded."""
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
        reason = result.stderr.strip().replace("\n", "; ") or "no reason given"
        raise DeviceError(f"modprobe cannot load {module}: {reason}")
