# SPDX-License-Identifier: MIT
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs import uapi
from barfs.uapi import RegionInfo, SparseArea, decode_region_info, encode_region_info

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
areas = st.lists(st.builds(SparseArea, u64, u64), max_size=8).map(tuple)


@given(
    st.builds(
        RegionInfo,
        index=u32,
        flags=st.integers(0, 7),
        size=u64,
        offset=u64,
        areas=st.none() | areas,
        msix_mappable=st.booleans(),
        type=st.none() | st.tuples(u32, u32),
    )
)
def test_region_info_round_trip(info: RegionInfo) -> None:
    data = encode_region_info(info)
    assert uapi.region_info_argsz(data) == len(data)
    decoded = decode_region_info(data)
    assert decoded.flags & ~uapi.REGION_FLAG_CAPS == info.flags
    assert (decoded.index, decoded.size, decoded.offset) == (info.index, info.size, info.offset)
    assert (decoded.areas, decoded.msix_mappable) == (info.areas, info.msix_mappable)
    assert decoded.type == info.type
    assert decoded.chain_error is None


@given(st.integers(0, 7), u32, u32)
def test_device_info_round_trip(flags: int, regions: int, irqs: int) -> None:
    info = uapi.DeviceInfo(flags, regions, irqs)
    assert uapi.DeviceInfo.decode(info.encode()) == info


def test_device_info_too_short() -> None:
    with pytest.raises(uapi.TruncatedInfo, match="15 bytes"):
        uapi.DeviceInfo.decode(bytes(15))


def chain(cap_offset: int, *pieces: tuple[int, bytes], argsz: int | None = None) -> bytes:
    """A region info whose chain holds `pieces`, each at its offset."""
    size = max([32, *(offset + len(body) for offset, body in pieces)])
    data = bytearray(size)
    for offset, body in pieces:
        data[offset : offset + len(body)] = body
    flags = uapi.REGION_FLAG_MMAP | uapi.REGION_FLAG_CAPS
    fields = (size if argsz is None else argsz, flags, 0, cap_offset, 0x10000, 0)
    data[:32] = struct.pack("=IIIIQQ", *fields)
    return bytes(data)


def sparse(count: int, next_offset: int = 0, version: int = 1) -> bytes:
    return struct.pack("=HHIII", 1, version, next_offset, count, 0)


MALFORMED = {
    "no chain": (chain(0), uapi.CapabilityMissing),
    "inside the structure": (chain(16), uapi.CapabilityOffsetError),
    "past the end": (chain(4096), uapi.CapabilityOffsetError),
    "header cut off": (chain(36, (32, bytes(8))), uapi.CapabilityOffsetError),
    "next inside the structure": (
        chain(32, (32, sparse(0, next_offset=8))),
        uapi.CapabilityOffsetError,
    ),
    "points to itself": (
        chain(32, (32, struct.pack("=HHI", 99, 1, 32))),
        uapi.CapabilityLoop,
    ),
    "circle": (
        chain(32, (32, struct.pack("=HHI", 99, 1, 40)), (40, struct.pack("=HHI", 98, 1, 32))),
        uapi.CapabilityLoop,
    ),
    "endless": (
        chain(
            32,
            *(
                (offset, struct.pack("=HHI", 99, 1, offset + 8))
                for offset in range(32, 32 + 8 * 200, 8)
            ),
        ),
        uapi.CapabilityLoop,
    ),
    "unknown version": (chain(32, (32, sparse(0, version=2))), uapi.CapabilityVersionError),
    "too many areas": (chain(32, (32, sparse(2) + bytes(31))), uapi.CapabilityTruncated),
    "areas beyond counting": (chain(32, (32, sparse(2**32 - 1))), uapi.CapabilityTruncated),
    "no room for nr_areas": (
        chain(32, (32, struct.pack("=HHI", 1, 1, 0) + bytes(4))),
        uapi.CapabilityTruncated,
    ),
    "type cut off": (
        chain(32, (32, struct.pack("=HHI", 2, 1, 0) + bytes(4))),
        uapi.CapabilityTruncated,
    ),
    "twice": (
        chain(32, (32, sparse(0, next_offset=48)), (48, sparse(0))),
        uapi.CapabilityRepeated,
    ),
    "answer shorter than argsz": (
        chain(32, (32, sparse(0)), argsz=4096),
        uapi.CapabilityTruncated,
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_chain_is_named(name: str) -> None:
    data, expected = MALFORMED[name]
    info = decode_region_info(data)
    assert type(info.chain_error) is expected
    assert info.areas is None
    assert (info.size, info.mappable) == (0x10000, True)


def test_unknown_capability_is_skipped() -> None:
    body = struct.pack("=QQ", 0x1000, 0x2000)
    data = chain(32, (32, struct.pack("=HHI", 77, 9, 40)), (40, sparse(1) + body))
    info = decode_region_info(data)
    assert info.chain_error is None
    assert info.areas == (SparseArea(0x1000, 0x2000),)


def test_caps_flag_clear_means_no_chain() -> None:
    data = bytearray(chain(32, (32, sparse(0))))
    data[4] = uapi.REGION_FLAG_MMAP
    assert decode_region_info(bytes(data)).areas is None


def test_too_short_for_the_fixed_part() -> None:
    with pytest.raises(uapi.TruncatedInfo, match="31 bytes"):
        decode_region_info(bytes(31))


@given(st.binary(min_size=32, max_size=256), st.integers(0, 300))
def test_any_bytes_give_a_region(noise: bytes, cap_offset: int) -> None:
    data = bytearray(noise)
    struct.pack_into("=IIII", data, 0, len(data), uapi.REGION_FLAG_CAPS, 0, cap_offset)
    info = decode_region_info(bytes(data))
    assert info.chain_error is None or info.areas is None
