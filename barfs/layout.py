# SPDX-License-Identifier: MIT
"""The layout of a region: which parts are windows, which are gaps, and why.

Rule 1: pure. The driver's region info comes in, a `Layout` comes out; live mappings are elsewhere.
Rule 2: a layout covers `[0, size)` exactly: in order, without gap or overlap.
Rule 3: align edges, never sizes: round a window's start up and its *end* down to whole pages, and
        the other way round for a range that is taken out of it (the MSI-X table).
Rule 4: believe the driver's areas all or none. If one leaves the region or overlaps another, the
        region has no windows.
Rule 5: a window lies in one area. Areas that touch are separate windows, since a driver may refuse
        an mmap that leaves one (idxd's mediated devices do); only the text of a layout joins them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from barfs.errors import BarfsError, UsageError
from barfs.pci import CONFIG_INDEX, ROM_INDEX, MsixCapability, region_name
from barfs.ranges import (
    Range,
    align_down,
    align_up,
    check_cover,
    clip,
    first_overlap,
    merge,
    overlay,
)
from barfs.text import dump_json, with_hex
from barfs.widths import WIDTHS, AllowedWidths, Widths, cut_width

if TYPE_CHECKING:
    from barfs.policy import Restriction
    from barfs.uapi import RegionInfo

Access = Literal["mmap", "pread", "none"]
MsixMode = Literal["map", "carve"]

WINDOW_WIDTH = 8
NARROW_WIDTH = 4
"""The widest access of ROM, configuration space and I/O ports, and of gaps in kernel VFIO."""

REASON_NONE = "-"
REASON_NOT_IN_AREA = "not-in-sparse-area"
REASON_NO_MMAP_FLAG = "no-mmap-flag"
REASON_SUB_PAGE = "sub-page"
REASON_MSIX_TABLE = "msix-table"
REASON_BAD_CAPABILITY = "bad-capability"
REASON_BAD_AREA = "bad-area"
REASON_MAPPING_OFF = "mapping-off"
REASON_MMAP_FAILED = "mmap-failed"
REASON_NO_DESCRIPTOR: Final = "no-descriptor"
REASON_BAD_DESCRIPTOR: Final = "bad-descriptor"
REASON_DESCRIPTORS_DIFFER: Final = "descriptors-differ"
REASON_POLICY = "policy"
REASON_WIDTHS = "widths"


class LayoutError(BarfsError):
    """A text that is not a layout, or segments that do not cover their region."""


@dataclass(frozen=True, slots=True)
class Segment(Range):
    """A range of a region that is accessed in one way.

    `perm` is what is in force ("rw", "r-", "-w", "--"); `width` is the widest single access.
    `allowed` are the widths that the user allows, the narrowest first: those up to `width` are in
    force.
    """

    access: Access
    perm: str
    width: int
    reason: str = REASON_NONE
    allowed: Widths = WIDTHS

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of single accesses; none where the place takes none that is allowed."""
        return tuple(width for width in self.allowed if width <= self.width)

    def cut(self, width: int) -> int:
        """The width into which requests are cut here, in a file of that `width`."""
        return cut_width(self.widths or (self.width,), width)

    @property
    def readable(self) -> bool:
        return self.perm[0] == "r"

    @property
    def writable(self) -> bool:
        return self.perm[1] == "w"


@dataclass(frozen=True, slots=True)
class MsixPlace:
    """The parts of MSI-X that lie in one region: (offset, size) in bytes, or None."""

    table: tuple[int, int] | None = None
    pba: tuple[int, int] | None = None

    @classmethod
    def in_bar(cls, capability: MsixCapability | None, index: int) -> MsixPlace | None:
        """The parts of the capability that lie in BAR `index`; None if there is none."""
        if capability is None:
            return None
        place = cls(
            table=(capability.table_offset, capability.table_size)
            if capability.table_bar == index
            else None,
            pba=(capability.pba_offset, capability.pba_size)
            if capability.pba_bar == index
            else None,
        )
        return place if place.table or place.pba else None


@dataclass(frozen=True, slots=True)
class Layout:
    """A region as the user sees it. `width` is the file's width: how longer requests are cut.

    >>> import barfs
    >>> with barfs.open("demo") as device:
    ...     layout = device["bar0"].layout
    >>> [f"{window.start:#x}-{window.end:#x}" for window in layout.windows]
    ['0x1000-0x2000', '0x3000-0x4000']
    >>> layout.segments[0].reason
    'not-in-sparse-area'
    >>> Layout.from_text(layout.to_text()) == layout
    True
    """

    device: str
    region: str
    size: int
    flags: tuple[str, ...]
    width: int
    msix: MsixPlace | None
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        try:
            check_cover(self.segments, self.size)
        except ValueError as error:
            raise LayoutError(f"{self.region}: {error}") from None

    @property
    def windows(self) -> tuple[Segment, ...]:
        return tuple(segment for segment in self.segments if segment.access == "mmap")

    @property
    def readable(self) -> bool:
        return any(segment.readable for segment in self.segments)

    @property
    def writable(self) -> bool:
        return any(segment.writable for segment in self.segments)

    def with_failed_windows(self, failed: Mapping[int, str], gap_width: int) -> Layout:
        """The layout in which the windows that start at the keys of `failed` are `pread`.

        The values are the reasons. `gap_width` is the widest access outside windows, as in `plan`.
        """
        return replace(
            self,
            segments=tuple(
                replace(
                    segment,
                    access="pread",
                    width=min(gap_width, segment.width),
                    reason=failed[segment.start],
                )
                if segment.access == "mmap" and segment.start in failed
                else segment
                for segment in self.segments
            ),
        )

    def merged(self) -> Layout:
        """The layout as users see it: neighbours that are accessed alike are one segment."""
        return replace(self, segments=tuple(merge(self.segments)))

    def restricted(self, restrictions: Sequence[Restriction]) -> Layout:
        """The layout with a policy in force: `restrictions` in order, without overlap."""
        restricted = (
            _under_policy(part, restriction.permission)
            for restriction in restrictions
            for part in clip(self.segments, restriction)
        )
        segments = merge(overlay(itertools.chain(self.segments, restricted)))
        return replace(self, segments=tuple(segments))

    def with_widths(self, widths: Sequence[AllowedWidths]) -> Layout:
        """The layout with widths in force: ranges in order, without overlap.

        The file's width becomes one that most of its bytes take.
        """
        if not widths:
            return self
        limited = (
            _under_widths(part, allowed.widths)
            for allowed in widths
            for part in clip(self.segments, allowed)
        )
        segments = overlay(itertools.chain(self.segments, limited))
        sizes: dict[Widths, int] = {}
        for one in segments:
            sizes[one.allowed] = sizes.get(one.allowed, 0) + one.size
        _size, most = max((size, allowed) for allowed, size in sizes.items())
        width = cut_width(most, self.width)
        return replace(self, width=width, segments=tuple(segments))

    @property
    def widths(self) -> list[AllowedWidths]:
        """The ranges in which not all widths are allowed; neighbours that agree are one."""
        allowed = (AllowedWidths(one.start, one.end, one.allowed) for one in self.segments)
        return merge(one for one in allowed if one.widths != WIDTHS)

    def to_text(self) -> str:
        """The text of `barN.layout` (format: `barfs layout v1`)."""
        lines = [
            f"# barfs layout v1: {self.region} of {self.device}",
            f"size   {self.size:#x}",
            f"flags  {' '.join(self.flags) or '-'}",
            f"width  {self.width}",
        ]
        if self.msix is not None:
            parts = (("table", self.msix.table), ("pba", self.msix.pba))
            named = [f"{name}={at[0]:#x}+{at[1]:#x}" for name, at in parts if at is not None]
            lines.append(f"msix   {' '.join(named)}")
        if self.widths:
            lines.append(f"widths {' '.join(self._widths_in_words())}")
        digits = max(8, len(f"{self.size:x}"))
        columns = [f"{name:<{digits + 2}}" for name in ("# start", "end", "size")]
        lines.append(f"{' '.join(columns)} access perm width reason")
        for segment in self.segments:
            numbers = (segment.start, segment.end, segment.size)
            ranges = " ".join(f"0x{number:0{digits}x}" for number in numbers)
            lines.append(
                f"{ranges} {segment.access:<6} {segment.perm:<4} {segment.width:<5} "
                f"{segment.reason}"
            )
        return "\n".join(lines) + "\n"

    def _widths_in_words(self) -> Iterator[str]:
        for part in self.widths:
            words = ":".join(map(str, part.widths))
            whole = part.size == self.size
            yield words if whole else f"{part.start:#x}+{part.size:#x}={words}"

    @classmethod
    def from_text(cls, text: str) -> Layout:
        """Read what `to_text` wrote. Raises LayoutError when the text is no layout."""
        try:
            return _parse_text(text)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise LayoutError(f"not a barfs layout: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """The object that `barfs layout --json` prints a list of; plain integers, bytes, and each
        once more as hexadecimal text."""
        msix = None
        if self.msix is not None:
            parts = (("table", self.msix.table), ("pba", self.msix.pba))
            msix = {
                name: with_hex(offset=at[0], size=at[1]) for name, at in parts if at is not None
            }
        return {
            "device": self.device,
            "region": self.region,
            **with_hex(size=self.size),
            "flags": list(self.flags),
            "width": self.width,
            "msix": msix,
            "widths": [
                with_hex(start=part.start, end=part.end, size=part.size)
                | {"widths": list(part.widths)}
                for part in self.widths
            ],
            "segments": [
                {
                    **with_hex(start=segment.start, end=segment.end, size=segment.size),
                    "access": segment.access,
                    "perm": segment.perm,
                    "width": segment.width,
                    "reason": segment.reason,
                }
                for segment in self.segments
            ],
        }


def _under_policy(segment: Segment, permission: Literal["ro", "none"]) -> Segment:
    """The segment as the policy leaves it; unchanged if the policy takes nothing away."""
    perm = "--" if permission == "none" else segment.perm[0] + "-"
    if perm == segment.perm:
        return segment
    access: Access = "none" if perm == "--" else segment.access
    return replace(segment, access=access, perm=perm, reason=REASON_POLICY)


def _under_widths(segment: Segment, allowed: Widths) -> Segment:
    """The segment with these widths allowed, of which it may take none."""
    widths = [width for width in allowed if width <= segment.width]
    if widths:
        return replace(segment, width=max(widths), allowed=allowed)
    return replace(segment, access="none", perm="--", reason=REASON_WIDTHS, allowed=allowed)


def layouts_to_json(layouts: Iterable[Layout]) -> str:
    """Layouts as a JSON list, indented, with a final newline."""
    return dump_json([layout.to_json() for layout in layouts], indent=2)


_ACCESS: dict[str, Access] = {"mmap": "mmap", "pread": "pread", "none": "none"}
_PERMS = ("rw", "r-", "-w", "--")
_HEAD = re.compile(r"# barfs layout v1: (\S+) of (\S+)")
_MSIX = re.compile(r"(table|pba)=(0x[0-9a-f]+)\+(0x[0-9a-f]+)")
_ALLOWED = re.compile(r"(?:(0x[0-9a-f]+)\+(0x[0-9a-f]+)=)?([1248](?::[248])*)")


def _parse_text(text: str) -> Layout:
    lines = text.split("\n")
    head = _HEAD.fullmatch(lines[0])
    if head is None:
        raise ValueError(f"first line is {lines[0]!r}")
    fields = dict(line.split(maxsplit=1) for line in lines[1:] if line[:1].isalpha())
    msix = None
    if "msix" in fields:
        found = {
            match[1]: (int(match[2], 16), int(match[3], 16))
            for match in _MSIX.finditer(fields["msix"])
        }
        msix = MsixPlace(table=found.get("table"), pba=found.get("pba"))
    segments = []
    for line in lines[1:]:
        if line.startswith("0x"):
            start, end, _size, access, perm, width, reason = line.split()
            if perm not in _PERMS or int(width) not in WIDTHS:
                raise ValueError(f"{line[:100]!r} is not a segment")
            segments.append(
                Segment(int(start, 16), int(end, 16), _ACCESS[access], perm, int(width), reason)
            )
    size = int(fields["size"], 16)
    segments = _with_allowed(segments, fields.get("widths", ""), size)
    if int(fields["width"]) not in WIDTHS:
        raise ValueError(f"width must be 1, 2, 4 or 8 bytes, not {fields['width'][:20]}")
    flags = fields["flags"].split()
    return Layout(
        device=head[2],
        region=head[1],
        size=size,
        flags=() if flags == ["-"] else tuple(flags),
        width=int(fields["width"]),
        msix=msix,
        segments=tuple(segments),
    )


def _with_allowed(segments: list[Segment], words: str, size: int) -> list[Segment]:
    """The segments with the widths that the line `widths` of a layout has for them."""
    found = []
    for word in words.split():
        match = _ALLOWED.fullmatch(word)
        if match is None:
            raise ValueError(f"{word[:100]!r} are not widths")
        start = int(match[1] or "0", 16)
        end = start + int(match[2], 16) if match[2] else size
        allowed = tuple(map(int, match[3].split(":")))
        found += [replace(part, allowed=allowed) for part in clip(segments, Range(start, end))]
    return overlay([*segments, *found])


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """The user's options for the layouts of a device.

    `width` is the file's width in bytes (1, 2, 4, 8); `mapping` False leaves everything to pread.
    """

    width: int = 4
    mapping: bool = True
    msix: MsixMode = "map"
    read_only: bool = False

    def __post_init__(self) -> None:
        if self.width not in WIDTHS:
            raise UsageError(f"width must be 1, 2, 4 or 8 bytes, not {self.width}")


@dataclass(frozen=True, slots=True)
class _Piece(Range):
    """A part of a region with the reason why it is no window; `REASON_NONE`: it is one."""

    reason: str


def plan(
    info: RegionInfo,
    *,
    device: str,
    options: PlanOptions,
    page_size: int,
    gap_width: int,
    port: bool = False,
    msix: MsixPlace | None = None,
) -> Layout:
    """Decide how each byte of a region is accessed, before anything is mapped.

    `gap_width` is the widest access that gaps of memory take, `port` says that the region is a BAR
    of I/O ports, `msix` what MSI-X keeps here. Each window of the result is one mmap; `merged`
    joins those that touch. Raises UsageError for a size of 0.
    """
    if info.size <= 0:
        raise UsageError(f"{region_name(info.index)} of {device} does not exist")
    narrow = port or info.index in (ROM_INDEX, CONFIG_INDEX)
    widest = NARROW_WIDTH if narrow else WINDOW_WIDTH
    readable = info.readable
    writable = info.writable and not options.read_only and info.index != ROM_INDEX
    perm = ("r" if readable else "-") + ("w" if writable else "-")
    pieces = _partition(info, page_size)
    table = msix.table if msix is not None else None
    if table is not None and (options.msix == "carve" or not info.msix_mappable):
        pieces = _carve(pieces, table, page_size)
    segments: list[Segment] = []
    for piece in pieces:
        access: Access = "none" if perm == "--" else "pread"
        width, reason = min(gap_width, widest), piece.reason
        if piece.reason == REASON_NONE and not options.mapping:
            reason = REASON_MAPPING_OFF
        elif piece.reason == REASON_NONE and access == "pread":
            access, width = "mmap", widest
        segments.append(Segment(piece.start, piece.end, access, perm, width, reason))
    return Layout(
        device=device,
        region=region_name(info.index),
        size=info.size,
        flags=info.flag_names,
        width=options.width,
        msix=msix,
        segments=tuple(segments),
    )


def _partition(info: RegionInfo, page_size: int) -> list[_Piece]:
    """Windows and gaps of the region, before MSI-X and the user's choices."""
    whole = _Piece(0, info.size, REASON_NOT_IN_AREA)
    if info.chain_error is not None:
        return [replace(whole, reason=REASON_BAD_CAPABILITY)]
    if not info.mappable:
        return [replace(whole, reason=REASON_NO_MMAP_FLAG)]
    areas: list[Range] = [whole]
    if info.areas is not None:
        areas = [area.range for area in info.areas if area.size]
    if any(area.end > info.size for area in areas) or first_overlap(areas):
        return [replace(whole, reason=REASON_BAD_AREA)]
    layers = [whole]
    for area in areas:
        layers.append(_Piece(area.start, area.end, REASON_SUB_PAGE))
        layers.append(_window(area, info.size, page_size))
    return overlay(layers)


def _window(area: Range, region_size: int, page_size: int) -> _Piece:
    """The whole pages of an area; empty where it has none.

    The region's own end counts as the edge of a page: VFIO offers a BAR smaller than a page for
    mapping only where it could reserve the rest of that page (`vfio_pci_probe_mmaps`).
    """
    start = align_up(area.start, page_size)
    end = area.end if area.end == region_size else align_down(area.end, page_size)
    return _Piece(start, max(start, end), REASON_NONE)


def _carve(pieces: list[_Piece], table: tuple[int, int], page_size: int) -> list[_Piece]:
    """Take the pages of the MSI-X table out of the windows."""
    offset, size = table
    pages = Range(align_down(offset, page_size), align_up(offset + size, page_size))
    windows = [piece for piece in pieces if piece.reason == REASON_NONE]
    carved = (replace(part, reason=REASON_MSIX_TABLE) for part in clip(windows, pages))
    return overlay(itertools.chain(pieces, carved))
