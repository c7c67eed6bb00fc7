# SPDX-License-Identifier: MIT
"""QEMU's edu device. QEMU, docs/specs/edu.rst and hw/misc/edu.c.

A register below 0x80 takes 4-byte accesses and nothing else, one of the DMA engine takes its whole
value from one access.
"""

from barfs.registers.model import Block
from barfs.registers.shipped.notation import registers

_REGISTERS = """
identification 0x00 4 : 0xRRrr00ed, RR and rr the major and minor version
  magic 15:0 r : 0x00ed
  minor 23:16 r
  major 31:24 r
liveness 0x04 4 rw : reads as the complement of what was written
factorial 0x08 4 rw : the number to compute, then its factorial
status 0x20 4
  computing 0 r : the factorial is being computed
  irq_after_factorial 7 rw : raise an interrupt when it is done
interrupt_status 0x24 4 r : what raised the interrupt
  factorial 0 r
  dma 8 r
interrupt_raise 0x60 4 w : these bits are set in interrupt_status
interrupt_acknowledge 0x64 4 w : these bits are cleared in interrupt_status
dma_source 0x80 8 rw
dma_destination 0x88 8 rw
dma_count 0x90 8 rw : bytes to transfer
dma_command 0x98 8
  start 0 rw : starts a transfer, and is 1 until it is done
  direction 1 rw from_ram=0 to_ram=1
  irq 2 rw : raise an interrupt (0x100) when it is done
"""


def edu(size: int) -> Block:
    """The map of its BAR 0."""
    return Block.of("", 0, registers(_REGISTERS), size=size)
