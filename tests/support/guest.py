# SPDX-License-Identifier: MIT
"""The inside of the guest that scripts/vm-test boots.

Run as a program it is the guest's init script: it loads the VFIO modules, binds the emulated
devices to vfio-pci, runs one command and leaves the command's exit status where the host reads it.
Imported, it is what the tests use to find, bind and re-bind those devices.

Rule 1: standard library only; it runs before anything else is known to work.
Rule 2: a step that had no effect stops here, with its name, and not as a strange test failure.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

# Where the guest mounts the host's run directory (scripts/vm-test passes it to virtme-run).
SHARED = Path("/run/barfs-vm")
SCRATCH = Path("/run/barfs-scratch")

# vendor and device id, as sysfs writes them
DEVICES = {
    "edu": ("0x1234", "0x11e8"),
    "ivshmem": ("0x1af4", "0x1110"),
    "nvme": ("0x1b36", "0x0010"),
    "testdev": ("0x1b36", "0x0005"),
    "ahci": ("0x8086", "0x2922"),
    "xhci": ("0x1b36", "0x000d"),
}
_CHIPSET = "0000:00:1f."
"""The machine's own functions: one of them is another AHCI, in an IOMMU group with the rest."""

VfioPath = Literal["auto", "cdev", "group", "noiommu"]
_VFIO_PATHS: tuple[VfioPath, ...] = ("auto", "cdev", "group", "noiommu")

VFIO_PCI = "vfio-pci"
SPARSE_VFIO_PCI = "sparse-vfio-pci"

_PCI = Path("/sys/bus/pci")
_SPARSE_PARAMETERS = Path("/sys/module/sparse_vfio_pci/parameters")


def inside() -> bool:
    """Whether this process runs in the guest of scripts/vm-test."""
    return "BARFS_VM_GUEST" in os.environ


def vfio_path() -> VfioPath:
    """The way into VFIO that the tests take."""
    wanted = os.environ.get("BARFS_VFIO", "auto")
    for path in _VFIO_PATHS:
        if path == wanted:
            return path
    raise LookupError(f"BARFS_VFIO={wanted}: it is one of {', '.join(_VFIO_PATHS)}")


def mount_options(options: str = "") -> str:
    """Options of a mount with that way into VFIO."""
    return ",".join(filter(None, (f"vfio={vfio_path()}", options)))


def find_all(name: str) -> list[str]:
    """Return the BDFs of the devices called `name` in DEVICES, in order."""
    found = []
    for device in sorted((_PCI / "devices").iterdir()):
        ids = tuple((device / file).read_text().strip() for file in ("vendor", "device"))
        if ids == DEVICES[name] and not device.name.startswith(_CHIPSET):
            found.append(device.name)
    return found


def find(name: str) -> str:
    """Return the BDF of the first device called `name` in DEVICES; LookupError without one."""
    for bdf in find_all(name):
        return bdf
    raise LookupError(f"no {name} device in this guest")


def find_physical_function() -> str:
    """Return the BDF of the nvme device that can have virtual functions."""
    for bdf in find_all("nvme"):
        if (_PCI / "devices" / bdf / "sriov_totalvfs").exists():
            return bdf
    raise LookupError("no nvme device in this guest has virtual functions")


def iommu_group(bdf: str) -> str:
    """Return the name of the device's IOMMU group."""
    return (_PCI / "devices" / bdf / "iommu_group").resolve().name


def driver(bdf: str) -> str | None:
    """Return the name of the driver that holds the device, None when none does."""
    link = _PCI / "devices" / bdf / "driver"
    return link.resolve().name if link.exists() else None


def bind(bdf: str, wanted: str | None) -> None:
    """Give the device to the driver `wanted`, by driver_override; None leaves it unbound.

    Unbinding waits while a process has the VFIO device open. RuntimeError when the
    driver did not take it.
    """
    if driver(bdf) == wanted:
        return
    device = _PCI / "devices" / bdf
    if driver(bdf) is not None:
        (device / "driver" / "unbind").write_text(bdf)
    (device / "driver_override").write_text(f"{wanted or ''}\n")
    if wanted is not None:
        (_PCI / "drivers_probe").write_text(bdf)
    if driver(bdf) != wanted:
        raise RuntimeError(f"{bdf} is bound to {driver(bdf)}, not to {wanted}")


def rescan() -> None:
    """Bring removed devices back, without a driver or with the one that takes them first."""
    (_PCI / "rescan").write_text("1")


@contextlib.contextmanager
def bound(name: str, wanted: str | None = VFIO_PCI) -> Iterator[str]:
    """Bind the first device called `name` to a driver, yield its BDF, give it back to vfio-pci."""
    with _borrowed(find(name), wanted) as bdf:
        yield bdf


@contextlib.contextmanager
def held(bdf: str, wanted: str) -> Iterator[None]:
    """Bind a device to a driver of the kernel's, which is loaded first; then to vfio-pci again."""
    subprocess.run(["modprobe", wanted.replace("xhci_hcd", "xhci_pci")], check=True)
    with _borrowed(bdf, wanted):
        yield


@contextlib.contextmanager
def sparse(
    name: str, areas: Sequence[tuple[int, int]] | None, bar: int = 0, number: int = 0
) -> Iterator[str]:
    """Bind a device to the variant driver with (offset, size) areas of one BAR; yield its BDF.

    `number` chooses among the devices called `name`. Areas None: no sparse capability at all.
    """
    set_areas(areas, bar)
    with _borrowed(find_all(name)[number], SPARSE_VFIO_PCI) as bdf:
        yield bdf


@contextlib.contextmanager
def _borrowed(bdf: str, wanted: str | None) -> Iterator[str]:
    bind(bdf, wanted)
    try:
        yield bdf
    finally:
        bind(bdf, VFIO_PCI)


def set_areas(areas: Sequence[tuple[int, int]] | None, bar: int = 0) -> None:
    """Tell the variant driver which areas to report for the devices that it is bound to next.

    They are reported as they are, however wrong.
    """
    (_SPARSE_PARAMETERS / "bar").write_text(str(bar))
    text = "none" if areas is None else ",".join(f"{offset:#x}:{size:#x}" for offset, size in areas)
    # An empty write would not reach the driver at all.
    (_SPARSE_PARAMETERS / "areas").write_text(f"{text}\n")


class HostSharedMemory:
    """The host's side of ivshmem's BAR 2: the file that QEMU maps as the device's memory.

    Reads and writes go through 9p without a cache to the host's page cache, which is the very
    memory that QEMU maps. (A mapping of this file in the guest would be a copy.)
    """

    def __init__(self) -> None:
        self._fd = os.open(SHARED / "ivshmem", os.O_RDWR | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes at `offset`, as a process on the host would see them now."""
        data = b""
        while len(data) < count:
            part = os.pread(self._fd, count - len(data), offset + len(data))
            if not part:
                raise EOFError(f"ivshmem's host file ends before {offset + count:#x}")
            data += part
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`, as a process on the host would."""
        written = 0
        while written < len(data):
            written += os.pwrite(self._fd, data[written:], offset + written)

    def close(self) -> None:
        os.close(self._fd)


def _log(message: str) -> None:
    print(f"guest: {message} (up {time.clock_gettime(time.CLOCK_BOOTTIME):.0f} s)", flush=True)


def _cache_host_files() -> None:
    # virtme mounts the root without a cache, where a Python that looks for its modules, or pytest
    # for the source of a traceback, takes minutes. What they read does not change meanwhile.
    host = Path("/run/barfs-host")
    host.mkdir()
    options = "ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose"
    subprocess.run(["mount", "-t", "9p", "-o", options, "barfs-host", host], check=True)
    here = Path.cwd()
    for path in {Path("/usr"), Path(sys.prefix), Path(sys.base_prefix), here}:
        subprocess.run(["mount", "--bind", host / path.relative_to("/"), path], check=True)
    os.chdir(here)


def _load_modules() -> None:
    # Any of these may be built in, and then modprobe has nothing to load: what counts is below.
    for module in ("vfio-pci", "vfio_iommu_type1", "fuse"):
        subprocess.run(["modprobe", "-q", module], check=False)
    for effect in (_PCI / "drivers" / VFIO_PCI, Path("/dev/vfio/vfio"), Path("/dev/fuse")):
        if not effect.exists():
            raise RuntimeError(f"this kernel has no {effect}")
    subprocess.run(["insmod", SHARED / "sparse_vfio_pci.ko"], check=True)


def _make_writable_places() -> None:
    # The root file system is the host's, read-only.
    SCRATCH.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "barfs-scratch", SCRATCH], check=True)
    for variable, name in (
        ("TMPDIR", "tmp"),
        ("HOME", "home"),
        ("XDG_CACHE_HOME", "cache"),
        ("HYPOTHESIS_STORAGE_DIRECTORY", "hypothesis"),
    ):
        (SCRATCH / name).mkdir()
        os.environ[variable] = str(SCRATCH / name)


def main(command: Sequence[str]) -> int:
    """Prepare the guest and run `command`; return its exit status."""
    _make_writable_places()
    _cache_host_files()
    _load_modules()
    for name in DEVICES:
        find(name)  # raises for one that is not there
        for bdf in find_all(name):
            bind(bdf, VFIO_PCI)
    os.environ["BARFS_VM_GUEST"] = "1"
    _log("devices are bound")
    status = subprocess.run(command, check=False).returncode
    _log(f"exit status {status}")
    return status


if __name__ == "__main__":
    exit_status = main(sys.argv[1:])
    (SHARED / "status").write_text(f"{exit_status}\n")
