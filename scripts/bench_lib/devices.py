# SPDX-License-Identifier: MIT
"""Many software devices in one process: `python -m bench_lib.devices DESCRIPTION SOCKET...`.

Prints a line once all of them accept connections; ends on SIGTERM.
"""

import contextlib
import signal
import sys
import threading

from barfs.emulated.description import load
from barfs.emulated.device import SoftwareDevice
from barfs.vfio_user.server import Server, listening


def main(description: str, sockets: list[str]) -> None:
    spec = load(description)
    threading.stack_size(256 << 10)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    with contextlib.ExitStack() as stack:
        for path in sockets:
            device = stack.enter_context(contextlib.closing(SoftwareDevice(spec)))
            listener = stack.enter_context(listening(path))
            server = Server(device)
            thread = threading.Thread(target=server.serve_listener, args=[listener])
            thread.start()
            stack.callback(server.close)
            stack.callback(thread.join)
            stack.callback(server.stop)
        print("listening", flush=True)
        signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
