# SPDX-License-Identifier: MIT
import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs.errors import CapabilityError, UsageError
from barfs.layout import Layout, LayoutError, MsixPlace, PlanOptions, Segment, layouts_to_json, plan
from barfs.pci import MsixCapability
from barfs.policy import Restriction
from barfs.uapi import RegionInfo, SparseArea

PAGE = 4096
READ, WRITE, MMAP = 1, 2, 4
READ_WRITE_MMAP = READ | WRITE | MMAP

sizes = st.integers(1, 64 * PAGE)
loose_areas = st.lists(
    st.builds(SparseArea, st.integers(0, 70 * PAGE), st.integers(0, 70 * PAGE)), max_size=6
).map(tuple)


@st.composite
def sound_areas(draw: st.DrawFn, size: int) -> tuple[SparseArea, ...]:
    """Areas inside the region that do not overlap, in any order, some empty or adjacent."""
    edges = sorted(draw(st.lists(st.integers(0, size), max_size=8)))
    pairs = itertools.pairwise(edges)
    areas = [SparseArea(start, end - start) for start, end in pairs if draw(st.booleans())]
    return tuple(draw(st.permutations(areas)))


@st.composite
def regions(draw: st.DrawFn, sound: bool = True) -> RegionInfo:
    size = draw(sizes)
    return RegionInfo(
        index=0,
        flags=draw(st.integers(0, 7)),
        size=size,
        offset=0,
        areas=draw(st.none() | (sound_areas(size) if sound else loose_areas)),
        msix_mappable=draw(st.booleans()),
    )


policies = st.builds(
    PlanOptions,
    width=st.sampled_from((1, 2, 4, 8)),
    mapping=st.booleans(),
    msix=st.sampled_from(("map", "carve")),
    read_only=st.booleans(),
)
places = st.none() | st.builds(
    MsixPlace, table=st.tuples(st.integers(0, 64 * PAGE), st.integers(16, 2 * PAGE))
)


def planned(
    info: RegionInfo, options: PlanOptions | None = None, msix: MsixPlace | None = None
) -> Layout:
    """Each window is one mmap."""
    return plan(
        info,
        device="0000:01:00.0",
        options=options or PlanOptions(),
        page_size=PAGE,
        gap_width=4,
        msix=msix,
    )


def make(
    info: RegionInfo, options: PlanOptions | None = None, msix: MsixPlace | None = None
) -> Layout:
    """The layout as it is shown."""
    return planned(info, options, msix).merged()


def rows(layout: Layout) -> list[tuple[int, int, str, str]]:
    return [(row.start, row.end, row.access, row.reason) for row in layout.segments]


def sparse(*areas: tuple[int, int], size: int = 0x10000) -> RegionInfo:
    return RegionInfo(
        0,
        READ_WRITE_MMAP,
        size,
        0,
        areas=tuple(SparseArea(start, end - start) for start, end in areas),
    )


@given(regions(sound=False), policies, places)
def test_segments_cover_the_region_exactly(
    info: RegionInfo, options: PlanOptions, msix: MsixPlace | None
) -> None:
    layout = make(info, options, msix)
    position = 0
    for segment in layout.segments:
        assert segment.start == position < segment.end
        position = segment.end
    assert position == info.size


@given(regions(), policies, places)
def test_windows_stay_inside_what_the_driver_allows(
    info: RegionInfo, options: PlanOptions, msix: MsixPlace | None
) -> None:
    allowed = {
        page
        for area in info.areas or ()
        for page in range(-(-area.offset // PAGE), -(-(area.offset + area.size) // PAGE))
    }
    covered = bytearray(info.size)
    for area in info.areas or ():
        covered[area.offset : area.offset + area.size] = b"\1" * area.size
    for window in make(info, options, msix).windows:
        assert info.mappable
        assert options.mapping
        assert window.start % PAGE == 0
        assert window.end % PAGE == 0 or window.end == info.size
        if info.areas is not None:
            assert all(covered[window.start : window.end])
            assert set(range(window.start // PAGE, -(-window.end // PAGE))) <= allowed


@given(regions(), policies, places)
def test_each_window_lies_in_one_area(
    info: RegionInfo, options: PlanOptions, msix: MsixPlace | None
) -> None:
    for window in planned(info, options, msix).windows:
        assert info.areas is None or any(
            area.offset <= window.start and window.end <= area.offset + area.size
            for area in info.areas
        )


@given(regions(), policies)
def test_no_whole_page_of_an_area_is_wasted(info: RegionInfo, options: PlanOptions) -> None:
    if info.areas is None or not info.mappable or not options.mapping or not info.flags & 3:
        return
    if options.read_only and not info.readable:
        return
    windows = make(info, options).windows
    for start in range(0, info.size - PAGE + 1, PAGE):
        mapped = any(window.start <= start and start + PAGE <= window.end for window in windows)
        assert mapped == any(
            area.offset <= start and start + PAGE <= area.offset + area.size for area in info.areas
        )


@given(regions(sound=False), policies, places)
def test_text_round_trip(info: RegionInfo, options: PlanOptions, msix: MsixPlace | None) -> None:
    layout = make(info, options, msix)
    assert Layout.from_text(layout.to_text()) == layout


@given(regions(), places)
def test_carving_takes_every_page_of_the_table(info: RegionInfo, msix: MsixPlace | None) -> None:
    table = msix.table if msix else None
    if table is None:
        return
    for window in make(info, PlanOptions(msix="carve"), msix).windows:
        first, last = table[0] // PAGE, (table[0] + table[1] - 1) // PAGE
        assert window.end <= first * PAGE or window.start >= (last + 1) * PAGE


def test_the_text_of_a_layout() -> None:
    info = RegionInfo(
        0,
        READ_WRITE_MMAP | 8,
        0x100000,
        0,
        areas=(SparseArea(0, 0x1000), SparseArea(0x3000, 0x1000)),
        msix_mappable=True,
    )
    layout = make(info, msix=MsixPlace(table=(0x2000, 0x410), pba=(0x3000, 8)))
    assert layout.to_text() == (
        "# barfs layout v1: bar0 of 0000:01:00.0\n"
        "size   0x100000\n"
        "flags  read write mmap caps\n"
        "width  4\n"
        "msix   table=0x2000+0x410 pba=0x3000+0x8\n"
        "# start    end        size       access perm width reason\n"
        "0x00000000 0x00001000 0x00001000 mmap   rw   8     -\n"
        "0x00001000 0x00003000 0x00002000 pread  rw   4     not-in-sparse-area\n"
        "0x00003000 0x00004000 0x00001000 mmap   rw   8     -\n"
        "0x00004000 0x00100000 0x000fc000 pread  rw   4     not-in-sparse-area\n"
    )


def test_json_has_integers_plain_and_as_text() -> None:
    layout = make(sparse((0, 0x1000)), msix=MsixPlace(table=(0x2000, 16)))
    (found,) = json.loads(layouts_to_json([layout]))
    assert found["device"] == "0000:01:00.0"
    assert found["flags"] == ["read", "write", "mmap"]
    assert (found["size"], found["size_hex"]) == (0x10000, "0x10000")
    place = {"offset": 0x2000, "offset_hex": "0x2000", "size": 16, "size_hex": "0x10"}
    assert found["msix"] == {"table": place}
    assert found["segments"][0] == {
        "start": 0,
        "start_hex": "0x0",
        "end": 0x1000,
        "end_hex": "0x1000",
        "size": 0x1000,
        "size_hex": "0x1000",
        "access": "mmap",
        "perm": "rw",
        "width": 8,
        "reason": "-",
    }


def test_no_sparse_capability_is_one_window() -> None:
    assert rows(make(RegionInfo(0, READ_WRITE_MMAP, 0x4000, 0))) == [(0, 0x4000, "mmap", "-")]


def test_no_areas_means_nothing_is_mappable() -> None:
    assert rows(make(sparse())) == [(0, 0x10000, "pread", "not-in-sparse-area")]


def test_without_the_mmap_flag_areas_do_not_count() -> None:
    info = RegionInfo(0, READ | WRITE, 0x4000, 0, areas=(SparseArea(0, 0x1000),))
    assert rows(make(info)) == [(0, 0x4000, "pread", "no-mmap-flag")]


def test_adjacent_areas_are_windows_of_their_own_and_shown_as_one() -> None:
    areas = ((0x2000, 0x4000), (0x1000, 0x2000), (0x2000, 0x2000))
    windows = [(0x1000, 0x2000, "mmap", "-"), (0x2000, 0x4000, "mmap", "-")]
    assert rows(planned(sparse(*areas)))[1:3] == windows
    assert (0x1000, 0x4000, "mmap", "-") in rows(make(sparse(*areas)))


def test_adjacent_areas_shrink_each_by_itself() -> None:
    assert rows(make(sparse((0x1000, 0x2800), (0x2800, 0x4000), size=0x4000))) == [
        (0, 0x1000, "pread", "not-in-sparse-area"),
        (0x1000, 0x2000, "mmap", "-"),
        (0x2000, 0x3000, "pread", "sub-page"),
        (0x3000, 0x4000, "mmap", "-"),
    ]


def test_two_halves_of_a_page_are_no_window() -> None:
    layout = make(sparse((0x1000, 0x1800), (0x1800, 0x2000)))
    assert (0x1000, 0x2000, "pread", "sub-page") in rows(layout)
    assert not layout.windows


def test_a_carved_area_leaves_a_window_on_each_side() -> None:
    place = MsixPlace(table=(0x2000, 0x1000))
    assert rows(make(sparse((0x1000, 0x4000), (0x4000, 0x5000), size=0x5000), msix=place)) == [
        (0, 0x1000, "pread", "not-in-sparse-area"),
        (0x1000, 0x2000, "mmap", "-"),
        (0x2000, 0x3000, "pread", "msix-table"),
        (0x3000, 0x5000, "mmap", "-"),
    ]


def test_misaligned_area_shrinks_inward() -> None:
    assert rows(make(sparse((0x1800, 0x3800), size=0x8000))) == [
        (0, 0x1800, "pread", "not-in-sparse-area"),
        (0x1800, 0x2000, "pread", "sub-page"),
        (0x2000, 0x3000, "mmap", "-"),
        (0x3000, 0x3800, "pread", "sub-page"),
        (0x3800, 0x8000, "pread", "not-in-sparse-area"),
    ]


def test_area_smaller_than_a_page() -> None:
    layout = make(sparse((0x1100, 0x1200), size=0x4000))
    assert (0x1100, 0x1200, "pread", "sub-page") in rows(layout)
    assert not layout.windows


def test_bar_smaller_than_a_page_is_a_window_where_vfio_says_so() -> None:
    assert rows(make(RegionInfo(0, READ_WRITE_MMAP, 0x100, 0))) == [(0, 0x100, "mmap", "-")]


@pytest.mark.parametrize(
    "areas",
    [
        [(0, 0x1000), (0xF000, 0x11000)],
        [(0, 0x2000), (0x1000, 0x3000)],
        [(0x1000, 0x2000), (0x1000, 0x2000)],
        [(0x20000, 0x21000)],
    ],
    ids=["leaves the region", "overlap", "twice", "outside"],
)
def test_untrustworthy_areas_make_no_window(areas: list[tuple[int, int]]) -> None:
    assert rows(make(sparse(*areas))) == [(0, 0x10000, "pread", "bad-area")]


def test_area_that_wraps_around_64_bits() -> None:
    info = RegionInfo(0, READ_WRITE_MMAP, 0x10000, 0, areas=(SparseArea(0x1000, 2**64 - 0x800),))
    assert rows(make(info)) == [(0, 0x10000, "pread", "bad-area")]


def test_unreadable_chain_makes_no_window() -> None:
    info = RegionInfo(0, READ_WRITE_MMAP, 0x10000, 0, chain_error=CapabilityError("x"))
    assert rows(make(info)) == [(0, 0x10000, "pread", "bad-capability")]


def test_msix_is_mapped_only_where_the_kernel_says_so() -> None:
    place = MsixPlace(table=(0x2000, 0x410), pba=(0x3000, 8))
    info = RegionInfo(0, READ_WRITE_MMAP, 0x4000, 0)
    carved = [
        (0, 0x2000, "mmap", "-"),
        (0x2000, 0x3000, "pread", "msix-table"),
        (0x3000, 0x4000, "mmap", "-"),
    ]
    assert rows(make(info, msix=place)) == carved
    mappable = RegionInfo(0, READ_WRITE_MMAP, 0x4000, 0, msix_mappable=True)
    assert rows(make(mappable, msix=place)) == [(0, 0x4000, "mmap", "-")]
    assert rows(make(mappable, PlanOptions(msix="carve"), place)) == carved


def test_msix_table_that_straddles_pages_is_carved_by_its_edges() -> None:
    info = RegionInfo(0, READ_WRITE_MMAP, 0x8000, 0, msix_mappable=True)
    layout = make(info, PlanOptions(msix="carve"), MsixPlace(table=(0x1FF0, 0x20)))
    assert (0x1000, 0x3000, "pread", "msix-table") in rows(layout)


def test_mapping_off_keeps_the_other_reasons() -> None:
    assert rows(make(sparse((0x1000, 0x2000), size=0x4000), PlanOptions(mapping=False))) == [
        (0, 0x1000, "pread", "not-in-sparse-area"),
        (0x1000, 0x2000, "pread", "mapping-off"),
        (0x2000, 0x4000, "pread", "not-in-sparse-area"),
    ]


@pytest.mark.parametrize(
    ("flags", "options", "perm"),
    [
        (READ | WRITE | MMAP, PlanOptions(), "rw"),
        (READ | WRITE | MMAP, PlanOptions(read_only=True), "r-"),
        (READ | MMAP, PlanOptions(), "r-"),
        (WRITE, PlanOptions(), "-w"),
    ],
)
def test_permissions_in_force(flags: int, options: PlanOptions, perm: str) -> None:
    layout = make(RegionInfo(0, flags, 0x1000, 0), options)
    assert {segment.perm for segment in layout.segments} == {perm}
    assert (layout.readable, layout.writable) == ("r" in perm, "w" in perm)


def test_no_permission_is_no_access() -> None:
    layout = make(RegionInfo(0, WRITE | MMAP, 0x1000, 0), PlanOptions(read_only=True))
    assert [(row.access, row.perm) for row in layout.segments] == [("none", "--")]


def test_the_rom_is_never_writable() -> None:
    assert not make(RegionInfo(6, READ | WRITE, 0x1000, 0)).writable


@pytest.mark.parametrize(
    ("index", "port", "gap_width", "window", "gap"),
    [
        (0, False, 8, 8, 8),
        (0, False, 4, 8, 4),
        (4, True, 4, 4, 4),
        (4, True, 8, 4, 4),
        (4, False, 2, 8, 2),
        (6, False, 8, 4, 4),
        (6, False, 2, 4, 2),
        (7, False, 8, 4, 4),
    ],
)
def test_widest_accesses(index: int, port: bool, gap_width: int, window: int, gap: int) -> None:
    layout = plan(
        replace(sparse((0, PAGE), (PAGE, 2 * PAGE), size=3 * PAGE), index=index),
        device="x",
        options=PlanOptions(),
        page_size=PAGE,
        gap_width=gap_width,
        port=port,
    )
    assert [segment.width for segment in layout.segments] == [window, window, gap]
    failed = layout.with_failed_windows({PAGE: "mmap-failed:EINVAL"}, gap_width)
    assert [segment.width for segment in failed.segments] == [window, gap, gap]


def test_a_failed_window_is_pread_with_its_reason_and_its_neighbour_stays() -> None:
    layout = planned(sparse((0, 0x1000), (0x1000, 0x2000), (0x2000, 0x3000), size=0x4000))
    assert rows(layout.with_failed_windows({0x1000: "mmap-failed:ENODEV"}, 4).merged()) == [
        (0, 0x1000, "mmap", "-"),
        (0x1000, 0x2000, "pread", "mmap-failed:ENODEV"),
        (0x2000, 0x3000, "mmap", "-"),
        (0x3000, 0x4000, "pread", "not-in-sparse-area"),
    ]


def test_a_policy_in_force() -> None:
    layout = make(sparse((0, 0x1000), (0x2000, 0x3000), size=0x4000)).restricted(
        [Restriction(0x800, 0x1800, "ro"), Restriction(0x2000, 0x2010, "none")]
    )
    assert [(s.start, s.access, s.perm, s.width, s.reason) for s in layout.segments] == [
        (0, "mmap", "rw", 8, "-"),
        (0x800, "mmap", "r-", 8, "policy"),
        (0x1000, "pread", "r-", 4, "policy"),
        (0x1800, "pread", "rw", 4, "not-in-sparse-area"),
        (0x2000, "none", "--", 8, "policy"),
        (0x2010, "mmap", "rw", 8, "-"),
        (0x3000, "pread", "rw", 4, "not-in-sparse-area"),
    ]
    assert Layout.from_text(layout.to_text()) == layout


def test_a_policy_that_takes_nothing_away_is_not_the_reason() -> None:
    layout = make(sparse((0, 0x1000), size=0x1000), PlanOptions(read_only=True))
    assert layout.restricted([Restriction(0, 0x800, "ro")]) == layout


def test_a_width_of_3_is_refused() -> None:
    with pytest.raises(UsageError, match="1, 2, 4 or 8"):
        PlanOptions(width=3)


def test_a_region_of_size_0_has_no_layout() -> None:
    with pytest.raises(UsageError, match="does not exist"):
        make(RegionInfo(0, READ, 0, 0))


@pytest.mark.parametrize("text", ["", "hello\n", "# barfs layout v1: bar0 of x\nsize   0x10\n"])
def test_what_is_no_layout(text: str) -> None:
    with pytest.raises(LayoutError, match="not a barfs layout"):
        Layout.from_text(text)


def test_segments_must_cover() -> None:
    with pytest.raises(LayoutError, match="the ranges end at 0x10"):
        Layout("x", "bar0", 0x20, (), 4, None, (Segment(0, 0x10, "pread", "rw", 4),))


def test_msix_place_names_only_what_lies_in_the_bar() -> None:
    capability = MsixCapability(
        vectors=4, table_bar=0, table_offset=0x2000, pba_bar=2, pba_offset=0x100
    )
    assert MsixPlace.in_bar(capability, 0) == MsixPlace(table=(0x2000, 64))
    assert MsixPlace.in_bar(capability, 2) == MsixPlace(pba=(0x100, 8))
    assert MsixPlace.in_bar(capability, 1) is None
    assert MsixPlace.in_bar(None, 0) is None
