# SPDX-License-Identifier: MIT
"""What `lspci -vvvxxxx` says of each function: its bytes, and the fields that it decodes.

A field is named as in barfs' map of configuration space: `CAP_EXP.DEVCTL.PAYLOAD`.

Rule 1: every flag (`Mem+`, `ParErr-`) of the sections below has a field: one that is missing from
        the tables is an error here, and not a field that is not compared.
"""

import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

_HEADER = {
    "Control": (
        "COMMAND",
        "I/O=IO Mem=MEMORY BusMaster=MASTER SpecCycle=SPECIAL MemWINV=INVALIDATE "
        "VGASnoop=VGA_PALETTE ParErr=PARITY Stepping=WAIT SERR=SERR FastB2B=FAST_BACK "
        "DisINTx=INTX_DISABLE",
    ),
    "Status": (
        "STATUS",
        "Cap=CAP_LIST 66MHz=CLK_66MHZ UDF=UDF FastB2B=FAST_BACK ParErr=PARITY "
        ">TAbort=SIG_TARGET_ABORT <TAbort=REC_TARGET_ABORT <MAbort=REC_MASTER_ABORT "
        ">SERR=SIG_SYSTEM_ERROR <PERR=DETECTED_PARITY INTx=INTERRUPT",
    ),
    "Secondary status": (
        "SEC_STATUS",
        "66MHz=CLK_66MHZ FastB2B=FAST_BACK ParErr=PARITY >TAbort=SIG_TARGET_ABORT "
        "<TAbort=REC_TARGET_ABORT <MAbort=REC_MASTER_ABORT <SERR=REC_SYSTEM_ERROR "
        "<PERR=DETECTED_PARITY",
    ),
    "BridgeCtl": (
        "BRIDGE_CONTROL",
        "Parity=PARITY SERR=SERR NoISA=ISA VGA=VGA VGA16=VGA_16BIT MAbort=MASTER_ABORT "
        ">Reset=BUS_RESET FastB2B=FAST_BACK PriDiscTmr=PRI_DISCARD_TIMER "
        "SecDiscTmr=SEC_DISCARD_TIMER DiscTmrStat=DISCARD_TIMER_STATUS "
        "DiscTmrSERREn=DISCARD_TIMER_SERR_EN",
    ),
}
_UNCORRECTABLE = (
    "DLP=DLP SDES=SURPDN TLP=POISON_TLP FCP=FCP CmpltTO=COMP_TIME CmpltAbrt=COMP_ABORT "
    "UnxCmplt=UNX_COMP RxOF=RX_OVER MalfTLP=MALF_TLP ECRC=ECRC UnsupReq=UNSUP ACSViol=ACSV"
)
_CORRECTABLE = (
    "RxErr=RCVR BadTLP=BAD_TLP BadDLLP=BAD_DLLP Rollover=REP_ROLL Timeout=REP_TIMER "
    "AdvNonFatalErr=ADV_NFAT"
)
_ACCESS_CONTROL = (
    "SrcValid=SV TransBlk=TB ReqRedir=RR CmpltRedir=CR UpstreamFwd=UF EgressCtrl=EC DirectTrans=DT"
)
_SECTIONS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "": _HEADER,
    "CAP_MSI": {"": ("FLAGS", "Enable=ENABLE Maskable=MASKBIT 64bit=CAN_64BIT")},
    "CAP_MSIX": {"": ("FLAGS", "Enable=ENABLE Masked=MASKALL")},
    "CAP_PM": {
        "Flags": ("PMC", "PMEClk=PME_CLOCK DSI=DSI D1=D1 D2=D2"),
        "Status": ("CTRL", "NoSoftRst=NO_SOFT_RESET PME-Enable=PME_ENABLE PME=PME_STATUS"),
    },
    "CAP_EXP": {
        "": ("FLAGS", "(Slot=SLOT"),
        "DevCap": (
            "DEVCAP",
            "ExtTag=EXT_TAG AttnBtn=ATN_BUT AttnInd=ATN_IND PwrInd=PWR_IND RBE=RBER FLReset=FLR",
        ),
        "DevCtl": (
            "DEVCTL",
            "CorrErr=CERE NonFatalErr=NFERE FatalErr=FERE UnsupReq=URRE RlxdOrd=RELAX_EN "
            "ExtTag=EXT_TAG PhantFunc=PHANTOM AuxPwr=AUX_PME NoSnoop=NOSNOOP_EN FLReset=BCR_FLR",
        ),
        "DevSta": (
            "DEVSTA",
            "CorrErr=CED NonFatalErr=NFED FatalErr=FED UnsupReq=URD AuxPwr=AUXPD TransPend=TRPND",
        ),
        "LnkCap": (
            "LNKCAP",
            "ClockPM=CLKPM Surprise=SDERC LLActRep=DLLLARC BwNot=LBNC ASPMOptComp=AOC",
        ),
        "LnkCtl": (
            "LNKCTL",
            "Disabled=LD CommClk=CCC ExtSynch=ES ClockPM=CLKREQ_EN AutWidDis=HAWD BWInt=LBMIE "
            "AutBWInt=LABIE",
        ),
        "LnkSta": (
            "LNKSTA",
            "TrErr=TR_ERR Train=LT SlotClk=SLC DLActive=DLLLA BWMgmt=LBMS ABWMgmt=LABS",
        ),
        "SltCap": (
            "SLTCAP",
            "AttnBtn=ABP PwrCtrl=PCP MRL=MRLSP AttnInd=AIP PwrInd=PIP HotPlug=HPC Surprise=HPS "
            "Interlock=EIP NoCompl=NCCS",
        ),
        "SltCtl": (
            "SLTCTL",
            "AttnBtn=ABPE PwrFlt=PFDE MRL=MRLSCE PresDet=PDCE CmdCplt=CCIE HPIrq=HPIE "
            "LinkChg=DLLSCE Power=PCC Interlock=EIC",
        ),
        "SltSta": (
            "SLTSTA",
            "AttnBtn=ABP PowerFlt=PFD MRL=MRLSS CmdCplt=CC PresDet=PDS Interlock=EIS "
            "Changed:MRL=MRLSC Changed:PresDet=PDC Changed:LinkState=DLLSC",
        ),
        "RootCap": ("RTCAP", "CRSVisible=CRSVIS"),
        "RootCtl": (
            "RTCTL",
            "ErrCorrectable=SECEE ErrNon-Fatal=SENFEE ErrFatal=SEFEE PMEIntEna=PMEIE "
            "CRSVisible=CRSSVE",
        ),
        "RootSta": ("RTSTA", "PMEStatus=PME PMEPending=PENDING"),
        "DevCap2": (
            "DEVCAP2",
            "TimeoutDis=COMP_TMOUT_DIS NROPrPrP=NROPRPRP LTR=LTR 10BitTagComp=TAG_10BIT_COMP "
            "10BitTagReq=TAG_10BIT_REQ ExtFmt=EXTFMT EETLPPrefix=EE_PREFIX "
            "EmergencyPowerReductionInit=EPR_INIT FRS=FRS ARIFwd=ARI Routing=ATOMIC_ROUTE "
            "32bit=ATOMIC_COMP32 64bit=ATOMIC_COMP64 128bitCAS=ATOMIC_COMP128 TPHComp=TPH_COMP "
            "ExtTPHComp=TPH_COMP",
        ),
        "DevCtl2": (
            "DEVCTL2",
            "TimeoutDis=COMP_TMOUT_DIS LTR=LTR_EN 10BitTagReq=TAG_10BIT_REQ ARIFwd=ARI "
            "ReqEn=ATOMIC_REQ EgressBlck=ATOMIC_EGRESS_BLOCK",
        ),
        "LnkCap2": ("LNKCAP2", "Crosslink=CROSSLINK Retimer=RETIMER 2Retimers=RETIMERS_2 DRS=DRS"),
        "LnkCtl2": (
            "LNKCTL2",
            "EnterCompliance=ENTER_COMP SpeedDis=HASD EnterModifiedCompliance=ENTER_MOD_COMP "
            "ComplianceSOS=COMP_SOS",
        ),
        "LnkSta2": (
            "LNKSTA2",
            "EqualizationComplete=EQ_COMPLETE EqualizationPhase1=EQ_PHASE1 "
            "EqualizationPhase2=EQ_PHASE2 EqualizationPhase3=EQ_PHASE3 "
            "LinkEqualizationRequest=LINK_EQ_REQUEST Retimer=RETIMER 2Retimers=RETIMERS_2",
        ),
    },
    "ECAP_AER": {
        "UESta": ("UNCOR_STATUS", _UNCORRECTABLE),
        "UEMsk": ("UNCOR_MASK", _UNCORRECTABLE),
        "UESvrt": ("UNCOR_SEVER", _UNCORRECTABLE),
        "CESta": ("COR_STATUS", _CORRECTABLE),
        "CEMsk": ("COR_MASK", _CORRECTABLE),
        "AERCap": (
            "CAP",
            "ECRCGenCap=ECRC_GENC ECRCGenEn=ECRC_GENE ECRCChkCap=ECRC_CHKC ECRCChkEn=ECRC_CHKE "
            "MultHdrRecCap=MULT_HDRC MultHdrRecEn=MULT_HDRE TLPPfxPres=TLP_PFX HdrLogCap=HDR_LOG",
        ),
        "RootCmd": ("ROOT_COMMAND", "CERptEn=COR_EN NFERptEn=NONFATAL_EN FERptEn=FATAL_EN"),
        "RootSta": (
            "ROOT_STATUS",
            "CERcvd=COR_RCV MultCERcvd=MULTI_COR_RCV UERcvd=UNCOR_RCV MultUERcvd=MULTI_UNCOR_RCV "
            "FirstFatal=FIRST_FATAL NonFatalMsg=NONFATAL_RCV FatalMsg=FATAL_RCV",
        ),
    },
    "ECAP_ACS": {"ACSCap": ("CAP", _ACCESS_CONTROL), "ACSCtl": ("CTRL", _ACCESS_CONTROL)},
    "ECAP_ARI": {"ARICap": ("CAP", "MFVC=MFVC ACS=ACS"), "ARICtl": ("CTRL", "MFVC=MFVC ACS=ACS")},
    "ECAP_SRIOV": {
        "IOVCap": ("CAP", "Migration=VFM 10BitTagReq=TAG_10BIT_REQ"),
        "IOVCtl": (
            "CTRL",
            "Enable=VFE Migration=VFM Interrupt=INTR MSE=MSE ARIHierarchy=ARI "
            "10BitTagReq=TAG_10BIT_REQ",
        ),
        "IOVSta": ("STATUS", "Migration=VFM"),
    },
}
_TITLES = {
    "MSI-X": "CAP_MSIX",
    "MSI": "CAP_MSI",
    "Power Management": "CAP_PM",
    "Express": "CAP_EXP",
    "SATA": "CAP_SATA",
    "Subsystem": "CAP_SSVID",
    "Advanced Error Reporting": "ECAP_AER",
    "Access Control Services": "ECAP_ACS",
    "Alternative Routing-ID": "ECAP_ARI",
    "Single Root I/O": "ECAP_SRIOV",
}


def _hexadecimal(text: str) -> int:
    return int(text, 16)


def _power(text: str) -> int:
    return int(text).bit_length() - 1


def _payload(text: str) -> int:
    return _power(text) - 7


def _one_less(text: str) -> int:
    return int(text) - 1


def _speed(text: str) -> int:
    return ("2.5", "5", "8", "16", "32", "64").index(text) + 1


_KINDS = {
    "Endpoint": 0, "Root Port": 4, "Root Complex Integrated Endpoint": 9,
}  # fmt: skip
_PINS = {letter: number for number, letter in enumerate("ABCD", 1)}
_LIGHTS = {"On": 1, "Blink": 2, "Off": 3}
_ASPM = {"not supported": 0, "L0s": 1, "L1": 2, "L0s L1": 3}

_Number = tuple[str, Callable[[str], int]]
_NUMBERS: Mapping[str, list[tuple[str, list[_Number]]]] = {
    "": [
        (
            r"Status: .*DEVSEL=(\w+) .*INTx",
            [("STATUS.DEVSEL", lambda text: ("fast", "medium", "slow").index(text))],
        ),
        (r"Cache Line Size: (\d+) bytes", [("CACHE_LINE_SIZE", lambda text: int(text) // 4)]),
        (r"Latency: (\d+)", [("LATENCY_TIMER", int)]),
        (r"Interrupt: pin (\w) routed", [("INTERRUPT_PIN", _PINS.__getitem__)]),
        (
            r"Bus: primary=(\w+), secondary=(\w+), subordinate=(\w+), sec-latency=(\d+)",
            [
                ("PRIMARY_BUS", _hexadecimal),
                ("SECONDARY_BUS", _hexadecimal),
                ("SUBORDINATE_BUS", _hexadecimal),
                ("SEC_LATENCY_TIMER", int),
            ],
        ),
        *(
            (
                rf"Region {number}: Memory at (\w+) \((\w+)-bit, (\S+)\)",
                [
                    (
                        f"BASE_ADDRESS_{number}.ADDRESS",
                        lambda text: (int(text, 16) >> 4) & 0xFFFFFFF,
                    ),
                    (f"BASE_ADDRESS_{number}.TYPE", {"32": 0, "64": 2}.__getitem__),
                    (f"BASE_ADDRESS_{number}.PREFETCH", lambda text: int(text == "prefetchable")),
                ],
            )
            for number in range(6)
        ),
        *(
            (
                rf"Region {number}: I/O ports at (\w+)",
                [(f"BASE_ADDRESS_{number}.ADDRESS", lambda text: int(text, 16) >> 2)],
            )
            for number in range(6)
        ),
    ],
    "CAP_MSI": [
        (r"Count=(\d+)/(\d+)", [("FLAGS.QSIZE", _power), ("FLAGS.QMASK", _power)]),
        (r"Data: (\w+)", [("DATA", _hexadecimal)]),
        (
            r"Address: (\w+)",
            [("ADDRESS_LO.ADDRESS", lambda text: (int(text, 16) & 0xFFFF_FFFF) >> 2)],
        ),
    ],
    "CAP_MSIX": [
        (r"Count=(\d+)", [("FLAGS.QSIZE", _one_less)]),
        (
            r"Vector table: BAR=(\d) offset=(\w+)",
            [("TABLE.BIR", int), ("TABLE.OFFSET", lambda text: int(text, 16) >> 3)],
        ),
        (
            r"PBA: BAR=(\d) offset=(\w+)",
            [("PBA.BIR", int), ("PBA.OFFSET", lambda text: int(text, 16) >> 3)],
        ),
    ],
    "CAP_PM": [
        (r"version (\d)", [("PMC.VERSION", int)]),
        (
            r"PME\((D0., ?D1., ?D2., ?D3hot., ?D3cold.)\)",
            [
                (
                    "PMC.PME",
                    lambda text: sum(
                        1 << bit for bit, flag in enumerate(text.split(",")) if flag[-1] == "+"
                    ),
                )
            ],
        ),
        (r"AuxCurrent=(\d+)mA", [("PMC.AUX_CURRENT", lambda text: (0, 55, 100).index(int(text)))]),
        (r"Status: D(\d)", [("CTRL.STATE", int)]),
        (r"DSel=(\d+) DScale=(\d+)", [("CTRL.DATA_SEL", int), ("CTRL.DATA_SCALE", int)]),
    ],
    "CAP_EXP": [
        (
            r"Express \(v(\d)\) ([\w ]+?),? (?:\(Slot.\), )?MSI (\w+)",
            [
                ("FLAGS.VERS", int),
                ("FLAGS.TYPE", _KINDS.__getitem__),
                ("FLAGS.IRQ", _hexadecimal),
            ],
        ),
        (
            r"DevCap:\tMaxPayload (\d+) bytes, PhantFunc (\d)",
            [("DEVCAP.PAYLOAD", _payload), ("DEVCAP.PHANTOM", int)],
        ),
        (
            r"MaxPayload (\d+) bytes, MaxReadReq (\d+) bytes",
            [("DEVCTL.PAYLOAD", _payload), ("DEVCTL.READRQ", _payload)],
        ),
        (
            r"LnkCap:\tPort #(\d+), Speed ([\d.]+)GT/s, Width x(\d+), ASPM ([\w ]+),",
            [
                ("LNKCAP.PN", int),
                ("LNKCAP.SLS", _speed),
                ("LNKCAP.MLW", int),
                ("LNKCAP.ASPMS", _ASPM.__getitem__),
            ],
        ),
        (
            r"LnkSta:\tSpeed ([\d.]+)GT/s.*, Width x(\d+)",
            [("LNKSTA.CLS", _speed), ("LNKSTA.NLW", int)],
        ),
        (r"RCB (\d+) bytes", [("LNKCTL.RCB", lambda text: int(text) // 128)]),
        (r"Slot #(\d+), PowerLimit (\d+)W", [("SLTCAP.PSN", int), ("SLTCAP.SPLV", int)]),
        (
            r"AttnInd (On|Off|Blink), PwrInd (On|Off|Blink),",
            [("SLTCTL.AIC", _LIGHTS.__getitem__), ("SLTCTL.PIC", _LIGHTS.__getitem__)],
        ),
        (r"PME ReqID (\w+)", [("RTSTA.REQUESTER", _hexadecimal)]),
        (r"MaxEETLPPrefixes (\d)", [("DEVCAP2.MEE_TLP", lambda text: int(text) % 4)]),
        # It shows 0, which is no speed, as 2.5.
        (r"Target Link Speed: (5|8|16|32|64)GT/s", [("LNKCTL2.TLS", _speed)]),
        (
            r"Supported Link Speeds: 2.5(?:-([\d.]+))?GT/s",
            [("LNKCAP2.SLS", lambda text: (1 << _speed(text)) - 1)],
        ),
    ],
    "CAP_SATA": [
        (
            r"SATA HBA v(\d)\.(\d) BAR(\d) Offset=(\w+)",
            [
                ("REV.MAJOR", int),
                ("REV.MINOR", int),
                ("REGS.BAR", lambda text: int(text) + 4),
                ("REGS.OFFSET", _hexadecimal),
            ],
        )
    ],
    "CAP_SSVID": [],
    "ECAP_AER": [
        (r"First Error Pointer: (\w+)", [("CAP.FEP", _hexadecimal)]),
        (r"IntMsg (\d+)", [("ROOT_STATUS.AER_IRQ", int)]),
        (
            r"ERR_COR: (\w+) ERR_FATAL/NONFATAL: (\w+)",
            [("ROOT_ERR_SRC.COR", _hexadecimal), ("ROOT_ERR_SRC.UNCOR", _hexadecimal)],
        ),
    ],
    "ECAP_ACS": [],
    "ECAP_ARI": [
        (r"Next Function: (\d+)", [("CAP.NFN", int)]),
        (r"Function Group: (\d+)", [("CTRL.FG", int)]),
    ],
    "ECAP_SRIOV": [
        (
            r"Initial VFs: (\d+), Total VFs: (\d+), Number of VFs: (\d+), "
            r"Function Dependency Link: (\w+)",
            [
                ("INITIAL_VF", int),
                ("TOTAL_VF", int),
                ("NUM_VF", int),
                ("FUNC_LINK", _hexadecimal),
            ],
        ),
        (
            r"VF offset: (\d+), stride: (\d+), Device ID: (\w+)",
            [("VF_OFFSET", int), ("VF_STRIDE", int), ("VF_DID", _hexadecimal)],
        ),
        (
            r"Supported Page Size: (\w+), System Page Size: (\w+)",
            [("SUP_PGSIZE", _hexadecimal), ("SYS_PGSIZE", _hexadecimal)],
        ),
        (
            r"VF Migration: offset: (\w+), BIR: (\d)",
            [("VFM.OFFSET", lambda text: int(text, 16) >> 3), ("VFM.BIR", int)],
        ),
    ],
}
_BLOCK_START = re.compile(r"(?m)^(?=[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.\d )")
_BYTES = re.compile(r"(?m)^[0-9a-f]{2,3}: ((?:[0-9a-f]{2} ?){16})$")
_CAPABILITY = re.compile(r"\tCapabilities: \[([0-9a-f]+)(?: v\d)?\] (.*)", re.DOTALL)
_SECTION = re.compile(r"\t{1,2}([\w ]+):[ \t](.*)", re.DOTALL)


@dataclass(slots=True)
class Function:
    """A PCI function: `decoded` are the numbers of fields, by their names."""

    bdf: str
    data: bytes
    decoded: dict[str, int] = field(default_factory=dict)


def functions() -> list[Function]:
    """All that lspci sees."""
    command = ["lspci", "-Dvvvxxxx"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [_function(block) for block in _BLOCK_START.split(text) if block.strip()]


def _function(block: str) -> Function:
    rows = _BYTES.findall(block)
    found = Function(block.split()[0], bytes.fromhex("".join(rows)))
    for capability, text in _capabilities(block):
        prefix = f"{capability}." if capability else ""
        for name, number in (*_flags(capability, text), *_numbers(capability, text)):
            found.decoded[prefix + name] = number
    return found


def _capabilities(block: str) -> Iterator[tuple[str, str]]:
    """The header, then each capability that has tables, with its lines."""
    header, *rest = re.split(r"\n(?=\tCapabilities: )", block)
    yield "", header
    for text in rest:
        match = _CAPABILITY.match(text)
        assert match, text
        title = match[2]
        for start, name in _TITLES.items():
            if title.startswith(start):
                # Up to the next line of the function itself.
                yield name, re.split(r"\n(?=\t\S|\S|\n)", title)[0]
                break


def _flags(capability: str, text: str) -> Iterator[tuple[str, int]]:
    tables = _SECTIONS.get(capability, {})
    for section, content in _split(text, "\t" if not capability else "\t\t"):
        if section not in tables:
            continue
        register, pairs = tables[section]
        names = dict(pair.rsplit("=", 1) for pair in pairs.split())
        group = ""
        for word in content.split():
            if word.endswith(":"):
                group = word
            flag = re.fullmatch(r"([<>(]?[\w/-]+?)([+-])[),;]?,?", word)
            if flag is None or word.startswith("PME(") or word[0] == "-":
                continue
            name = names.get(group + flag[1]) or names[flag[1]]
            if flag[1] != "ExtTPHComp":
                yield f"{register}.{name}", int(flag[2] == "+")


def _split(text: str, indent: str) -> Iterator[tuple[str, str]]:
    """The sections of a capability: its title's rest is one without a name."""
    for part in re.split(rf"\n{indent}(?!\t)", text):
        match = re.match(r"([A-Z][\w ]*):[ \t](.*)", part, re.DOTALL)
        title = match is None or match[1] in ("MSI", "MSI-X")
        yield ("", part) if title or match is None else (match[1], match[2])


def _numbers(capability: str, text: str) -> Iterator[tuple[str, int]]:
    for pattern, parts in _NUMBERS.get(capability, []):
        match = re.search(pattern, text)
        if match is None:
            continue
        for (name, convert), found in zip(parts, match.groups(), strict=True):
            if found is not None:
                yield name, convert(found)
