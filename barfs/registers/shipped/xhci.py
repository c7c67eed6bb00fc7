# SPDX-License-Identifier: MIT
"""xHCI: the registers of a host controller in its BAR 0. xHCI specification 1.2, section 5.

Only the capability registers have a place of their own. Where the others are, and how many, is what
those say: `xhci` is told by a function that reads them.
"""

from collections.abc import Callable, Iterator, Sequence

from barfs.registers.model import Block, Node, Register
from barfs.registers.names import unique_names
from barfs.registers.shipped.notation import registers

Read32 = Callable[[int], int]

# CAPLENGTH and HCIVERSION are read at once, as Linux does it: QEMU's controller answers a read of
# the latter's two bytes with 0.
_CAPABILITY = """
CAPLENGTH 0x00 4 : Capability Registers Length and Interface Version Number
  CAPLENGTH 7:0 r : Capability Registers Length
  HCIVERSION 31:16 r : Host Controller Interface Version Number
HCSPARAMS1 0x04 4 : Structural Parameters 1
  MaxSlots 7:0 r : Number of Device Slots
  MaxIntrs 18:8 r : Number of Interrupters
  MaxPorts 31:24 r : Number of Ports
HCSPARAMS2 0x08 4 : Structural Parameters 2
  IST 3:0 r : Isochronous Scheduling Threshold
  ERST_Max 7:4 r : Event Ring Segment Table Max, as a power of two
  Max_Scratchpad_Bufs_Hi 25:21 r
  SPR 26 r : Scratchpad Restore
  Max_Scratchpad_Bufs_Lo 31:27 r
HCSPARAMS3 0x0c 4 : Structural Parameters 3
  U1_Device_Exit_Latency 7:0 r : in microseconds
  U2_Device_Exit_Latency 31:16 r : in microseconds
HCCPARAMS1 0x10 4 : Capability Parameters 1
  AC64 0 r : 64-bit Addressing Capability
  BNC 1 r : BW Negotiation Capability
  CSZ 2 r : Context Size
  PPC 3 r : Port Power Control
  PIND 4 r : Port Indicators
  LHRC 5 r : Light HC Reset Capability
  LTC 6 r : Latency Tolerance Messaging Capability
  NSS 7 r : No Secondary SID Support
  PAE 8 r : Parse All Event Data
  SPC 9 r : Stopped - Short Packet Capability
  SEC 10 r : Stopped EDTLA Capability
  CFC 11 r : Contiguous Frame ID Capability
  MaxPSASize 15:12 r : Maximum Primary Stream Array Size
  xECP 31:16 r : xHCI Extended Capabilities Pointer, in dwords
DBOFF 0x14 4 : Doorbell Offset
  Doorbell_Array_Offset 31:2 r : in dwords
RTSOFF 0x18 4 : Runtime Register Space Offset
  Runtime_Register_Space_Offset 31:5 r : in units of 32 bytes
HCCPARAMS2 0x1c 4 : Capability Parameters 2
  U3C 0 r : U3 Entry Capability
  CMC 1 r : Configure Endpoint Command Max Exit Latency Too Large Capability
  FSC 2 r : Force Save Context Capability
  CTC 3 r : Compliance Transition Capability
  LEC 4 r : Large ESIT Payload Capability
  CIC 5 r : Configuration Information Capability
  ETC 6 r : Extended TBC Capability
  ETC_TSC 7 r : Extended TBC TRB Status Capability
  GSC 8 r : Get/Set Extended Property Capability
  VTC 9 r : Virtualization Based Trusted I/O Capability
"""
# Of CRCR, what is not listed as readable reads as 0.
_OPERATIONAL = """
USBCMD 0x00 4 : USB Command
  RS 0 rw : Run/Stop
  HCRST 1 rw1s : Host Controller Reset
  INTE 2 rw : Interrupter Enable
  HSEE 3 rw : Host System Error Enable
  LHCRST 7 rw1s : Light Host Controller Reset
  CSS 8 rwp : Controller Save State
  CRS 9 rwp : Controller Restore State
  EWE 10 rw : Enable Wrap Event
  EU3S 11 rw : Enable U3 MFINDEX Stop
  CME 13 rw : CEM Enable
  ETE 14 rw : Extended TBC Enable
  TSC_EN 15 rw : Extended TBC TRB Status Enable
  VTIOE 16 rw : VTIO Enable
USBSTS 0x04 4 : USB Status
  HCH 0 r : HCHalted
  HSE 2 rw1c : Host System Error
  EINT 3 rw1c : Event Interrupt
  PCD 4 rw1c : Port Change Detect
  SSS 8 r : Save State Status
  RSS 9 r : Restore State Status
  SRE 10 rw1c : Save/Restore Error
  CNR 11 r : Controller Not Ready
  HCE 12 r : Host Controller Error
PAGESIZE 0x08 4 : Page Size
  Page_Size 15:0 r : bit n: 4096 << n
DNCTRL 0x14 4 : Device Notification Control
  N 15:0 rw : Notification Enable, a bit for each kind
CRCR 0x18 8/4 : Command Ring Control
  RCS 0 w : Ring Cycle State
  CS 1 rw1s : Command Stop
  CA 2 rw1s : Command Abort
  CRR 3 r : Command Ring Running
  Command_Ring_Pointer 63:6 w
DCBAAP 0x30 8/4 : Device Context Base Address Array Pointer
  Pointer 63:6 rw
CONFIG 0x38 4 : Configure
  MaxSlotsEn 7:0 rw : Max Device Slots Enabled
  U3E 8 rw : U3 Entry Enable
  CIE 9 rw : Configuration Information Enable
"""
_PORT = """
PORTSC 0x0 4 : Port Status and Control
  CCS 0 r : Current Connect Status
  PED 1 rw1c : Port Enabled/Disabled
  OCA 3 r : Over-current Active
  PR 4 rw1s : Port Reset
  PLS 8:5 rw : Port Link State
    U0=0 U1=1 U2=2 U3=3 Disabled=4 RxDetect=5 Inactive=6 Polling=7 Recovery=8 HotReset=9
    Compliance=10 Test=11 Resume=15
  PP 9 rw : Port Power
  Port_Speed 13:10 r none=0 full=1 low=2 high=3 super=4 super_plus=5
  PIC 15:14 rw off=0 amber=1 green=2 : Port Indicator Control
  LWS 16 rwp : Port Link State Write Strobe
  CSC 17 rw1c : Connect Status Change
  PEC 18 rw1c : Port Enabled/Disabled Change
  WRC 19 rw1c : Warm Port Reset Change
  OCC 20 rw1c : Over-current Change
  PRC 21 rw1c : Port Reset Change
  PLC 22 rw1c : Port Link State Change
  CEC 23 rw1c : Port Config Error Change
  CAS 24 r : Cold Attach Status
  WCE 25 rw : Wake on Connect Enable
  WDE 26 rw : Wake on Disconnect Enable
  WOE 27 rw : Wake on Over-current Enable
  DR 30 r : Device Removable
  WPR 31 rw1s : Warm Port Reset
PORTPMSC 0x4 4 rw : Port Power Management Status and Control, by the protocol of the port
PORTLI 0x8 4 r : Port Link Info, by the protocol of the port
PORTHLPMC 0xc 4 rw : Port Hardware LPM Control, by the protocol of the port
"""
_MICROFRAME = """
MFINDEX 0x0 4 : Microframe Index
  Microframe_Index 13:0 r
"""
_INTERRUPTER = """
IMAN 0x00 4 : Interrupter Management
  IP 0 rw1c : Interrupt Pending
  IE 1 rw : Interrupt Enable
IMOD 0x04 4 : Interrupter Moderation
  IMODI 15:0 rw : Interrupt Moderation Interval, in units of 250 ns
  IMODC 31:16 rw : Interrupt Moderation Counter
ERSTSZ 0x08 4 : Event Ring Segment Table Size
  Size 15:0 rw
ERSTBA 0x10 8/4 : Event Ring Segment Table Base Address
  Address 63:6 rw
ERDP 0x18 8/4 : Event Ring Dequeue Pointer
  DESI 2:0 rw : Dequeue ERST Segment Index
  EHB 3 rw1c : Event Handler Busy
  Pointer 63:4 rw
"""
# A doorbell reads as 0.
_DOORBELL = """
DB 0x0 4 : Doorbell: 0 of the controller, others of device slots
  Target 7:0 w
  Stream_ID 31:16 w
"""
_EXTENDED = """
CAP 0x0 4 : Extended Capability Pointer
  ID 7:0 r
  Next 15:8 r : in dwords
"""
_LEGACY = """
USBLEGSUP 0x0 4 : USB Legacy Support Capability
  ID 7:0 r
  Next 15:8 r : in dwords
  HC_BIOS_Owned_Semaphore 16 rw
  HC_OS_Owned_Semaphore 24 rw
USBLEGCTLSTS 0x4 4 : USB Legacy Support Control/Status
  USB_SMI_Enable 0 rw
  SMI_on_Host_System_Error_Enable 4 rw
  SMI_on_OS_Ownership_Enable 13 rw
  SMI_on_PCI_Command_Enable 14 rw
  SMI_on_BAR_Enable 15 rw
  SMI_on_Event_Interrupt 16 r
  SMI_on_Host_System_Error 20 r
  SMI_on_OS_Ownership_Change 29 rw1c
  SMI_on_PCI_Command 30 rw1c
  SMI_on_BAR 31 rw1c
"""
_PROTOCOL = """
CAP 0x0 4 : Supported Protocol Capability
  ID 7:0 r
  Next 15:8 r : in dwords
  Minor_Revision 23:16 r
  Major_Revision 31:24 r
NAME 0x4 4 r : Name String
PORTS 0x8 4 : the ports of this protocol
  Compatible_Port_Offset 7:0 r : the first of them, counted from 1
  Compatible_Port_Count 15:8 r
  Protocol_Defined 27:16 r
  PSIC 31:28 r : Protocol Speed ID Count
SLOT 0xc 4 : Protocol Slot
  Protocol_Slot_Type 4:0 r
"""
_KINDS = {1: ("USBLEGSUP", _LEGACY), 2: ("SUPPORTED_PROTOCOL", _PROTOCOL)}
_PORTS_START = 0x400
_PORT_SIZE = 0x10
_INTERRUPTERS_START = 0x20
_INTERRUPTER_SIZE = 0x20
_MOST_CAPABILITIES = 64


def xhci(read: Read32 | None, size: int) -> Block:
    """The map of a BAR of `size` bytes. Without `read`, the capability registers alone."""
    nodes: list[Node] = list(registers(_CAPABILITY))
    if read is not None:
        nodes += _pointed_to(read)
        nodes += _extended(read, (read(0x10) >> 16) * 4, size)
    # A controller that points past the end of its BAR has nothing there.
    inside = [node for node in nodes if Block.of("", 0, [node]).size <= size]
    return Block.of("", 0, inside, size=size)


def _pointed_to(read: Read32) -> Iterator[Node]:
    operational, parameters = read(0x00) & 0xFF, read(0x04)
    doorbells, runtime = read(0x14) & ~0x3, read(0x18) & ~0x1F
    slots, interrupters, ports = (
        parameters & 0xFF, parameters >> 8 & 0x7FF, parameters >> 24,
    )  # fmt: skip
    own: list[Node] = list(registers(_OPERATIONAL))
    if ports:
        own.append(_array("PORT", _PORTS_START, registers(_PORT), ports, _PORT_SIZE))
    yield Block.of("OP", operational, own, description="Operational Registers")
    timing: list[Node] = list(registers(_MICROFRAME))
    if interrupters:
        timing.append(
            _array(
                "IR",
                _INTERRUPTERS_START,
                registers(_INTERRUPTER),
                interrupters,
                _INTERRUPTER_SIZE,
            )
        )
    yield Block.of("RT", runtime, timing, description="Runtime Registers")
    yield _array("DOORBELL", doorbells, registers(_DOORBELL), slots + 1, 4)


def _array(name: str, offset: int, nodes: Sequence[Register], count: int, stride: int) -> Block:
    return Block.of(name, offset, nodes, dims=(count,), stride=stride)


def _extended(read: Read32, offset: int, size: int) -> list[Node]:
    """The list of extended capabilities; a loop or a bad link ends it."""
    found: list[tuple[int, str, str]] = []
    seen: set[int] = set()
    while offset and offset + 4 <= size and offset not in seen and len(seen) < _MOST_CAPABILITIES:
        seen.add(offset)
        header = read(offset)
        if header & 0xFF in (0x00, 0xFF):
            break
        name, text = _KINDS.get(header & 0xFF, (f"XCAP_{header & 0xFF}", _EXTENDED))
        found.append((offset, name, text))
        offset = offset + (header >> 8 & 0xFF) * 4 if header >> 8 & 0xFF else 0
    names = unique_names(name for _offset, name, _text in found)
    return [
        Block.of(name, offset, registers(text))
        for (offset, _name, text), name in zip(found, names, strict=True)
    ]
