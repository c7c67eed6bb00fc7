# SPDX-License-Identifier: MIT
"""Lets go of a device when its mount does, so that the kernel gets it back.

Rule 1: the kernel waits for the last mapping of a VFIO device, so a program that uses one does not
        have to look whether it is wanted back: a thread waits for the end of the connection.
Rule 2: the thread ends with the device, also with one that is dropped without being closed.
"""

import contextlib
import logging
import select
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger(__name__)


class Closable(Protocol):
    """What is closed; `source` is its name in the log."""

    @property
    def source(self) -> str: ...

    def close(self) -> bool:
        """Returns False while an access is inside."""


def close_at_departure(
    device: Closable, connection: socket.socket, is_closed: Callable[[], bool]
) -> None:
    """Close `device` in a thread when `connection` ends; returns at once.

    `is_closed`: whether this process has ended the connection. Raises RuntimeError if no thread can
    be started.
    """
    own = connection.dup()

    def end(_device: object) -> None:
        with contextlib.suppress(OSError):
            own.shutdown(socket.SHUT_RDWR)

    waiting = (weakref.ref(device, end), own, is_closed)
    try:
        threading.Thread(target=_wait, args=waiting, name="barfs-attached", daemon=True).start()
    except RuntimeError:
        own.close()
        raise


def _wait(
    reference: "weakref.ref[Closable]", connection: socket.socket, is_closed: Callable[[], bool]
) -> None:
    with connection:
        poll = select.poll()
        poll.register(connection, select.POLLRDHUP)
        poll.poll()
    device = reference()
    if device is None or is_closed():
        return
    log.warning("%s leaves its mount; it is closed here as well", device.source)
    while not device.close():
        continue
