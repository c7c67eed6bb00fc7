# SPDX-License-Identifier: MIT
"""The maps of NVMe, AHCI and xHCI against what others print of the same device: nvme-cli and the
kernel's drivers, which have it before barfs does."""

import json
import mmap
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from barfs.registers.fields import extract
from barfs.registers.places import RegisterMap
from barfs.registers.shipped import Ids, shipped_maps
from tests.support import barfs, wait_until
from tests.support.guest import find, find_all, held

from .mounts import mounted

SYSFS = Path("/sys/bus/pci/devices")
DEBUGFS = Path("/sys/kernel/debug")
WIDTHS = {1: "B", 2: "H", 4: "I", 8: "Q"}


def output(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def kernel_log(bdf: str) -> str:
    """What the kernel said of a function."""
    return "\n".join(line for line in output("dmesg").splitlines() if f" {bdf}: " in line)


@dataclass(frozen=True, slots=True)
class Registers:
    """The registers of a BAR by their names, while a driver of the kernel's has the device: the map
    is that of barfs, the accesses go through sysfs (the guest's kernel is told iomem=relaxed)."""

    map: RegisterMap
    views: Mapping[int, memoryview]

    def __getitem__(self, name: str) -> int:
        place = self.map.find(name)
        width = place.register.access_width
        value = 0
        for part in range(0, place.register.width, width):
            value |= self.views[width][(place.offset + part) // width] << 8 * part
        return value if place.field is None else extract(place.field, value)

    def name_in(self, name: str) -> str:
        """What the number in a field is called."""
        field = self.map.find(name).field
        assert field is not None
        return {value.value: value.name for value in field.values}[self[name]]


@contextmanager
def beside_the_driver(bdf: str, bar: int) -> Iterator[Registers]:
    ids = [int((SYSFS / bdf / name).read_text(), 16) for name in ("vendor", "device", "class")]
    with ExitStack() as stack:
        file = stack.enter_context((SYSFS / bdf / f"resource{bar}").open("r+b", buffering=0))
        mapping = stack.enter_context(mmap.mmap(file.fileno(), os.fstat(file.fileno()).st_size))
        whole = stack.enter_context(memoryview(mapping))
        views = {
            width: stack.enter_context(whole.cast(code))  # type: ignore[call-overload]
            for width, code in WIDTHS.items()
        }
        source = shipped_maps(
            Ids(ids[0], ids[1], 0, 0, ids[2]),
            {f"bar{bar}": len(whole)},
            lambda _region, offset, width: int(views[width][offset // width]),
        )[f"bar{bar}"]
        yield Registers(source.load(), views)


# --- NVMe -----------------------------------------------------------------------------------------

NVME_LINE = re.compile(r"(?m)^(\w+)\s*: ([0-9a-f]+)$")
NVME_FIELD = re.compile(r"(?m)^\t([^\t\n].*?)(?:\s*\((\w+)\))?\s*: (.*(?:\n\t {8}.*)*)$")
UNABBREVIATED = {"Read Bypass Behavior": "RBB", "CRIMT": "CRIMT", "CRWMT": "CRWMT"}
NEGATIVE = re.compile(r"\b(no|not|disabled|false)\b", re.IGNORECASE)
NAMED = {
    "CAP.AMS": {"is not supported": 0, "is supported": 1},
    "CC.AMS": {"Round Robin": 0},
    "CC.CSS": {"All supported": 6},
    "CSTS.SHST": {"Normal operation": 0},
    "BPINFO.BRS": {"No Boot Partition read": 0},
    "CMBSZ.SZU": {"4 KB": 0, "64 KB": 1, "1 MB": 2},
    "PMRCAP.PMRTU": {"500 milliseconds": 0, "minutes": 1},
    "PMRSTS.HSTS": {"Normal Operation": 0},
    "PMREBS.RBB": {"MAY": 0},
    "PMREBS.PMRSZU": {"Bytes": 0},
    "PMRSWTP.PMRSWTU": {"Bytes/second": 0},
}
COMMAND_SETS = {"NVM command set is": 1, "One or more": 1 << 6, "Only Admin": 1 << 7}
WRITTEN = ("AQA", "ASQ", "ACQ", "CMBMSC", "CC")


def field_of(name: str, text: str) -> int:
    """The number in a field by what nvme-cli prints of it."""
    if name == "CAP.CSS":
        return sum(bit for start, bit in COMMAND_SETS.items() if start in text)
    for start, number in NAMED.get(name, {}).items():
        if start in text:
            return number
    if text.endswith("Enforced"):  # where the bit allows no other way
        return int(text.startswith("Not"))
    match = re.match(r"(0x)?([0-9a-f]+)", text)
    if match is None:
        return int(not NEGATIVE.search(text))
    if name in ("ASQ.ASQB", "ACQ.ACQB", "BPMBL.BMBBA", "CMBMSC.CBA", "PMRMSCL.CBA"):
        return int(match[2], 16) >> 12
    number = int(match[2], 16 if match[1] else 10)
    match name.partition(".")[2]:
        case "MQES" | "ACQS" | "ASQS":
            return number - 1
        case "TO":
            return number // 500
        case "DSTRD":
            return (number // 4).bit_length() - 1
        case "MPSMIN" | "MPSMAX" | "MPS":
            return (number >> 12).bit_length() - 1
        case "IOCQES" | "IOSQES":
            return number.bit_length() - 1
    return number


def nvme_cli(bdf: str) -> tuple[dict[str, int], dict[str, int]]:
    """The registers and the fields that `nvme show-regs` prints, by barfs' names."""
    (device,) = (path.name for path in (SYSFS / bdf / "nvme").iterdir())
    wait_until(Path(f"/dev/{device}").exists, "the controller's device node")
    wait_until((SYSFS / bdf / "nvme" / device / "state").exists, "the controller's state")
    state = SYSFS / bdf / "nvme" / device / "state"
    wait_until(lambda: state.read_text() == "live\n", "the controller")
    # nvme-cli 2.3 prints all of it, and ends with 1.
    command = ["nvme", "show-regs", "-H", f"/dev/{device}"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    text = shown.stdout
    assert text.startswith("cap "), shown.stderr
    values, fields = {}, {}
    starts = [*NVME_LINE.finditer(text)]
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        register = start[1].upper().replace("VERSION", "VS")
        values[register] = int(start[2], 16)
        for match in NVME_FIELD.finditer(text, start.end(), end.start() if end else len(text)):
            name = f"{register}.{match[2] or UNABBREVIATED[match[1]]}"
            fields[name] = field_of(name, match[3])
    return values, fields


@pytest.mark.parametrize("number", [0, 2])
def test_nvme_has_what_nvme_cli_prints(tmp_path: Path, number: int) -> None:
    """The third controller has a Controller Memory Buffer and a Persistent Memory Region."""
    bdf = find_all("nvme")[number]
    with held(bdf, "nvme"):
        values, fields = nvme_cli(bdf)
        with beside_the_driver(bdf, 0) as live:
            assert {name: live[name] for name in values} == values
            assert {name: live[name] for name in fields} == fields
    assert (len(values), len(fields)) >= (25, 60)
    if number:
        assert 0 not in (values["CMBSZ"], values["PMRCAP"])

    with mounted(tmp_path, bdf) as mount:
        bar0 = mount.device() / "registers" / "bar0"
        # The kernel has reset it since: as its driver had set it up.
        for name in WRITTEN:
            (bar0 / name).write_text(f"{values[name]:#x}")
        polled = barfs("poll", mount.device() / "bar0", "CSTS.RDY", "1")
        assert polled.returncode == 0, polled.stderr
        for name, value in values.items():
            assert (name, int((bar0 / name).read_text(), 16)) == (name, value)
        shown = barfs("reg", "--json", mount.device(), *(f"bar0.{name}" for name in values))
        own = {
            f"{register['name']}.{field['name']}": field["value"]
            for register in json.loads(shown.stdout)
            for field in register["fields"]
        }
        assert {name: own[name] for name in fields} == fields


def test_a_session_with_nvme(tmp_path: Path) -> None:
    """ls, cat, echo, and the commands by name, on a controller that does what it is told."""
    with mounted(tmp_path, find("nvme")) as mount:
        device = mount.device()
        bar0 = device / "registers" / "bar0"
        names = set(os.listdir(bar0))
        assert {"CAP", "CAP.MQES", "CC", "CC.EN", "CSTS.RDY", "SQTDBL0", "CQHDBL0.CQH"} <= names
        assert (bar0 / "VS").read_text() == "0x00010400\n"
        assert (bar0 / "VS.MNR").read_text() == "4\n"
        shown = barfs("md", device / "bar0", "VS")
        assert shown.stdout.split()[:2] == ["00000008:", "00010400"]

        for name, value in (("AQA", "0x1f001f"), ("ASQ", "0x10000"), ("ACQ", "0x20000")):
            (bar0 / name).write_text(value)
        (bar0 / "CC").write_text("0x460060")
        assert (bar0 / "CC.CSS").read_text() == "all\n"
        (bar0 / "CC.EN").write_text("1")
        assert (bar0 / "CC").read_text() == "0x00460061\n"
        assert barfs("poll", device / "bar0", "CSTS.RDY", "1").returncode == 0
        shown = barfs("reg", device, "CSTS")
        assert shown.stdout == (
            "bar0+0x0000001c CSTS 0x00000001  RDY[0]=1 CFS[1]=0 SHST[3:2]=normal NSSRO[4]=0 "
            "PP[5]=0 ST[6]=0\n"
        )
        changed = barfs("rmw", device / "bar0", "CC.SHN", "normal")
        assert (changed.returncode, changed.stderr) == (0, "")
        assert (bar0 / "CC").read_text() == "0x00464061\n"
        assert barfs("poll", device / "bar0", "CSTS.SHST", "complete").returncode == 0
        assert (bar0 / "CSTS.SHST").read_text() == "complete\n"
        assert barfs("reg", device, "CC.EN=0").returncode == 0
        assert barfs("poll", device / "bar0", "CSTS.RDY", "0").returncode == 0


# --- AHCI -----------------------------------------------------------------------------------------

AHCI_FLAGS = {
    "64bit": "CAP.S64A", "ncq": "CAP.SNCQ", "sntf": "CAP.SSNTF", "ilck": "CAP.SMPS",
    "stag": "CAP.SSS", "pm": "CAP.SALP", "led": "CAP.SAL", "clo": "CAP.SCLO", "only": "CAP.SAM",
    "pmp": "CAP.SPM", "fbs": "CAP.FBSS", "pio": "CAP.PMD", "slum": "CAP.SSC", "part": "CAP.PSC",
    "ccc": "CAP.CCCS", "ems": "CAP.EMS", "sxs": "CAP.SXS", "deso": "CAP2.DESO",
    "sadm": "CAP2.SADM", "sds": "CAP2.SDS", "apst": "CAP2.APST", "nvmp": "CAP2.NVMP",
    "boh": "CAP2.BOH",
}  # fmt: skip
SPEEDS = {"1.5": 1, "3": 2, "6": 3}


def found_in(text: str, pattern: str) -> str:
    match = re.search(pattern, text)
    assert match, (pattern, text)
    return str(next(filter(None, match.groups())))


def test_ahci_has_what_the_kernel_prints(tmp_path: Path) -> None:
    """The driver's messages, its files in sysfs, and the links of the ports."""
    bdf = find("ahci")
    with held(bdf, "ahci"), beside_the_driver(bdf, 5) as live:
        hosts = sorted((SYSFS / bdf).glob("ata*/host*/scsi_host/host*"), key=host_number)
        links = link_states(hosts)
        wait_until(lambda: live["P[0].CMD.ST"] == 1, "the disk")
        files = {name: (hosts[0] / f"ahci_{name}").read_text() for name in AHCI_FILES}
        commands = [int((host / "ahci_port_cmd").read_text(), 16) for host in hosts]
        assert [live[f"P[{port}].CMD"] for port in range(len(hosts))] == commands
        assert live["GHC.AE"] == live["GHC.IE"] == 1
        log = kernel_log(bdf)
    with mounted(tmp_path, bdf) as mount:
        shown = barfs("reg", "--json", mount.device(), "bar5.*", "bar5.P*.SSTS")
        assert shown.returncode == 0, shown.stderr
    own = {}
    for register in json.loads(shown.stdout):
        own[register["name"]] = register["value"]
        for field in register["fields"]:
            own[f"{register['name']}.{field['name']}"] = field["value"]
    assert {register: own[register] for register in AHCI_FILES.values()} == {
        register: int(files[name], 16) for name, register in AHCI_FILES.items()
    }
    assert own["VS.MJR"] == int(found_in(log, r"AHCI (?:vers )?([0-9a-f]{4})\."), 16)
    assert own["VS.MNR"] == int(found_in(log, r"AHCI (?:vers )?[0-9a-f]{4}\.([0-9a-f]{4})"), 16)
    assert own["CAP.NCS"] + 1 == int(found_in(log, r"(\d+) (?:command )?slots"))
    assert own["CAP.NP"] + 1 == int(found_in(log, r"(\d+) ports |/(\d+) ports implemented"))
    assert own["CAP.ISS"] == SPEEDS[found_in(log, r"([\d.]+) Gbps")]
    assert own["PI.PI"] == int(found_in(log, r"0x([0-9a-f]+) impl|port mask 0x([0-9a-f]+)"), 16)
    flags = set(found_in(log, r"flags: (.*)").split())
    assert flags <= set(AHCI_FLAGS)
    assert {flag: own[name] for flag, name in AHCI_FLAGS.items()} == {
        flag: int(flag in flags) for flag in AHCI_FLAGS
    }
    assert [own[f"P{port}.SSTS"] for port in range(len(hosts))] == links
    assert links[0] & 0xF == own["P0.SSTS.DET"] == 3  # the disk


AHCI_FILES = {"host_caps": "CAP", "host_cap2": "CAP2", "host_version": "VS"}


def host_number(host: Path) -> int:
    return int(host.name.removeprefix("host"))


def link_states(hosts: list[Path]) -> list[int]:
    """SStatus of each port, as libata prints it once the link is up or down."""
    found = []
    for host in hosts:
        port = host.parents[2].name
        pattern = re.compile(rf"{port}: SATA link .*\(SStatus ([0-9a-f]+) ")
        wait_until(lambda: bool(pattern.search(output("dmesg"))), f"the link of {port}")  # noqa: B023
        found.append(int(pattern.findall(output("dmesg"))[-1], 16))
    return found


# --- xHCI -----------------------------------------------------------------------------------------

XHCI_CAPABILITIES = {
    "CAPLENGTH": "CAPLENGTH",
    "HCSPARAMS1": "HCSPARAMS1", "HCSPARAMS2": "HCSPARAMS2", "HCSPARAMS3": "HCSPARAMS3",
    "HCCPARAMS1": "HCCPARAMS1", "DOORBELLOFF": "DBOFF", "RUNTIMEOFF": "RTSOFF",
    "HCCPARAMS2": "HCCPARAMS2",
}  # fmt: skip
XHCI_OPERATIONAL = ("USBCMD", "USBSTS", "PAGESIZE", "DNCTRL", "CONFIG")
XHCI_RUNTIME = ("IMAN", "IMOD", "ERSTSZ", "ERSTBA", "ERDP")
XHCI_PROTOCOL = {
    "EXTCAP_REVISION": "CAP", "EXTCAP_NAME": "NAME", "EXTCAP_PORTINFO": "PORTS",
    "EXTCAP_PORTTYPE": "SLOT",
}  # fmt: skip
XHCI_CHANGES = ("CSC", "PEC", "WRC", "OCC", "PRC", "PLC", "CEC", "CAS")
XHCI_WAKES = ("WCE", "WDE", "WOE")


def register_set(folder: Path, name: str) -> dict[str, int]:
    """A debugfs_regset32; two halves of 32 bits are one register."""
    found: dict[str, int] = {}
    for line in (folder / name).read_text().splitlines():
        key, _equals, text = line.partition(" = ")
        if key.endswith("_HIGH"):
            found[key.removesuffix("_HIGH")] |= int(text, 16) << 32
        else:
            found[key.removesuffix("_LOW")] = int(text, 16)
    return found


def port_text(live: Registers, port: str) -> str:
    """A port as the driver's file has it."""
    words = [
        "Powered" if live[f"{port}.PP"] else "Powered-off",
        "Connected" if live[f"{port}.CCS"] else "Not-connected",
        "Enabled" if live[f"{port}.PED"] else "Disabled",
        f"Link:{live.name_in(f'{port}.PLS')}",
        f"PortSpeed:{live[f'{port}.Port_Speed']}",
        *(["OverCurrent"] if live[f"{port}.OCA"] else []),
        *(["In-Reset"] if live[f"{port}.PR"] else []),
        "Change:",
        *(name for name in XHCI_CHANGES if live[f"{port}.{name}"]),
        "Wake:",
        *(name for name in XHCI_WAKES if live[f"{port}.{name}"]),
    ]
    return " ".join(words)


def test_xhci_has_what_the_kernel_prints(tmp_path: Path) -> None:
    """The driver's messages, and its files in debugfs."""
    bdf = find("xhci")
    if not os.path.ismount(DEBUGFS):
        subprocess.run(["mount", "-t", "debugfs", "none", DEBUGFS], check=True)
    folder = DEBUGFS / "usb" / "xhci" / bdf
    with held(bdf, "xhci_hcd"), beside_the_driver(bdf, 0) as live:
        product = f"{bdf}: new USB bus registered"
        wait_until(lambda: output("dmesg").count(product) >= 2, "both buses")
        wait_until(lambda: bool(attached(bdf)), "the tablet")
        capabilities = register_set(folder, "reg-cap")
        protocols = [register_set(folder, f"reg-ext-protocol:0{number}") for number in (0, 1)]
        log = kernel_log(bdf)
        operational = register_set(folder, "reg-op")
        assert {name: live[f"OP.{name}"] for name in XHCI_OPERATIONAL} == {
            name: operational[name] for name in XHCI_OPERATIONAL
        }
        assert live["OP.DCBAAP"] == operational["DCBAAP"] != 0
        runtime = register_set(folder, "reg-runtime")
        assert {name: live[f"RT.IR[0].{name}"] for name in XHCI_RUNTIME} == {
            name: runtime[f"IR0_{name}"] for name in XHCI_RUNTIME
        }
        assert 0 not in (runtime["IR0_ERSTBA"], runtime["IR0_ERDP"])
        ports = sorted((folder / "ports").iterdir())
        assert len(ports) == live["HCSPARAMS1.MaxPorts"] == 8
        for number, port in enumerate(ports):
            shown = port_text(live, f"OP.PORT[{number}].PORTSC")
            assert shown == (port / "portsc").read_text().strip()
    with mounted(tmp_path, bdf) as mount:
        bar0 = mount.device() / "registers" / "bar0"

        def read(name: str) -> int:
            return int((bar0 / name).read_text(), 0)

        assert {name: read(own) for name, own in XHCI_CAPABILITIES.items()} == {
            name: capabilities[name] for name in XHCI_CAPABILITIES
        }
        for name, protocol in zip(
            ("SUPPORTED_PROTOCOL", "SUPPORTED_PROTOCOL_2"), protocols, strict=True
        ):
            own = {key: read(f"{name}/{register}") for key, register in XHCI_PROTOCOL.items()}
            assert own == protocol
        assert read("HCCPARAMS1") == int(found_in(log, r"hcc params 0x([0-9a-f]+)"), 16)
        assert read("CAPLENGTH.HCIVERSION") == int(found_in(log, r"hci version 0x([0-9a-f]+)"), 16)
        assert read("SUPPORTED_PROTOCOL/PORTS.Compatible_Port_Count") == 4
        assert [read(f"OP/PORT{number}/PORTSC.CCS") for number in range(8)].count(1) == 1


def attached(bdf: str) -> list[Path]:
    """What is plugged in and has an address, besides the root hubs."""
    return [path for path in (SYSFS / bdf).glob("usb*/*-*/devnum") if path.read_text() != "1\n"]
