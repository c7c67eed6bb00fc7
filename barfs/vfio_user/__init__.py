# SPDX-License-Identifier: MIT
"""vfio-user: devices that live in another process and are reached over a UNIX socket.

    wire <- client                          a device of somebody else's server, as a `Backend`
    wire <- config_space, device <- server  a software device of our own
            description <- device           ... described in TOML
            device <- demo                  ... and the one that is built in

The specification is QEMU's `docs/interop/vfio-user.rst`.
"""
