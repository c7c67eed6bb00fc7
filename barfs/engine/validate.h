/* SPDX-License-Identifier: MIT
 *
 * What of a request may be done, before anything is: pure arithmetic over a table (transfer.h).
 *
 * Rule 1: a request is clipped to the end of the region, then to what is not denied.  A denied byte is
 *         never touched, not by a part of an access either: what would touch one is left out whole.
 * Rule 2: denied ranges do not change how the rest is accessed: an access is as wide beside one as it
 *         would be without.
 */
#ifndef BARFS_VALIDATE_H
#define BARFS_VALIDATE_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/transfer.h"

#pragma GCC visibility push(hidden)

struct barfs_validated {
    uint64_t count; /* bytes to transfer; 0: none, and `refused` is the answer */
    uint64_t limit; /* of the width of an access */
    int64_t result; /* 0, or -errno */
};

struct barfs_validated barfs_validate(const struct barfs_table *table, uint64_t offset,
                                      uint64_t count, enum barfs_direction direction);

/* Whether any byte of the range, which is inside the region, is denied. */
bool barfs_is_denied(const struct barfs_table *table, uint64_t offset, uint64_t count,
                     enum barfs_direction direction);

/* The entry that `position`, which is inside the region, lies in. */
const struct barfs_table_entry *barfs_entry_at(const struct barfs_table *table, uint64_t position);

/* The widest single access that begins at `offset`, which is inside the region. */
uint32_t barfs_widest_access(const struct barfs_table *table, uint64_t offset);

/* Whether the place takes `count` bytes at `offset`, which is inside the region, as one access. */
bool barfs_is_one_access(const struct barfs_table *table, uint64_t offset, uint64_t count);

static inline bool barfs_is_natural(uint64_t offset, uint64_t count)
{
    return (count == 1 || count == 2 || count == 4 || count == 8) && offset % count == 0;
}

/* The widest access at `position` that is naturally aligned, ends by `end`, and is at most `cap`. */
static inline uint32_t barfs_widest(uint64_t position, uint64_t end, uint64_t cap)
{
    uint64_t width = cap;

    while ((position & (width - 1)) != 0 || width > end - position)
        width >>= 1;
    return (uint32_t)width;
}

#pragma GCC visibility pop

#endif
