# SPDX-License-Identifier: MIT
"""AHCI: the registers of an HBA in its BAR 5. Serial ATA AHCI 1.3.1, section 3."""

from barfs.registers.model import Block
from barfs.registers.shipped.notation import registers

_GENERIC = """
CAP 0x00 4 : HBA Capabilities
  NP 4:0 r : Number of Ports, minus one
  SXS 5 r : Supports External SATA
  EMS 6 r : Enclosure Management Supported
  CCCS 7 r : Command Completion Coalescing Supported
  NCS 12:8 r : Number of Command Slots, minus one
  PSC 13 r : Partial State Capable
  SSC 14 r : Slumber State Capable
  PMD 15 r : PIO Multiple DRQ Block
  FBSS 16 r : FIS-based Switching Supported
  SPM 17 r : Supports Port Multiplier
  SAM 18 r : Supports AHCI mode only
  ISS 23:20 r gen1=1 gen2=2 gen3=3 : Interface Speed Support
  SCLO 24 r : Supports Command List Override
  SAL 25 r : Supports Activity LED
  SALP 26 r : Supports Aggressive Link Power Management
  SSS 27 r : Supports Staggered Spin-up
  SMPS 28 r : Supports Mechanical Presence Switch
  SSNTF 29 r : Supports SNotification Register
  SNCQ 30 r : Supports Native Command Queuing
  S64A 31 r : Supports 64-bit Addressing
GHC 0x04 4 : Global HBA Control
  HR 0 rw1s : HBA Reset
  IE 1 rw : Interrupt Enable
  MRSM 2 r : MSI Revert to Single Message
  AE 31 rw : AHCI Enable
IS 0x08 4 : Interrupt Status
  IPS 31:0 rw1c : Interrupt Pending Status, a bit for each port
PI 0x0c 4 : Ports Implemented
  PI 31:0 r : a bit for each port
VS 0x10 4 : AHCI Version
  MNR 15:0 r : Minor Version Number
  MJR 31:16 r : Major Version Number
CCC_CTL 0x14 4 : Command Completion Coalescing Control
  EN 0 rw : Enable
  INT 7:3 r : Interrupt
  CC 15:8 rw : Command Completions
  TV 31:16 rw : Timeout Value, in milliseconds
CCC_PORTS 0x18 4 : Command Completion Coalescing Ports
  PRT 31:0 rw : a bit for each port
EM_LOC 0x1c 4 : Enclosure Management Location
  SZ 15:0 r : Buffer Size, in dwords
  OFST 31:16 r : Offset, in dwords
EM_CTL 0x20 4 : Enclosure Management Control
  STS_MR 0 rw1c : Message Received
  CTL_TM 8 rw1s : Transmit Message
  CTL_RST 9 rw1s : Reset
  SUPP_LED 16 r : LED Message Types
  SUPP_SAFTE 17 r : SAF-TE Enclosure Management Messages
  SUPP_SES2 18 r : SES-2 Enclosure Management Messages
  SUPP_SGPIO 19 r : SGPIO Enclosure Management Messages
  ATTR_SMB 24 r : Single Message Buffer
  ATTR_XMT 25 r : Transmit Only
  ATTR_ALHD 26 r : Activity LED Hardware Driven
  ATTR_PM 27 r : Port Multiplier Support
CAP2 0x24 4 : HBA Capabilities Extended
  BOH 0 r : BIOS/OS Handoff
  NVMP 1 r : NVMHCI Present
  APST 2 r : Automatic Partial to Slumber Transitions
  SDS 3 r : Supports Device Sleep
  SADM 4 r : Supports Aggressive Device Sleep Management
  DESO 5 r : DevSleep Entrance from Slumber Only
BOHC 0x28 4 : BIOS/OS Handoff Control and Status
  BOS 0 rw : BIOS Owned Semaphore
  OOS 1 rw : OS Owned Semaphore
  SOOE 2 rw : SMI on OS Ownership Change Enable
  OOC 3 rw1c : OS Ownership Change
  BB 4 rw : BIOS Busy
"""
_PORT = """
CLB 0x00 4 : Command List Base Address (PxCLB)
  CLB 31:10 rw
CLBU 0x04 4 : Command List Base Address Upper 32 bits (PxCLBU)
  CLBU 31:0 rw
FB 0x08 4 : FIS Base Address (PxFB)
  FB 31:8 rw
FBU 0x0c 4 : FIS Base Address Upper 32 bits (PxFBU)
  FBU 31:0 rw
IS 0x10 4 : Interrupt Status (PxIS)
  DHRS 0 rw1c : Device to Host Register FIS Interrupt
  PSS 1 rw1c : PIO Setup FIS Interrupt
  DSS 2 rw1c : DMA Setup FIS Interrupt
  SDBS 3 rw1c : Set Device Bits Interrupt
  UFS 4 r : Unknown FIS Interrupt
  DPS 5 rw1c : Descriptor Processed
  PCS 6 r : Port Connect Change Status
  DMPS 7 rw1c : Device Mechanical Presence Status
  PRCS 22 r : PhyRdy Change Status
  IPMS 23 rw1c : Incorrect Port Multiplier Status
  OFS 24 rw1c : Overflow Status
  INFS 26 rw1c : Interface Non-fatal Error Status
  IFS 27 rw1c : Interface Fatal Error Status
  HBDS 28 rw1c : Host Bus Data Error Status
  HBFS 29 rw1c : Host Bus Fatal Error Status
  TFES 30 rw1c : Task File Error Status
  CPDS 31 rw1c : Cold Port Detect Status
IE 0x14 4 : Interrupt Enable (PxIE)
  DHRE 0 rw : Device to Host Register FIS Interrupt Enable
  PSE 1 rw : PIO Setup FIS Interrupt Enable
  DSE 2 rw : DMA Setup FIS Interrupt Enable
  SDBE 3 rw : Set Device Bits FIS Interrupt Enable
  UFE 4 rw : Unknown FIS Interrupt Enable
  DPE 5 rw : Descriptor Processed Interrupt Enable
  PCE 6 rw : Port Change Interrupt Enable
  DMPE 7 rw : Device Mechanical Presence Enable
  PRCE 22 rw : PhyRdy Change Interrupt Enable
  IPME 23 rw : Incorrect Port Multiplier Enable
  OFE 24 rw : Overflow Enable
  INFE 26 rw : Interface Non-fatal Error Enable
  IFE 27 rw : Interface Fatal Error Enable
  HBDE 28 rw : Host Bus Data Error Enable
  HBFE 29 rw : Host Bus Fatal Error Enable
  TFEE 30 rw : Task File Error Enable
  CPDE 31 rw : Cold Presence Detect Enable
CMD 0x18 4 : Command and Status (PxCMD)
  ST 0 rw : Start
  SUD 1 rw : Spin-Up Device
  POD 2 rw : Power On Device
  CLO 3 rw1s : Command List Override
  FRE 4 rw : FIS Receive Enable
  CCS 12:8 r : Current Command Slot
  MPSS 13 r : Mechanical Presence Switch State
  FR 14 r : FIS Receive Running
  CR 15 r : Command List Running
  CPS 16 r : Cold Presence State
  PMA 17 rw : Port Multiplier Attached
  HPCP 18 r : Hot Plug Capable Port
  MPSP 19 r : Mechanical Presence Switch Attached to Port
  CPD 20 r : Cold Presence Detection
  ESP 21 r : External SATA Port
  FBSCP 22 r : FIS-based Switching Capable Port
  APSTE 23 rw : Automatic Partial to Slumber Transitions Enabled
  ATAPI 24 rw : Device is ATAPI
  DLAE 25 rw : Drive LED on ATAPI Enable
  ALPE 26 rw : Aggressive Link Power Management Enable
  ASP 27 rw : Aggressive Slumber / Partial
  ICC 31:28 rw idle=0 active=1 partial=2 slumber=6 devsleep=8 : Interface Communication Control
TFD 0x20 4 : Task File Data (PxTFD)
  STS 7:0 r : Status
  ERR 15:8 r : Error
SIG 0x24 4 r : Signature (PxSIG)
SSTS 0x28 4 : Serial ATA Status (PxSSTS)
  DET 3:0 r none=0 present=1 established=3 offline=4 : Device Detection
  SPD 7:4 r none=0 gen1=1 gen2=2 gen3=3 : Current Interface Speed
  IPM 11:8 r none=0 active=1 partial=2 slumber=6 devsleep=8 : Interface Power Management
SCTL 0x2c 4 : Serial ATA Control (PxSCTL)
  DET 3:0 rw none=0 initialize=1 disable=4 : Device Detection Initialization
  SPD 7:4 rw any=0 gen1=1 gen2=2 gen3=3 : Speed Allowed
  IPM 11:8 rw : Interface Power Management Transitions Allowed
  SPM 15:12 rw : Select Power Management
  PMP 19:16 rw : Port Multiplier Port
SERR 0x30 4 : Serial ATA Error (PxSERR)
  ERR 15:0 rw1c : Error
  DIAG 31:16 rw1c : Diagnostics
SACT 0x34 4 : Serial ATA Active (PxSACT)
  DS 31:0 rw1s : Device Status, a bit for each command slot
CI 0x38 4 : Command Issue (PxCI)
  CI 31:0 rw1s : Commands Issued, a bit for each command slot
SNTF 0x3c 4 : Serial ATA Notification (PxSNTF)
  PMN 15:0 rw1c : PM Notify
FBS 0x40 4 : FIS-based Switching Control (PxFBS)
  EN 0 rw : Enable
  DEC 1 rw1s : Device Error Clear
  SDE 2 r : Single Device Error
  DEV 11:8 rw : Device To Issue
  ADO 15:12 r : Active Device Optimization
  DWE 19:16 r : Device With Error
DEVSLP 0x44 4 : Device Sleep (PxDEVSLP)
  ADSE 0 rw : Aggressive Device Sleep Enable
  DSP 1 r : Device Sleep Present
  DETO 9:2 rw : Device Sleep Exit Timeout, in milliseconds
  MDAT 14:10 rw : Minimum Device Sleep Assertion Time, in milliseconds
  DITO 24:15 rw : Device Sleep Idle Timeout, in milliseconds
  DM 28:25 r : DITO Multiplier, minus one
VS 0x70 4 rw : Vendor Specific (PxVS), the first of four
"""
_PORTS_START = 0x100
_PORT_SIZE = 0x80
PORTS_IMPLEMENTED = 0x0C


def ahci(implemented: int | None, size: int) -> Block:
    """The map of a BAR of `size` bytes. `implemented` is PI, None while it is unknown.

    Ports that are not implemented, below one that is, are in the map.
    """
    ports = 0 if implemented is None else implemented.bit_length()
    ports = min(ports, max(size - _PORTS_START, 0) // _PORT_SIZE)
    own = Block.of(
        "P", _PORTS_START, registers(_PORT), dims=(ports,), stride=_PORT_SIZE, description="a port"
    ) if ports else None  # fmt: skip
    return Block.of("", 0, [*registers(_GENERIC), *([own] if own else [])], size=size)
