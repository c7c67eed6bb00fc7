# SPDX-License-Identifier: MIT
"""What a service manager hears from a mount in the foreground: sd_notify(3), in a few lines.

Rule 1: `READY=1` is the mount's own readiness (rule 2 of `barfs.fuse.mount`): its devices are
        open, and it has answered.
Rule 2: nobody's mount fails, or waits for long, because a manager does not listen.
Rule 3: children (fusermount3) do not inherit the socket: what they say is not the service's word.

A mount in the background says nothing: its command returns when it is ready, which is what
`Type=forking` waits for.
"""

import logging
import os
import socket

from barfs.text import printable

_LONGEST_WAIT = 1.0

log = logging.getLogger(__name__)


class ServiceManager:
    """Whoever `NOTIFY_SOCKET` names, a path or an abstract `@name`; without it, nobody."""

    def __init__(self) -> None:
        """Takes the variable out of the environment."""
        self._address = os.environ.pop("NOTIFY_SOCKET", "")

    def ready(self, status: str) -> None:
        """The service is up; `status` says in one line what it does."""
        self._tell("READY=1", "STATUS=" + printable(status))

    def stopping(self) -> None:
        """The service ends, for whatever reason."""
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
            log.warning("the service manager at %s was not told: %s", self._address, error)
