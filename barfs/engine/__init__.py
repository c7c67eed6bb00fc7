# SPDX-License-Identifier: MIT
"""The engine: requests over a region's segments become accesses of an exact width, in C.

Rule 1: all unsafe code of barfs is in this package; `binding` alone imports the built extension.
Rule 2: nothing outside accesses a mapping except through a `Table`.

`guard.h` says how a SIGBUS is survived, `transfer.h` how requests are cut and answered; the order
of taking things down is `occupancy.drain()`, `mapping.close()`, `reservation.close()`.
"""

from barfs.engine.inflight import Control, Occupancy, Turns
from barfs.engine.mapping import PAGE_SIZE, Mapping, Reservation
from barfs.engine.ownership import Owner, keep_from_children
from barfs.engine.sigbus import arm_guard
from barfs.engine.table import Readable, Table, Writable
from barfs.engine.table_entry import Call, Descriptor, Memory, Refused, TableEntry, Target
from barfs.engine.trace import Trace

__all__ = [
    "PAGE_SIZE",
    "Call",
    "Control",
    "Descriptor",
    "Mapping",
    "Memory",
    "Occupancy",
    "Owner",
    "Readable",
    "Refused",
    "Reservation",
    "Table",
    "TableEntry",
    "Target",
    "Trace",
    "Turns",
    "Writable",
    "arm_guard",
    "keep_from_children",
]
