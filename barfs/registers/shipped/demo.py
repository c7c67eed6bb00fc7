# SPDX-License-Identifier: MIT
"""The demo device of barfs, whose registers `barfs/emulated/demo.py` makes.

`barfs/emulated/demo.rdl` says the same in SystemRDL, for those who learn by example.
"""

from barfs.registers.model import Block
from barfs.registers.shipped.notation import registers

_BAR0 = """
ID 0x00 4 r : 0x66726162, in bytes "barf"
SCRATCH 0x04 4 rw : keeps what is written
COUNTER 0x08 4 re : nanoseconds since reset, lower half; a read latches the upper half
COUNTER_H 0x0c 4 r : nanoseconds since reset, the latched upper half
INVERT 0x10 4 rw : reads as the complement of what was written
ONES 0x14 4 r : 0xffffffff, always
FIFO 0x18 4 rew : a queue of 16 values: a write appends one, a read takes the oldest
LEVEL 0x1c 4 wc : values in the FIFO; a write empties it
WIDTH 0x20 4 r : the width, in bytes, of the access that reads it
READS 0x24 4 rewc : how often it was read before; a write makes it 0
FAULT 0x28 4 rw : refuses to be read while it holds anything but 0
DELAY 0x2c 4 rw : a read answers after as many milliseconds as were written
"""
_BAR4 = """
ID 0x00 4 r : 0x74726f70, in bytes "port"
SCRATCH 0x04 4 rw : keeps what is written
INVERT 0x08 4 rw : reads as the complement of what was written
ONES 0x0c 4 r : 0xffffffff, always
"""


def demo_bar0(size: int) -> Block:
    """The map of its BAR 0."""
    return Block.of("", 0, registers(_BAR0), size=size)


def demo_bar4(size: int) -> Block:
    """The map of its I/O ports."""
    return Block.of("", 0, registers(_BAR4), size=size)
