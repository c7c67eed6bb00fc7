# SPDX-License-Identifier: MIT
"""The capabilities of configuration space by their numbers, and the registers of those that most
devices have. Offsets are from the start of a capability.

PCI Express Base Specification 5.0, section 7.5 to 7.9; PCI Bus Power Management Interface
Specification 1.2, section 3.2; names as in setpci and linux/pci_regs.h, and for what is not in
there as in header.h of pciutils.
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
  ATN_BUT 12 r : attention button present
  ATN_IND 13 r : attention indicator present
  PWR_IND 14 r : power indicator present
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
"""
_EXP_LINK = """
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
  AOC 22 r : ASPM optionality compliance
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
  TR_ERR 10 r : training error
  LT 11 r : link training
  SLC 12 r : slot clock configuration
  DLLLA 13 r : data link layer link active
  LBMS 14 rw1c : link bandwidth management status
  LABS 15 rw1c : link autonomous bandwidth status
"""
_EXP_SLOT = """
SLTCAP 0x14 4 : slot capabilities
  ABP 0 r : attention button present
  PCP 1 r : power controller present
  MRLSP 2 r : MRL sensor present
  AIP 3 r : attention indicator present
  PIP 4 r : power indicator present
  HPS 5 r : hot-plug surprise
  HPC 6 r : hot-plug capable
  SPLV 14:7 r : slot power limit value
  SPLS 16:15 r : slot power limit scale
  EIP 17 r : electromechanical interlock present
  NCCS 18 r : no command completed support
  PSN 31:19 r : physical slot number
SLTCTL 0x18 2 : slot control
  ABPE 0 rw : attention button pressed enable
  PFDE 1 rw : power fault detected enable
  MRLSCE 2 rw : MRL sensor changed enable
  PDCE 3 rw : presence detect changed enable
  CCIE 4 rw : command completed interrupt enable
  HPIE 5 rw : hot-plug interrupt enable
  AIC 7:6 rw on=1 blink=2 off=3 : attention indicator control
  PIC 9:8 rw on=1 blink=2 off=3 : power indicator control
  PCC 10 rw on=0 off=1 : power controller control
  EIC 11 rwp : electromechanical interlock control
  DLLSCE 12 rw : data link layer state changed enable
  ASPL_DISABLE 13 rw : auto slot power limit disable
  IBPD_DISABLE 14 rw : in-band presence detect disable
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
RTCAP 0x1e 2
  CRSVIS 0 r
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
  NROPRPRP 10 r : no relaxed ordering between peers
  LTR 11 r
  TPH_COMP 13:12 r : TPH completer
  LN_CLS 15:14 r : LN system CLS
  TAG_10BIT_COMP 16 r
  TAG_10BIT_REQ 17 r
  OBFF 19:18 r
  EXTFMT 20 r : extended format field
  EE_PREFIX 21 r : end-end TLP prefixes
  MEE_TLP 23:22 r : largest number of end-end TLP prefixes, 0 for 4
  EPR 25:24 r : emergency power reduction
  EPR_INIT 26 r : emergency power reduction needs initialization
  FRS 31 r : function readiness status
DEVCTL2 0x28 2 : device control 2
  COMP_TIMEOUT 3:0 rw
  COMP_TMOUT_DIS 4 rw
  ARI 5 rw
  ATOMIC_REQ 6 rw
  ATOMIC_EGRESS_BLOCK 7 rw
  IDO_REQ_EN 8 rw
  IDO_CMP_EN 9 rw
  LTR_EN 10 rw
  EPR_REQ 11 rw : emergency power reduction request
  TAG_10BIT_REQ 12 rw
  OBFF_EN 14:13 rw
  EE_TLP_BLK 15 rw : end-end TLP prefix blocking
DEVSTA2 0x2a 2 r : device status 2
"""
_EXP_LINK_2 = """
LNKCAP2 0x2c 4 : link capabilities 2
  SLS 7:1 r : link speeds supported, from 2.5 GT/s on
  CROSSLINK 8 r
  RETIMER 23 r : a retimer is detected
  RETIMERS_2 24 r : two retimers are detected
  DRS 31 r : device readiness status
LNKCTL2 0x30 2 : link control 2
  TLS 3:0 rw : target link speed
  ENTER_COMP 4 rw
  HASD 5 rw : hardware autonomous speed disable
  SEL_DEEMPHASIS 6 rw : selectable de-emphasis
  TX_MARGIN 9:7 rw
  ENTER_MOD_COMP 10 rw : enter modified compliance
  COMP_SOS 11 rw : compliance SOS
  COMP_DEEMPHASIS 15:12 rw : compliance preset or de-emphasis
LNKSTA2 0x32 2 : link status 2
  CURRENT_DEEMPHASIS 0 r
  EQ_COMPLETE 1 r
  EQ_PHASE1 2 r
  EQ_PHASE2 3 r
  EQ_PHASE3 4 r
  LINK_EQ_REQUEST 5 rw1c
  RETIMER 6 r : a retimer is there
  RETIMERS_2 7 r : two retimers are there
  CROSSLINK 9:8 r : crosslink resolution
"""
_SSVID = """
VENDOR_ID 0x4 2 r
DEVICE_ID 0x6 2 r
"""
_SATA = """
REV 0x2 1
  MINOR 3:0 r
  MAJOR 7:4 r
REGS 0x4 4 : where the index and data registers are
  BAR 3:0 r inline=15 : the dword of configuration space that has the BAR
  OFFSET 23:4 r : in dwords
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
    "  ECRC_CHKC 7 r\n  ECRC_CHKE 8 rw\n  MULT_HDRC 9 r : can record several headers\n"
    "  MULT_HDRE 10 rw : records several headers\n  TLP_PFX 11 r : a TLP prefix log is there\n"
    "  HDR_LOG 12 r : the log also has headers of completion timeouts\nHEADER_LOG 0x1c 16/4 r\n"
)  # fmt: skip
_AER_ROOT = """
ROOT_COMMAND 0x2c 4
  COR_EN 0 rw
  NONFATAL_EN 1 rw
  FATAL_EN 2 rw
ROOT_STATUS 0x30 4
  COR_RCV 0 rw1c
  MULTI_COR_RCV 1 rw1c
  UNCOR_RCV 2 rw1c
  MULTI_UNCOR_RCV 3 rw1c
  FIRST_FATAL 4 rw1c
  NONFATAL_RCV 5 rw1c
  FATAL_RCV 6 rw1c
  AER_IRQ 31:27 r : interrupt message number
ROOT_ERR_SRC 0x34 4
  COR 15:0 r : who sent the correctable error
  UNCOR 31:16 r : who sent the other error
"""
_DSN = """
SERIAL 0x4 8/4 r
"""
_ACS = """
CAP 0x4 2
  SV 0 r : source validation
  TB 1 r : translation blocking
  RR 2 r : P2P request redirect
  CR 3 r : P2P completion redirect
  UF 4 r : upstream forwarding
  EC 5 r : P2P egress control
  DT 6 r : direct translated P2P
  EGRESS_BITS 15:8 r : size of the egress control vector
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
CAP 0x4 4
  VFM 0 r : VF migration
  ARI 1 r : the ARI hierarchy bit is kept
  TAG_10BIT_REQ 2 r
  INTR 31:21 r : VF migration interrupt message number
CTRL 0x8 2
  VFE 0 rw : VF enable
  VFM 1 rw : VF migration enable
  INTR 2 rw : VF migration interrupt enable
  MSE 3 rw : VF memory space enable
  ARI 4 rw : ARI capable hierarchy
  TAG_10BIT_REQ 5 rw
STATUS 0xa 2
  VFM 0 rw1c : VF migration
INITIAL_VF 0xc 2 r
TOTAL_VF 0xe 2 r
NUM_VF 0x10 2 rw
FUNC_LINK 0x12 1 r
VF_OFFSET 0x14 2 r
VF_STRIDE 0x16 2 r
VF_DID 0x1a 2 r
SUP_PGSIZE 0x1c 4 r
SYS_PGSIZE 0x20 4 rw
BAR_0 0x24 4 rw
BAR_1 0x28 4 rw
BAR_2 0x2c 4 rw
BAR_3 0x30 4 rw
BAR_4 0x34 4 rw
BAR_5 0x38 4 rw
VFM 0x3c 4 : VF migration state array
  BIR 2:0 r : the BAR
  OFFSET 31:3 r : in units of 8 bytes
"""
_LTR = """
MAX_SNOOP_LAT 0x4 2
  VALUE 9:0 rw
  SCALE 12:10 rw
MAX_NOSNOOP_LAT 0x6 2
  VALUE 9:0 rw
  SCALE 12:10 rw
"""
_STANDARD_TEXTS = {
    0x01: _PM, 0x09: _VNDR, 0x0D: _SSVID, 0x11: _MSIX, 0x12: _SATA, 0x13: _AF,
}  # fmt: skip
_EXTENDED_TEXTS = {
    0x01: _AER, 0x03: _DSN, 0x0D: _ACS, 0x0E: _ARI, 0x10: _SRIOV, 0x18: _LTR,
}  # fmt: skip
_MSI_64BIT = 0x80
_MSI_MASKS = 0x100
_ROOT_TYPES = (4, 10)
_PORT_TYPES = (4, 5, 6, 8)
_LINKLESS_TYPES = (9, 10)


def standard_text(identifier: int, control: int) -> str:
    """The registers of a capability in the notation. `control` is the word behind its header."""
    match identifier:
        case 0x05:
            return _HEADER + _msi(control)
        case 0x10:
            return _HEADER + _express(control)
        case _:
            return _HEADER + _STANDARD_TEXTS.get(identifier, "")


def extended_text(identifier: int, flags: int) -> str:
    """The registers of an extended capability in the notation. `flags` is PCI Express' own word."""
    text = _EXTENDED_HEADER + _EXTENDED_TEXTS.get(identifier, "")
    return text + _AER_ROOT if identifier == 0x01 and _type(flags) in _ROOT_TYPES else text


def _msi(control: int) -> str:
    at = 0xC if control & _MSI_64BIT else 0x8
    text = _MSI + (_MSI_HIGH if control & _MSI_64BIT else "") + _MSI_DATA.format(at)
    return text + _MSI_MASK.format(at + 4, at + 8) if control & _MSI_MASKS else text


def _express(flags: int) -> str:
    version, kind, slot = flags & 0xF, _type(flags), flags & 0x100
    has_link = kind not in _LINKLESS_TYPES
    text = _EXP
    if has_link:
        text += _EXP_LINK
    if slot and kind in _PORT_TYPES:
        text += _EXP_SLOT
    if kind in _ROOT_TYPES:
        text += _EXP_ROOT
    if version >= 2:
        text += _EXP_2 + (_EXP_LINK_2 if has_link else "")
    return text


def _type(flags: int) -> int:
    return flags >> 4 & 0xF
