# SPDX-License-Identifier: MIT
"""What tests do with datagram sockets."""

import socket


def fill(sender: socket.socket, address: str) -> None:
    """Send until the queue of whoever listens at `address` is full."""
    sender.setblocking(False)
    try:
        while True:
            sender.sendto(b"noise", address)
    except BlockingIOError:
        pass
