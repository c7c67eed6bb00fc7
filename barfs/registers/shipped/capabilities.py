# SPDX-License-Identifier: MIT
"""The capabilities of configuration space by their numbers, and the registers of those that most
devices have. Offsets are from the start of a capability.

PCI Express Base Specification 5.0, section 7.5 to 7.9; PCI Bus Power Management Interface
Specification 1.2, section 3.2; names as in setpci and linux/pci_regs.h.
"""

STANDARD = {
    0x01: "PM", 0x02: "AGP", 0x03: "VPD", 0x04: "SLOTID", 0x05: "MSI", 0x06: "CHSWP",
    0x07: "PCIX", 0x08: "HT", 0x09: "VNDR", 0x0A: "DBG", 0x0B: "CCRC", 0x0C: "HOTPLUG",
    0x0D: "SSVID", 0x0E: "AGP3", 0x0F: "SECURE", 0x10: "EXP", 0x11: "MSIX", 0x12: "SATA",
    0x13: "AF", 0x14: "EA",
}  # fmt: skip
EXTENDED = {
    0x01: "AER", 0x02: "VC", 0x03: "DSN", 0x04: "PB", 0x05: "RCLINK", 0x06: "RCILINK",
    0x07: "RCECOLL", 0x08: "MFVC", 0x09: "VC2", 0x0A: "RBCB", 0x0B: "VNDR", 0x0C: "CAC",
    0x0D: "ACS", 0x0E: "ARI", 0x0F: "ATS", 0x10: "SRIOV", 0x11: "MRIOV", 0x12: "MCAST",
    0x13: "PRI", 0x15: "REBAR", 0x16: "DPA", 0x17: "TPH", 0x18: "LTR", 0x19: "SECPCI",
    0x1A: "PMUX", 0x1B: "PASID", 0x1C: "LNR", 0x1D: "DPC", 0x1E: "L1PM", 0x1F: "PTM",
    0x20: "M_PCIE", 0x21: "FRS", 0x22: "RTR", 0x23: "DVSEC", 0x24: "VF_REBAR", 0x25: "DLNK",
    0x26: "PL_16GT", 0x27: "LMR", 0x28: "HIER_ID", 0x29: "NPEM", 0x2A: "PL_32GT",
    0x2B: "ALT_PROTOCOL", 0x2C: "SFI", 0x2E: "DOE", 0x30: "IDE", 0x31: "PL_64GT",
}  # fmt: skip
_HEADER = """
ID 0x0 1 r
NEXT 0x1 1 r
"""
_PM = """
PMC 0x2 2 : capabilities
  VERSION 2:0 r
  PME_CLOCK 3 r
  IMM_READY 4 r : immediate readiness on return to D0
  DSI 5 r : device-specific initialization
  AUX_CURRENT 8:6 r
  D1 9 r : D1 is supported
  D2 10 r : D2 is supported
  PME 15:11 r : the states from which PME# can be asserted
CTRL 0x4 2 : control and status (PMCSR)
  STATE 1:0 rw D0=0 D1=1 D2=2 D3hot=3
  NO_SOFT_RESET 3 r
  PME_ENABLE 8 rw
  DATA_SEL 12:9 rw
  DATA_SCALE 14:13 r
  PME_STATUS 15 rw1c
PPB_EXTENSIONS 0x6 1 r : bridge support extensions
DATA 0x7 1 r
"""
_MSI = """
FLAGS 0x2 2 : message control
  ENABLE 0 rw
  QMASK 3:1 r : multiple messages capable, as a power of two
  QSIZE 6:4 rw : multiple messages enabled, as a power of two
  CAN_64BIT 7 r : 64-bit addresses
  MASKBIT 8 r : per-vector masking
ADDRESS_LO 0x4 4
  ADDRESS 31:2 rw
"""
_MSI_HIGH = "ADDRESS_HI 0x8 4 rw\n"
_MSI_DATA = "DATA {0:#x} 2 rw\n"
_MSI_MASK = "MASK_BIT {0:#x} 4 rw\nPENDING {1:#x} 4 r\n"
_MSIX = """
FLAGS 0x2 2 : message control
  QSIZE 10:0 r : table size, minus one
  MASKALL 14 rw
  ENABLE 15 rw
TABLE 0x4 4
  BIR 2:0 r : the BAR
  OFFSET 31:3 r : in units of 8 bytes
PBA 0x8 4 : pending bits
  BIR 2:0 r : the BAR
  OFFSET 31:3 r : in units of 8 bytes
"""
_EXP = """
FLAGS 0x2 2 : capabilities
  VERS 3:0 r
  TYPE 7:4 r
    endpoint=0 legacy=1 root_port=4 upstream=5 downstream=6 bridge=7 reverse_bridge=8
    integrated=9 event_collector=10
  SLOT 8 r : slot implemented
  IRQ 13:9 r : interrupt message number
DEVCAP 0x4 4 : device capabilities
  PAYLOAD 2:0 r : largest payload supported, 128 << PAYLOAD
  PHANTOM 4:3 r
  EXT_TAG 5 r
  L0S 8:6 r : acceptable latency
  L1 11:9 r : acceptable latency
  RBER 15 r : role-based error reporting
  PWR_VAL 25:18 r : slot power limit value
  PWR_SCL 27:26 r : slot power limit scale
  FLR 28 r : function level reset
DEVCTL 0x8 2 : device control
  CERE 0 rw : correctable error reporting enable
  NFERE 1 rw : non-fatal error reporting enable
  FERE 2 rw : fatal error reporting enable
  URRE 3 rw : unsupported request reporting enable
  RELAX_EN 4 rw : relaxed ordering
  PAYLOAD 7:5 rw : largest payload, 128 << PAYLOAD
  EXT_TAG 8 rw
  PHANTOM 9 rw
  AUX_PME 10 rw
  NOSNOOP_EN 11 rw
  READRQ 14:12 rw : largest read request, 128 << READRQ
  BCR_FLR 15 rwp : start a function level reset
DEVSTA 0xa 2 : device status
  CED 0 rw1c : correctable error detected
  NFED 1 rw1c : non-fatal error detected
  FED 2 rw1c : fatal error detected
  URD 3 rw1c : unsupported request detected
  AUXPD 4 r : auxiliary power detected
  TRPND 5 r : transactions pending
LNKCAP 0xc 4 : link capabilities
  SLS 3:0 r : largest link speed
  MLW 9:4 r : largest link width
  ASPMS 11:10 r : ASPM support
  L0SEL 14:12 r : L0s exit latency
  L1EL 17:15 r : L1 exit latency
  CLKPM 18 r : clock power management
  SDERC 19 r : surprise down error reporting
  DLLLARC 20 r : data link layer link active reporting
  LBNC 21 r : link bandwidth notification
  PN 31:24 r : port number
LNKCTL 0x10 2 : link control
  ASPMC 1:0 rw off=0 L0s=1 L1=2 L0s_L1=3
  RCB 3 rw : read completion boundary
  LD 4 rw : link disable
  RL 5 rwp : retrain the link
  CCC 6 rw : common clock configuration
  ES 7 rw : extended synch
  CLKREQ_EN 8 rw
  HAWD 9 rw : hardware autonomous width disable
  LBMIE 10 rw : link bandwidth management interrupt enable
  LABIE 11 rw : link autonomous bandwidth interrupt enable
LNKSTA 0x12 2 : link status
  CLS 3:0 r : current link speed
  NLW 9:4 r : negotiated link width
  LT 11 r : link training
  SLC 12 r : slot clock configuration
  DLLLA 13 r : data link layer link active
  LBMS 14 rw1c : link bandwidth management status
  LABS 15 rw1c : link autonomous bandwidth status
"""
_EXP_SLOT = """
SLTCAP 0x14 4 r : slot capabilities
SLTCTL 0x18 2 rw : slot control
SLTSTA 0x1a 2 : slot status
  ABP 0 rw1c : attention button pressed
  PFD 1 rw1c : power fault detected
  MRLSC 2 rw1c : MRL sensor changed
  PDC 3 rw1c : presence detect changed
  CC 4 rw1c : command completed
  MRLSS 5 r : MRL sensor state
  PDS 6 r : presence detect state
  EIS 7 r : electromechanical interlock status
  DLLSC 8 rw1c : data link layer state changed
"""
_EXP_ROOT = """
RTCTL 0x1c 2
  SECEE 0 rw
  SENFEE 1 rw
  SEFEE 2 rw
  PMEIE 3 rw
  CRSSVE 4 rw
RTCAP 0x1e 2 r
RTSTA 0x20 4
  REQUESTER 15:0 r
  PME 16 rw1c
  PENDING 17 r
"""
_EXP_2 = """
DEVCAP2 0x24 4 : device capabilities 2
  COMP_TMOUT_RANGES 3:0 r
  COMP_TMOUT_DIS 4 r
  ARI 5 r
  ATOMIC_ROUTE 6 r
  ATOMIC_COMP32 7 r
  ATOMIC_COMP64 8 r
  ATOMIC_COMP128 9 r
  LTR 11 r
  OBFF 19:18 r
  EE_PREFIX 21 r
DEVCTL2 0x28 2 : device control 2
  COMP_TIMEOUT 3:0 rw
  COMP_TMOUT_DIS 4 rw
  ARI 5 rw
  ATOMIC_REQ 6 rw
  ATOMIC_EGRESS_BLOCK 7 rw
  IDO_REQ_EN 8 rw
  IDO_CMP_EN 9 rw
  LTR_EN 10 rw
  OBFF_EN 14:13 rw
DEVSTA2 0x2a 2 r : device status 2
LNKCAP2 0x2c 4 : link capabilities 2
  SLS 7:1 r : link speeds supported, from 2.5 GT/s on
  CROSSLINK 8 r
LNKCTL2 0x30 2 : link control 2
  TLS 3:0 rw : target link speed
  ENTER_COMP 4 rw
  HASD 5 rw : hardware autonomous speed disable
  TX_MARGIN 9:7 rw
LNKSTA2 0x32 2 : link status 2
  CURRENT_DEEMPHASIS 0 r
  EQ_COMPLETE 1 r
  EQ_PHASE1 2 r
  EQ_PHASE2 3 r
  EQ_PHASE3 4 r
  LINK_EQ_REQUEST 5 rw1c
"""
_AF = """
LENGTH 0x2 1 r
CAP 0x3 1
  TP 0 r : transactions pending is there
  FLR 1 r : function level reset is there
CTRL 0x4 1
  FLR 0 rwp : start a function level reset
STATUS 0x5 1
  TP 0 r : transactions pending
"""
_VNDR = """
LENGTH 0x2 1 r
"""
_EXTENDED_HEADER = """
HEADER 0x0 4
  ID 15:0 r
  VERSION 19:16 r
  NEXT 31:20 r
"""
_AER_ERRORS = """
  DLP {0} {1} : data link protocol error
  SURPDN 5 {1} : surprise down
  POISON_TLP 12 {1}
  FCP 13 {1} : flow control protocol error
  COMP_TIME 14 {1} : completion timeout
  COMP_ABORT 15 {1} : completer abort
  UNX_COMP 16 {1} : unexpected completion
  RX_OVER 17 {1} : receiver overflow
  MALF_TLP 18 {1} : malformed TLP
  ECRC 19 {1}
  UNSUP 20 {1} : unsupported request
  ACSV 21 {1} : ACS violation
  INTN 22 {1} : internal error
  MCBTLP 23 {1} : MC blocked TLP
  ATOMEG 24 {1} : AtomicOp egress blocked
  TLPPRE 25 {1} : TLP prefix blocked
"""
_AER_CORRECTABLE = """
  RCVR 0 {0} : receiver error
  BAD_TLP 6 {0}
  BAD_DLLP 7 {0}
  REP_ROLL 8 {0} : replay number rollover
  REP_TIMER 12 {0} : replay timer timeout
  ADV_NFAT 13 {0} : advisory non-fatal error
  INTERNAL 14 {0}
  LOG_OVER 15 {0} : header log overflow
"""
_AER = (
    "UNCOR_STATUS 0x4 4" + _AER_ERRORS.format(4, "rw1c")
    + "UNCOR_MASK 0x8 4" + _AER_ERRORS.format(4, "rw")
    + "UNCOR_SEVER 0xc 4" + _AER_ERRORS.format(4, "rw")
    + "COR_STATUS 0x10 4" + _AER_CORRECTABLE.format("rw1c")
    + "COR_MASK 0x14 4" + _AER_CORRECTABLE.format("rw")
    + "CAP 0x18 4\n  FEP 4:0 r : first error pointer\n  ECRC_GENC 5 r\n  ECRC_GENE 6 rw\n"
    "  ECRC_CHKC 7 r\n  ECRC_CHKE 8 rw\nHEADER_LOG 0x1c 16/4 r\n"
)  # fmt: skip
_DSN = """
SERIAL 0x4 8/4 r
"""
_ACS = """
CAP 0x4 2 r
CTRL 0x6 2
  SV 0 rw : source validation
  TB 1 rw : translation blocking
  RR 2 rw : P2P request redirect
  CR 3 rw : P2P completion redirect
  UF 4 rw : upstream forwarding
  EC 5 rw : P2P egress control
  DT 6 rw : direct translated P2P
"""
_ARI = """
CAP 0x4 2
  MFVC 0 r
  ACS 1 r
  NFN 15:8 r : next function
CTRL 0x6 2
  MFVC 0 rw
  ACS 1 rw
  FG 6:4 rw : function group
"""
_SRIOV = """
CAP 0x4 4 r
CTRL 0x8 2
  VFE 0 rw : VF enable
  VFM 1 rw : VF migration enable
  INTR 2 rw : VF migration interrupt enable
  MSE 3 rw : VF memory space enable
  ARI 4 rw : ARI capable hierarchy
STATUS 0xa 2 rw1c
INITIAL_VF 0xc 2 r
TOTAL_VF 0xe 2 r
NUM_VF 0x10 2 rw
FUNC_LINK 0x12 1 r
VF_OFFSET 0x14 2 r
VF_STRIDE 0x16 2 r
VF_DID 0x1a 2 r
SUP_PGSIZE 0x1c 4 r
SYS_PGSIZE 0x20 4 rw
"""
_LTR = """
MAX_SNOOP_LAT 0x4 2
  VALUE 9:0 rw
  SCALE 12:10 rw
MAX_NOSNOOP_LAT 0x6 2
  VALUE 9:0 rw
  SCALE 12:10 rw
"""
_STANDARD_TEXTS = {0x01: _PM, 0x09: _VNDR, 0x11: _MSIX, 0x13: _AF}
_EXTENDED_TEXTS = {
    0x01: _AER, 0x03: _DSN, 0x0D: _ACS, 0x0E: _ARI, 0x10: _SRIOV, 0x18: _LTR,
}  # fmt: skip
_MSI_64BIT = 0x80
_MSI_MASKS = 0x100
_ROOT_TYPES = (4, 10)
_PORT_TYPES = (4, 5, 6, 8)


def standard_text(identifier: int, control: int) -> str:
    """The registers of a capability in the notation. `control` is the word behind its header."""
    match identifier:
        case 0x05:
            return _HEADER + _msi(control)
        case 0x10:
            return _HEADER + _express(control)
        case _:
            return _HEADER + _STANDARD_TEXTS.get(identifier, "")


def extended_text(identifier: int) -> str:
    """The registers of an extended capability in the notation."""
    return _EXTENDED_HEADER + _EXTENDED_TEXTS.get(identifier, "")


def _msi(control: int) -> str:
    at = 0xC if control & _MSI_64BIT else 0x8
    text = _MSI + (_MSI_HIGH if control & _MSI_64BIT else "") + _MSI_DATA.format(at)
    return text + _MSI_MASK.format(at + 4, at + 8) if control & _MSI_MASKS else text


def _express(flags: int) -> str:
    version, kind, slot = flags & 0xF, flags >> 4 & 0xF, flags & 0x100
    text = _EXP
    if slot and kind in _PORT_TYPES:
        text += _EXP_SLOT
    if kind in _ROOT_TYPES:
        text += _EXP_ROOT
    return text + _EXP_2 if version >= 2 else text
