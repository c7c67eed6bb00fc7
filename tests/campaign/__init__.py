# SPDX-License-Identifier: MIT
"""The promises of barfs when hardware, peers and users misbehave: a test and a figure for each.

The tests run short with all others, and in full from `scripts/soak`. The run prints the figures at
its end; the tests assert deadlines, and no other times.
"""
