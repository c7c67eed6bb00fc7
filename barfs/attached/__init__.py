# SPDX-License-Identifier: MIT
"""Devices that a mount holds, from another process.

`mounts` finds mounts and reads what each says of itself, `wire` is the protocol by which a mount
made with `-o map` hands out windows.
"""
