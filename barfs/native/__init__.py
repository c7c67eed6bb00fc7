# SPDX-License-Identifier: MIT
"""The engine: requests over a region's segments become accesses of an exact width, in C.

Rule 1: all unsafe code of barfs is in this package; `binding` alone imports the built extension.
Rule 2: nothing outside accesses a mapping except through a `Table`.

`guard.h` says how a SIGBUS is survived, `transfer.h` how requests are cut and answered; the order
of taking things down is `occupancy.drain()`, `mapping.close()`, `reservation.close()`.
"""

from barfs.native.errnos import errno_of, error_from
from barfs.native.gate import DeviceGate, Gate
from barfs.native.guard import arm_guard
from barfs.native.mapping import PAGE_SIZE, Mapping, Reservation
from barfs.native.occupancy import Control, Occupancy, Turns
from barfs.native.ownership import Owner, keep_from_children
from barfs.native.segment import Call, Descriptor, Memory, Refused, Segment, Target
from barfs.native.table import Readable, Table, Writable
from barfs.native.trace import Trace

__all__ = [
    "PAGE_SIZE",
    "Call",
    "Control",
    "Descriptor",
    "DeviceGate",
    "Gate",
    "Mapping",
    "Memory",
    "Occupancy",
    "Owner",
    "Readable",
    "Refused",
    "Reservation",
    "Segment",
    "Table",
    "Target",
    "Trace",
    "Turns",
    "Writable",
    "arm_guard",
    "errno_of",
    "error_from",
    "keep_from_children",
]
