# SPDX-License-Identifier: MIT
"""The binding of a function before `barfs bind` changed it, kept in `/run/barfs/BDF.json`."""

import json
from dataclasses import dataclass
from pathlib import Path

from barfs.errors import DeviceError, UsageError
from barfs.host.steps import State
from barfs.host.sysfs import Machine
from barfs.pci import Bdf
from barfs.process.output import OutputError, save
from barfs.text.system_errors import reason


@dataclass(frozen=True, slots=True)
class SavedBinding:
    """The state of a function before `bind`, and the driver that `bind` gave it."""

    before: State
    driver: str

    @staticmethod
    def path(machine: Machine, bdf: Bdf) -> Path:
        return machine.run / f"{bdf}.json"

    @classmethod
    def read(cls, machine: Machine, bdf: Bdf) -> "SavedBinding | None":
        """The saved binding; None if there is none, or the function got another driver since.

        Raises DeviceError if the file cannot be read.
        """
        path = cls.path(machine, bdf)
        try:
            data = json.loads(path.read_text())
            saved = cls(State(data["before"]["driver"], data["before"]["override"]), data["driver"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DeviceError(f"{path} cannot be read ({error}); remove it") from error
        return saved if saved.driver == machine.driver(bdf) else None

    def write(self, machine: Machine, bdf: Bdf) -> None:
        """Save it for `unbind`. Raises DeviceError."""
        before = {"driver": self.before.driver, "override": self.before.override}
        text = json.dumps({"before": before, "driver": self.driver}) + "\n"
        write_file(machine, bdf, text.encode())


def read_file(machine: Machine, bdf: Bdf) -> bytes | None:
    """The file's bytes, for `write_file` to put back; None if there is no file."""
    try:
        return SavedBinding.path(machine, bdf).read_bytes()
    except OSError:
        return None


def write_file(machine: Machine, bdf: Bdf, data: bytes | None) -> None:
    """Write the file, or remove it if `data` is None. Raises DeviceError."""
    path = SavedBinding.path(machine, bdf)
    try:
        if data is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        save(path, data, 0o644)
    except OSError as error:
        raise DeviceError(f"{path}: {reason(error)}") from error
    except (UsageError, OutputError) as error:
        raise DeviceError(str(error)) from error
