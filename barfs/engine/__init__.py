# SPDX-License-Identifier: MIT
"""The engine: it turns requests on a region into accesses of an exact width, in C.

Rule 1: all unsafe code of barfs is in this package and the gate; `extension` alone imports the
        built extension.
Rule 2: code outside accesses a mapping through a `Table` only.

`sigbus.h` tells how an access survives a SIGBUS, `transfer.h` how requests are cut and answered.
Close things in this order: `in_flight.drain()`, `mapping.close()`, `reservation.close()`.
"""

from barfs.engine.exchange import Exchange, Exchanger, Places
from barfs.engine.inflight import Control, InFlight, Turns
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
    "Exchange",
    "Exchanger",
    "InFlight",
    "Mapping",
    "Memory",
    "Owner",
    "Places",
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
