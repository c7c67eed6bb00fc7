# SPDX-License-Identifier: MIT
"""Tells a service manager about a mount in the foreground, as sd_notify(3) does.

Rule 1: `READY=1` means that the mount is ready (rule 2 of `barfs.fuse.mount`): its devices are
        open, and it has answered.
Rule 2: a manager that does not listen neither fails a mount nor delays it for long.
Rule 3: children (fusermount3) do not inherit the socket's name: they do not speak for the service.

A mount in the background sends nothing: its command returns when the mount is ready, which is what
`Type=forking` waits for.
"""

import logging
import os
import socket

from barfs.text import printable

_LONGEST_WAIT = 1.0

log = logging.getLogger(__name__)


class ServiceManager:
    """The manager at `NOTIFY_SOCKET`, a path or an abstract `@name`, if the variable is set."""

    def __init__(self) -> None:
        """Removes the variable from the environment."""
        self._address = os.environ.pop("NOTIFY_SOCKET", "")

    def ready(self, status: str) -> None:
        """Report that the service is up; `status` describes it in one line."""
        self._tell("READY=1", "STATUS=" + printable(status))

    def stopping(self) -> None:
        """Report that the service is ending."""
        self._tell("STOPPING=1")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        address = self._address.encode(errors="surrogateescape")
        if address.startswith(b"@"):
            address = b"\0" + address[1:]
        message = "\n".join(lines).encode(errors="replace")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.settimeout(_LONGEST_WAIT)
                manager.sendto(message, address)
        except OSError as error:
            log.warning("cannot notify the service manager at %s: %s", self._address, error)
