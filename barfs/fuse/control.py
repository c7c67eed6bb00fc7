# SPDX-License-Identifier: MIT
"""What a mount is asked to do, and its answer: the messages of `.barfs-control`, and the client.

Rule 1: a message is fields of bytes with a NUL between them, so that names pass unchanged. A
        request is `barfs-control 1`, the command, and its names; a reply is `barfs-control 1`, the
        exit code, and a text for the user.
Rule 2: both sides check what they receive. The server drops what is no request.
Rule 3: a mount may hang, and it may end: the client bounds every wait but that for the reply, which
        ends with the mount.
"""

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from barfs.attached.mounts import ANSWER_TIME, MountError, owner_of
from barfs.errors import UsageError
from barfs.host.programs import find_program
from barfs.text import shell_word
from barfs.text.system_errors import reason
from barfs.vfio_user import address

KIND = "control"

LONGEST = 1 << 16
"""Bytes of a message."""

_MAGIC = b"barfs-control 1"
_COMMANDS = ("add", "remove")
_OWNERS_ONLY = "only the user who mounted it, or root, may change its devices"


@dataclass(frozen=True, slots=True)
class Request:
    """`command` is add or remove; `names` are devices as for barfs mount."""

    command: str
    names: Sequence[str]

    def encode(self) -> bytes:
        """Raises UsageError if there are too many names for one message."""
        fields = [_MAGIC, self.command.encode(), *map(os.fsencode, self.names)]
        data = b"\0".join(fields)
        if len(data) > LONGEST:
            raise UsageError(f"too many devices for one command, which may have {LONGEST} bytes")
        return data

    @classmethod
    def decode(cls, data: bytes) -> "Request | None":
        """None for bytes that are no request."""
        magic, *fields = data.split(b"\0")
        command, *names = fields or [b""]
        text = command.decode(errors="replace")
        if magic != _MAGIC or text not in _COMMANDS or not names or not all(names):
            return None
        return cls(text, [os.fsdecode(name) for name in names])


@dataclass(frozen=True, slots=True)
class Outcome:
    """An exit code, and the text of an error, or of what was done."""

    code: int
    text: str

    def encode(self) -> bytes:
        head = b"\0".join((_MAGIC, str(self.code).encode(), b""))
        return head + os.fsencode(self.text)[: LONGEST - len(head)]

    @classmethod
    def decode(cls, data: bytes) -> "Outcome":
        """Raises ValueError for bytes that are no reply."""
        magic, code, text = data.split(b"\0", 2)
        if magic != _MAGIC:
            raise ValueError("not a reply")
        return cls(int(code), os.fsdecode(text))


def ask(mountpoint: Path, request: Request) -> Outcome:
    """Let the mount do it. Raises MountError if it does not answer."""
    data = request.encode()
    path = _socket_of(mountpoint)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(ANSWER_TIME)
            address.connect(sock, path)
            sock.send(data)
            sock.settimeout(None)
            answer = sock.recv(LONGEST + 1)
        return Outcome.decode(answer)
    except PermissionError:
        raise MountError(f"{mountpoint}: {_OWNERS_ONLY}") from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise MountError(f"the mount on {mountpoint} has ended") from None
    except (BlockingIOError, TimeoutError):
        raise MountError(f"the mount on {mountpoint} is busy or stopped; try again") from None
    except (ValueError, ConnectionError):
        raise MountError(
            f"the mount on {mountpoint} closed the connection without an answer: it has ended, or "
            f"belongs to another user ({_OWNERS_ONLY})"
        ) from None
    except OSError as error:
        raise MountError(f"{mountpoint}: {reason(error)}") from error


def _socket_of(mountpoint: Path) -> str:
    """The path of the mount's socket. Raises MountError."""
    owner = owner_of(mountpoint)
    if owner is None:
        raise MountError(f"{mountpoint} is not a barfs mount; mount -t fuse.barfs lists them")
    link = mountpoint / f".barfs-{KIND}"
    try:
        return _in_time(lambda: os.readlink(link))
    except PermissionError:
        # FUSE keeps even root out of another user's mount (fs/fuse/dir.c,
        # fuse_allow_current_process).
        if os.geteuid() == 0:
            return _in_time(lambda: _read_as(owner, link))
        raise MountError(f"{mountpoint}: {_OWNERS_ONLY}") from None
    except FileNotFoundError:
        raise MountError(
            f"the mount on {mountpoint} cannot be changed: it has no socket, and its log says why"
        ) from None
    except OSError as error:
        raise MountError(
            f"{mountpoint}: {reason(error)}; barfs umount {shell_word(mountpoint)} removes a mount "
            "whose process has ended"
        ) from error


def _in_time(read: Callable[[], str]) -> str:
    """The result or the OSError of `read`, which may never return."""
    found: list[str | OSError] = []

    def run() -> None:
        try:
            found.append(read())
        except OSError as error:
            found.append(error)

    asking = threading.Thread(target=run, daemon=True)
    asking.start()
    asking.join(ANSWER_TIME)
    result = found[0] if found else TimeoutError("the mount does not answer")
    if isinstance(result, OSError):
        raise result
    return result


def _read_as(owner: tuple[int, int], link: Path) -> str:
    """`readlink` by the user and group of `owner`. Raises OSError."""
    program = find_program("readlink")
    if program is None:
        raise PermissionError("readlink is not installed")
    user, group = owner
    result = subprocess.run(
        [program, "-n", "--", str(link)],
        user=user,
        group=group,
        extra_groups=[],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        cwd="/",
    )
    if result.returncode:
        raise FileNotFoundError(f"{link} cannot be read")
    return os.fsdecode(result.stdout)
