# SPDX-License-Identifier: MIT
"""The structures of `linux/vfio.h` that describe a device and its regions: encode and decode.

Rule 1: pure; kernel VFIO and vfio-user carry the same bytes, so both use this module.
Rule 2: fields are in host byte order and unpadded.
Rule 3: decode the capability chain strictly. A chain that cannot be read is an error of its region
        (`RegionInfo.chain_error`), never "no capabilities", and never an exception that loses the
        fields in front of it. Skip unknown capability ids, as the ABI demands.
"""

import struct
from dataclasses import dataclass

from barfs.errors import CapabilityError
from barfs.ranges import Range

DEVICE_FLAG_RESET = 1
DEVICE_FLAG_PCI = 2

REGION_FLAG_READ = 1
REGION_FLAG_WRITE = 2
REGION_FLAG_MMAP = 4
REGION_FLAG_CAPS = 8
_FLAG_NAMES = (
    (REGION_FLAG_READ, "read"),
    (REGION_FLAG_WRITE, "write"),
    (REGION_FLAG_MMAP, "mmap"),
    (REGION_FLAG_CAPS, "caps"),
)

CAPABILITY_SPARSE_MMAP = 1
CAPABILITY_TYPE = 2
CAPABILITY_MSIX_MAPPABLE = 3

_DEVICE_INFO = struct.Struct("=IIII")
_REGION_INFO = struct.Struct("=IIIIQQ")
_CAPABILITY = struct.Struct("=HHI")
_SPARSE_HEADER = struct.Struct("=II")
_SPARSE_AREA = struct.Struct("=QQ")
_TYPE = struct.Struct("=II")
_KNOWN_VERSION = 1

DEVICE_INFO_SIZE = _DEVICE_INFO.size
REGION_INFO_SIZE = _REGION_INFO.size
REGION_INFO_LIMIT = 1 << 14
"""A region info above this many bytes (a thousand sparse areas) is refused, not allocated."""
CHAIN_LIMIT = 32
"""No chain is followed further; the ABI knows fewer than ten capabilities."""


class TruncatedInfo(CapabilityError):
    """The structure is shorter than its fixed part."""


class CapabilityOffsetError(CapabilityError):
    """A capability starts inside the fixed structure, or is not where a header fits."""


class CapabilityLoop(CapabilityError):
    """The chain comes back to a capability that it has already passed, or does not end."""


class CapabilityVersionError(CapabilityError):
    """A known capability in an unknown version: its body cannot be understood."""


class CapabilityTruncated(CapabilityError):
    """A capability's body leaves the structure; for sparse areas: `nr_areas` is too large."""


class CapabilityRepeated(CapabilityError):
    """The same capability twice: which one is true cannot be told."""


class CapabilityMissing(CapabilityError):
    """The CAPS flag is set, but there is no chain although the structure was large enough."""


class InfoChanged(CapabilityError):
    """Two answers about the same region contradict each other: neither can be believed."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """`struct vfio_device_info`: flags (`DEVICE_FLAG_*`), counts of regions and of IRQ indexes."""

    flags: int
    num_regions: int
    num_irqs: int

    def encode(self) -> bytes:
        return _DEVICE_INFO.pack(_DEVICE_INFO.size, self.flags, self.num_regions, self.num_irqs)

    @classmethod
    def decode(cls, data: bytes) -> "DeviceInfo":
        """Read the first 16 bytes. Raises TruncatedInfo when there are fewer."""
        if len(data) < _DEVICE_INFO.size:
            raise TruncatedInfo(f"device info of {len(data)} bytes, expected {_DEVICE_INFO.size}")
        _argsz, flags, num_regions, num_irqs = _DEVICE_INFO.unpack_from(data)
        return cls(flags, num_regions, num_irqs)


@dataclass(frozen=True, slots=True)
class SparseArea:
    """A mappable area as the driver reports it: offset in the region and size, in bytes."""

    offset: int
    size: int

    @property
    def range(self) -> Range:
        return Range(self.offset, self.offset + self.size)


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """`struct vfio_region_info` with its decoded capability chain.

    `size` is in bytes, `offset` is the region's place in the device's (or its own) descriptor.
    `areas` is None without a sparse capability; an empty tuple means that nothing is mappable.
    `chain_error` is set where the chain could not be read; the capabilities are then absent.
    """

    index: int
    flags: int
    size: int
    offset: int
    areas: tuple[SparseArea, ...] | None = None
    msix_mappable: bool = False
    type: tuple[int, int] | None = None
    chain_error: CapabilityError | None = None

    @property
    def flag_names(self) -> tuple[str, ...]:
        return tuple(name for flag, name in _FLAG_NAMES if self.flags & flag)

    @property
    def readable(self) -> bool:
        return bool(self.flags & REGION_FLAG_READ)

    @property
    def writable(self) -> bool:
        return bool(self.flags & REGION_FLAG_WRITE)

    @property
    def mappable(self) -> bool:
        return bool(self.flags & REGION_FLAG_MMAP)


def encode_region_info(info: RegionInfo) -> bytes:
    """The structure with its whole chain; `argsz` says how long that is."""
    bodies: list[tuple[int, bytes]] = []
    if info.areas is not None:
        areas = b"".join(_SPARSE_AREA.pack(area.offset, area.size) for area in info.areas)
        bodies.append((CAPABILITY_SPARSE_MMAP, _SPARSE_HEADER.pack(len(info.areas), 0) + areas))
    if info.type is not None:
        bodies.append((CAPABILITY_TYPE, _TYPE.pack(*info.type)))
    if info.msix_mappable:
        bodies.append((CAPABILITY_MSIX_MAPPABLE, b""))
    chain = b""
    for position, (identifier, body) in enumerate(bodies, 1):
        end = _REGION_INFO.size + len(chain) + _CAPABILITY.size + len(body)
        next_offset = end if position < len(bodies) else 0
        chain += _CAPABILITY.pack(identifier, _KNOWN_VERSION, next_offset) + body
    flags = info.flags | REGION_FLAG_CAPS if chain else info.flags & ~REGION_FLAG_CAPS
    cap_offset = _REGION_INFO.size if chain else 0
    fixed = _REGION_INFO.pack(
        _REGION_INFO.size + len(chain), flags, info.index, cap_offset, info.size, info.offset
    )
    return fixed + chain


def region_info_argsz(data: bytes) -> int:
    """The `argsz` field: how many bytes the whole structure needs. Raises TruncatedInfo."""
    if len(data) < _REGION_INFO.size:
        raise TruncatedInfo(f"region info of {len(data)} bytes, expected {_REGION_INFO.size}")
    (argsz,) = struct.unpack_from("=I", data)
    return int(argsz)


def decode_region_info(data: bytes) -> RegionInfo:
    """Read the structure and its chain; `data` ends where the answer ends.

    Raises TruncatedInfo when the fixed part is not there; a bad chain is reported in the result.
    """
    argsz = region_info_argsz(data)
    _argsz, flags, index, cap_offset, size, offset = _REGION_INFO.unpack_from(data)
    fixed = RegionInfo(index, flags, size, offset)
    if not flags & REGION_FLAG_CAPS:
        return fixed
    try:
        if argsz > len(data):
            raise CapabilityTruncated(f"region {index}: {argsz} bytes announced, {len(data)} came")
        bodies = _walk_chain(data[:argsz], cap_offset)
        return RegionInfo(
            index,
            flags,
            size,
            offset,
            areas=_sparse_areas(bodies[CAPABILITY_SPARSE_MMAP])
            if CAPABILITY_SPARSE_MMAP in bodies
            else None,
            msix_mappable=CAPABILITY_MSIX_MAPPABLE in bodies,
            type=_type(bodies[CAPABILITY_TYPE]) if CAPABILITY_TYPE in bodies else None,
        )
    except CapabilityError as error:
        return RegionInfo(index, flags, size, offset, chain_error=error)


def _walk_chain(data: bytes, offset: int) -> dict[int, bytes]:
    """Known capabilities by id, each with all bytes that follow its header.

    The ABI gives no length of a body, so a body's own fields must say how much of it is meant.
    """
    if offset == 0:
        raise CapabilityMissing("the CAPS flag is set, but cap_offset is 0")
    bodies: dict[int, bytes] = {}
    seen: set[int] = set()
    while offset:
        if offset < _REGION_INFO.size or offset + _CAPABILITY.size > len(data):
            raise CapabilityOffsetError(f"capability at {offset:#x} of {len(data):#x} bytes")
        if offset in seen or len(seen) == CHAIN_LIMIT:
            raise CapabilityLoop(f"the capability chain does not end: again at {offset:#x}")
        seen.add(offset)
        identifier, version, next_offset = _CAPABILITY.unpack_from(data, offset)
        if identifier in (CAPABILITY_SPARSE_MMAP, CAPABILITY_TYPE, CAPABILITY_MSIX_MAPPABLE):
            if version != _KNOWN_VERSION:
                raise CapabilityVersionError(f"capability {identifier} has version {version}")
            if identifier in bodies:
                raise CapabilityRepeated(f"capability {identifier} is in the chain twice")
            bodies[identifier] = data[offset + _CAPABILITY.size :]
        offset = next_offset
    return bodies


def _sparse_areas(body: bytes) -> tuple[SparseArea, ...]:
    if len(body) < _SPARSE_HEADER.size:
        raise CapabilityTruncated("the sparse mmap capability has no room for nr_areas")
    count, _reserved = _SPARSE_HEADER.unpack_from(body)
    end = _SPARSE_HEADER.size + count * _SPARSE_AREA.size
    if end > len(body):
        raise CapabilityTruncated(f"{count} sparse areas do not fit into {len(body)} bytes")
    areas = _SPARSE_AREA.iter_unpack(body[_SPARSE_HEADER.size : end])
    return tuple(SparseArea(offset, size) for offset, size in areas)


def _type(body: bytes) -> tuple[int, int]:
    if len(body) < _TYPE.size:
        raise CapabilityTruncated("the region type capability is cut off")
    major, minor = _TYPE.unpack_from(body)
    return major, minor
