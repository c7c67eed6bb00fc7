# SPDX-License-Identifier: MIT
"""Takes the steps: writes to sysfs, loads modules, gives device nodes away."""

import os
import subprocess

from barfs.errors import DeviceError
from barfs.host.programs import find_program
from barfs.host.steps import Load, Own, Step, Write


class Executor:
    """What changes the machine; tests put a made-up kernel in its place."""

    def permitted(self) -> bool:
        return os.geteuid() == 0

    def run(self, step: Step) -> None:
        """Raises OSError; DeviceError for a module that cannot be loaded."""
        match step:
            case Write(path, text):
                # One write(2), as from echo; not created where it is missing.
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
        raise DeviceError(f"{module} cannot be loaded: {reason}")
