# SPDX-License-Identifier: MIT
"""NVM Express: the properties of a PCIe controller and its doorbells.

NVM Express Base Specification 2.0, section 3.1.3; NVMe over PCIe Transport Specification 1.0,
section 3.1.2. 64-bit properties are accessed in halves, which a controller has to allow.
"""

from barfs.registers.model import Block, Node
from barfs.registers.shipped.notation import array, registers

_PROPERTIES = """
CAP 0x00 8/4 : Controller Capabilities
  MQES 15:0 r : Maximum Queue Entries Supported, minus one
  CQR 16 r : Contiguous Queues Required
  AMS 18:17 r : Arbitration Mechanism Supported
  TO 31:24 r : Timeout, in units of 500 ms
  DSTRD 35:32 r : Doorbell Stride, 4 << DSTRD bytes
  NSSRS 36 r : NVM Subsystem Reset Supported
  CSS 44:37 r : Command Sets Supported
  BPS 45 r : Boot Partition Support
  CPS 47:46 r not_reported=0 controller=1 domain=2 subsystem=3 : Controller Power Scope
  MPSMIN 51:48 r : Memory Page Size Minimum, 4096 << MPSMIN bytes
  MPSMAX 55:52 r : Memory Page Size Maximum, 4096 << MPSMAX bytes
  PMRS 56 r : Persistent Memory Region Supported
  CMBS 57 r : Controller Memory Buffer Supported
  NSSS 58 r : NVM Subsystem Shutdown Supported
  CRWMS 59 r : Controller Ready With Media Support
  CRIMS 60 r : Controller Ready Independent of Media Support
VS 0x08 4 : Version
  TER 7:0 r : Tertiary Version Number
  MNR 15:8 r : Minor Version Number
  MJR 31:16 r : Major Version Number
INTMS 0x0c 4 : Interrupt Mask Set
  IVMS 31:0 rw1s : Interrupt Vector Mask Set
INTMC 0x10 4 : Interrupt Mask Clear
  IVMC 31:0 rw1c : Interrupt Vector Mask Clear
CC 0x14 4 : Controller Configuration
  EN 0 rw : Enable
  CSS 6:4 rw nvm=0 all=6 admin=7 : I/O Command Set Selected
  MPS 10:7 rw : Memory Page Size, 4096 << MPS bytes
  AMS 13:11 rw round_robin=0 weighted_round_robin=1 vendor=7 : Arbitration Mechanism Selected
  SHN 15:14 rw none=0 normal=1 abrupt=2 : Shutdown Notification
  IOSQES 19:16 rw : I/O Submission Queue Entry Size, as a power of two
  IOCQES 23:20 rw : I/O Completion Queue Entry Size, as a power of two
  CRIME 24 rw : Controller Ready Independent of Media Enable
CSTS 0x1c 4 : Controller Status
  RDY 0 r : Ready
  CFS 1 r : Controller Fatal Status
  SHST 3:2 r normal=0 occurring=1 complete=2 : Shutdown Status
  NSSRO 4 rw1c : NVM Subsystem Reset Occurred
  PP 5 r : Processing Paused
  ST 6 r : Shutdown Type
NSSR 0x20 4 : NVM Subsystem Reset
  NSSRC 31:0 rw : NVM Subsystem Reset Control
AQA 0x24 4 : Admin Queue Attributes
  ASQS 11:0 rw : Admin Submission Queue Size, minus one
  ACQS 27:16 rw : Admin Completion Queue Size, minus one
ASQ 0x28 8/4 : Admin Submission Queue Base Address
  ASQB 63:12 rw : Admin Submission Queue Base
ACQ 0x30 8/4 : Admin Completion Queue Base Address
  ACQB 63:12 rw : Admin Completion Queue Base
CMBLOC 0x38 4 : Controller Memory Buffer Location
  BIR 2:0 r : Base Indicator Register
  CQMMS 3 r : CMB Queue Mixed Memory Support
  CQPDS 4 r : CMB Queue Physically Discontiguous Support
  CDPMLS 5 r : CMB Data Pointer Mixed Locations Support
  CDPCILS 6 r : CMB Data Pointer and Command Independent Locations Support
  CDMMMS 7 r : CMB Data Metadata Mixed Memory Support
  CQDA 8 r : CMB Queue Dword Alignment
  OFST 31:12 r : Offset, in units of CMBSZ.SZU
CMBSZ 0x3c 4 : Controller Memory Buffer Size
  SQS 0 r : Submission Queue Support
  CQS 1 r : Completion Queue Support
  LISTS 2 r : PRP SGL List Support
  RDS 3 r : Read Data Support
  WDS 4 r : Write Data Support
  SZU 11:8 r : Size Units, 4 KiB << 4 * SZU
  SZ 31:12 r : Size
BPINFO 0x40 4 : Boot Partition Information
  BPSZ 14:0 r : Boot Partition Size, in units of 128 KiB
  BRS 25:24 r none=0 reading=1 completed=2 error=3 : Boot Read Status
  ABPID 31 r : Active Boot Partition ID
BPRSEL 0x44 4 : Boot Partition Read Select
  BPRSZ 9:0 rw : Boot Partition Read Size, in units of 4 KiB
  BPROF 29:10 rw : Boot Partition Read Offset, in units of 4 KiB
  BPID 31 rw : Boot Partition Identifier
BPMBL 0x48 8/4 : Boot Partition Memory Buffer Location
  BMBBA 63:12 rw : Boot Partition Memory Buffer Base Address
CMBMSC 0x50 8/4 : Controller Memory Buffer Memory Space Control
  CRE 0 rw : Capabilities Registers Enabled
  CMSE 1 rw : Controller Memory Space Enable
  CBA 63:12 rw : Controller Base Address
CMBSTS 0x58 4 : Controller Memory Buffer Status
  CBAI 0 r : Controller Base Address Invalid
CMBEBS 0x5c 4 : Controller Memory Buffer Elasticity Buffer Size
  CMBSZU 3:0 r : Elasticity Buffer Size Units
  RBB 4 r : Read Bypass Behavior
  CMBWBZ 31:8 r : Elasticity Buffer Size
CMBSWTP 0x60 4 : Controller Memory Buffer Sustained Write Throughput
  CMBSWTU 3:0 r : Sustained Write Throughput Units
  CMBSWTV 31:8 r : Sustained Write Throughput
NSSD 0x64 4 : NVM Subsystem Shutdown
  NSSC 31:0 rw : NVM Subsystem Shutdown Control
CRTO 0x68 4 : Controller Ready Timeouts
  CRWMT 15:0 r : Controller Ready With Media Timeout, in units of 500 ms
  CRIMT 31:16 r : Controller Ready Independent of Media Timeout, in units of 500 ms
PMRCAP 0xe00 4 : Persistent Memory Region Capabilities
  RDS 3 r : Read Data Support
  WDS 4 r : Write Data Support
  BIR 7:5 r : Base Indicator Register
  PMRTU 9:8 r half_second=0 minute=1 : Persistent Memory Region Time Units
  PMRWBM 13:10 r : Persistent Memory Region Write Barrier Mechanisms
  PMRTO 23:16 r : Persistent Memory Region Timeout
  CMSS 24 r : Controller Memory Space Supported
PMRCTL 0xe04 4 : Persistent Memory Region Control
  EN 0 rw : Enable
PMRSTS 0xe08 4 : Persistent Memory Region Status
  ERR 7:0 r : Error
  NRDY 8 r : Not Ready
  HSTS 11:9 r normal=0 restore_error=1 read_only=2 unreliable=3 : Health Status
  CBAI 12 r : Controller Base Address Invalid
PMREBS 0xe0c 4 : Persistent Memory Region Elasticity Buffer Size
  PMRSZU 3:0 r : Elasticity Buffer Size Units
  RBB 4 r : Read Bypass Behavior
  PMRWBZ 31:8 r : Elasticity Buffer Size
PMRSWTP 0xe10 4 : Persistent Memory Region Sustained Write Throughput
  PMRSWTU 3:0 r : Sustained Write Throughput Units
  PMRSWTV 31:8 r : Sustained Write Throughput
PMRMSCL 0xe14 4 : Persistent Memory Region Memory Space Control Lower
  CMSE 1 rw : Controller Memory Space Enable
  CBA 31:12 rw : Controller Base Address
PMRMSCU 0xe18 4 : Persistent Memory Region Memory Space Control Upper
  CBA 31:0 rw : Controller Base Address
"""
# A controller may answer a read of a doorbell with anything.
_DOORBELLS = """
SQTDBL {sq} 4 : Submission Queue Tail Doorbell (SQyTDBL)
  SQT 15:0 w : Submission Queue Tail
CQHDBL {cq} 4 : Completion Queue Head Doorbell (CQyHDBL)
  CQH 15:0 w : Completion Queue Head
"""
_DOORBELLS_START = 0x1000
_MOST_QUEUES = 1 << 16


def nvme(doorbell_stride: int | None, size: int) -> Block:
    """The map of a BAR of `size` bytes. `doorbell_stride` is CAP.DSTRD, None while unknown."""
    nodes: list[Node] = [
        node for node in registers(_PROPERTIES) if node.offset + node.width <= size
    ]
    if doorbell_stride is not None:
        stride = 4 << doorbell_stride
        queues = min((size - _DOORBELLS_START) // (2 * stride), _MOST_QUEUES)
        if queues > 0:
            text = _DOORBELLS.format(sq=_DOORBELLS_START, cq=_DOORBELLS_START + stride)
            nodes += array(registers(text), queues, 2 * stride)
    return Block.of("", 0, nodes, size=size)
