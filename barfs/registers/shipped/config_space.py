# SPDX-License-Identifier: MIT
"""Configuration space: the header, and capabilities where the device's own lists say.

Names are those of setpci, linux/pci_regs.h and pciutils' header.h, without PCI_ and the name of the
register. PCI Local Bus Specification 3.0, chapter 6; PCI Express Base Specification 5.0, section 7.
"""

from collections.abc import Callable, Iterator

from barfs.pci import CONFIG_SIZE, ConfigSpace
from barfs.registers.model import Block, Node
from barfs.registers.names import unique_names
from barfs.registers.shipped.capabilities import EXTENDED, STANDARD, extended_text, standard_text
from barfs.registers.shipped.notation import registers

_COMMON = """
VENDOR_ID 0x00 2 r
DEVICE_ID 0x02 2 r
COMMAND 0x04 2
  IO 0 rw : I/O space enable
  MEMORY 1 rw : memory space enable
  MASTER 2 rw : bus master enable
  SPECIAL 3 rw : respond to special cycles
  INVALIDATE 4 rw : memory write and invalidate
  VGA_PALETTE 5 rw : VGA palette snooping
  PARITY 6 rw : parity error response
  WAIT 7 rw : address and data stepping
  SERR 8 rw : SERR# enable
  FAST_BACK 9 rw : fast back-to-back writes
  INTX_DISABLE 10 rw : INTx emulation disable
STATUS 0x06 2
  IMM_READY 0 r : immediate readiness
  INTERRUPT 3 r : INTx status
  CAP_LIST 4 r : a capability list is there
  CLK_66MHZ 5 r
  UDF 6 r
  FAST_BACK 7 r
  PARITY 8 rw1c : master data parity error
  DEVSEL 10:9 r fast=0 medium=1 slow=2
  SIG_TARGET_ABORT 11 rw1c
  REC_TARGET_ABORT 12 rw1c
  REC_MASTER_ABORT 13 rw1c
  SIG_SYSTEM_ERROR 14 rw1c
  DETECTED_PARITY 15 rw1c
REVISION 0x08 1 r
CLASS_PROG 0x09 1 r : programming interface
CLASS_DEVICE 0x0a 2 r : base class and subclass
CACHE_LINE_SIZE 0x0c 1 rw : in dwords
LATENCY_TIMER 0x0d 1 rw
HEADER_TYPE 0x0e 1
  TYPE 6:0 r normal=0 bridge=1 cardbus=2
  MULTI_FUNCTION 7 r
BIST 0x0f 1
  CODE 3:0 r : 0 after a test without error
  START 6 rw1s
  CAPABLE 7 r
CAPABILITIES_POINTER 0x34 1 r
INTERRUPT_LINE 0x3c 1 rw
INTERRUPT_PIN 0x3d 1 r
"""
_NORMAL = """
CARDBUS_CIS 0x28 4 r
SUBSYSTEM_VENDOR_ID 0x2c 2 r
SUBSYSTEM_ID 0x2e 2 r
ROM_ADDRESS 0x30 4
  ENABLE 0 rw
  ADDRESS 31:11 rw
MIN_GNT 0x3e 1 r
MAX_LAT 0x3f 1 r
"""
_BRIDGE = """
PRIMARY_BUS 0x18 1 rw
SECONDARY_BUS 0x19 1 rw
SUBORDINATE_BUS 0x1a 1 rw
SEC_LATENCY_TIMER 0x1b 1 rw
IO_BASE 0x1c 1 rw
IO_LIMIT 0x1d 1 rw
SEC_STATUS 0x1e 2
  CLK_66MHZ 5 r
  FAST_BACK 7 r
  PARITY 8 rw1c
  DEVSEL 10:9 r fast=0 medium=1 slow=2
  SIG_TARGET_ABORT 11 rw1c
  REC_TARGET_ABORT 12 rw1c
  REC_MASTER_ABORT 13 rw1c
  REC_SYSTEM_ERROR 14 rw1c
  DETECTED_PARITY 15 rw1c
MEMORY_BASE 0x20 2 rw
MEMORY_LIMIT 0x22 2 rw
PREF_MEMORY_BASE 0x24 2 rw
PREF_MEMORY_LIMIT 0x26 2 rw
PREF_BASE_UPPER32 0x28 4 rw
PREF_LIMIT_UPPER32 0x2c 4 rw
IO_BASE_UPPER16 0x30 2 rw
IO_LIMIT_UPPER16 0x32 2 rw
ROM_ADDRESS1 0x38 4
  ENABLE 0 rw
  ADDRESS 31:11 rw
BRIDGE_CONTROL 0x3e 2
  PARITY 0 rw
  SERR 1 rw
  ISA 2 rw
  VGA 3 rw
  VGA_16BIT 4 rw
  MASTER_ABORT 5 rw
  BUS_RESET 6 rw
  FAST_BACK 7 rw
  PRI_DISCARD_TIMER 8 rw
  SEC_DISCARD_TIMER 9 rw
  DISCARD_TIMER_STATUS 10 rw1c
  DISCARD_TIMER_SERR_EN 11 rw
"""
_BAR = {
    "io": "BASE_ADDRESS_{n} {at} 4\n  TYPE 1:0 r memory=0 io=1\n  ADDRESS 31:2 rw\n",
    "memory": (
        "BASE_ADDRESS_{n} {at} 4\n  IO 0 r\n  TYPE 2:1 r mem32=0 mem1m=1 mem64=2\n"
        "  PREFETCH 3 r\n  ADDRESS 31:4 rw\n"
    ),
    "upper": "BASE_ADDRESS_{n} {at} 4 rw : the upper half of the one before\n",
}
_BARS_START = 0x10
_BAR_COUNTS = {0: 6, 1: 2}
_EXTENDED_START = 0x100
_EXPRESS = 0x10
HEADER_SIZE = 64


def read_lists(read: Callable[[int], int], size: int) -> bytes:
    """A configuration space of which the words that a map depends on are read, and no other."""
    data, known = bytearray(size), set[int]()
    wanted = set(range(0, min(size, HEADER_SIZE) & ~3, 4))
    while wanted:
        for offset in wanted:
            data[offset : offset + 4] = read(offset).to_bytes(4, "little")
        known |= wanted
        standard = (offset for _id, offset in ConfigSpace(bytes(data)).capabilities())
        extended = (offset for offset, _header in _extended_headers(bytes(data)))
        wanted = {at for at in (*standard, *extended) if at + 4 <= size} - known
    return bytes(data)


def config_space(data: bytes) -> Block:
    """The map of a configuration space whose contents are `data`."""
    space = ConfigSpace(data)
    text = _COMMON + {0: _NORMAL, 1: _BRIDGE}.get(space.header_type, "") + _bars(space)
    nodes: list[Node] = sorted(registers(text), key=lambda register: register.offset)
    blocks = [*_standard(space), *_extended(data, _express_flags(space))]
    names = unique_names(name for name, _offset, _text in blocks)
    for (_name, offset, own), name in zip(blocks, names, strict=True):
        inside = [each for each in registers(own) if offset + each.offset + each.width <= len(data)]
        if inside:
            nodes.append(Block.of(name, offset, inside))
    return Block.of("", 0, nodes, size=len(data))


def _bars(space: ConfigSpace) -> str:
    bars, texts = space.bars(), []
    for number in range(_BAR_COUNTS.get(space.header_type, 0)):
        kind = "upper" if number not in bars else bars[number].kind
        template = _BAR["memory" if kind.startswith("mem") else kind]
        texts.append(template.format(n=number, at=hex(_BARS_START + 4 * number)))
    return "".join(texts)


def _standard(space: ConfigSpace) -> Iterator[tuple[str, int, str]]:
    for identifier, offset in space.capabilities():
        if offset < CONFIG_SIZE:
            name = STANDARD.get(identifier, f"{identifier:02X}")
            yield f"CAP_{name}", offset, standard_text(identifier, _control(space, offset))


def _control(space: ConfigSpace, offset: int) -> int:
    """The word behind the header of the capability there."""
    return int.from_bytes(space.data[offset + 2 : offset + 4], "little")


def _express_flags(space: ConfigSpace) -> int:
    found = (offset for identifier, offset in space.capabilities() if identifier == _EXPRESS)
    return next((_control(space, offset) for offset in found), 0)


def _extended(data: bytes, express: int) -> Iterator[tuple[str, int, str]]:
    for offset, header in _extended_headers(data):
        identifier = header & 0xFFFF
        if header == 0xFFFF_FFFF:
            return
        if identifier:  # 0 is a null capability, which only links on
            name = EXTENDED.get(identifier, f"{identifier:04X}")
            yield f"ECAP_{name}", offset, extended_text(identifier, express)


def _extended_headers(data: bytes) -> Iterator[tuple[int, int]]:
    """The place of each extended capability, and its header; a loop or a bad link ends them."""
    offset, seen = _EXTENDED_START, set[int]()
    while offset >= _EXTENDED_START and offset not in seen and offset + 4 <= len(data):
        seen.add(offset)
        header = int.from_bytes(data[offset : offset + 4], "little")
        yield offset, header
        offset = header >> 20 & ~0x3
