# SPDX-License-Identifier: MIT
"""vfio-user: devices in another process, reached over a UNIX socket.

    wire <- messages <- channel <- client    a device of any server, as a `Backend`
    wire <- messages <- session <- server    serves a software device of `barfs.emulated`

The specification is QEMU's `docs/interop/vfio-user.rst`.
"""
