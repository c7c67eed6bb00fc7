/* SPDX-License-Identifier: MIT
 *
 * Decides which part of a request is permitted before any of it is done: pure arithmetic over a
 * table (transfer.h).
 *
 * Rule 1: a request is clipped to the end of the region, then to the first denied byte.  No access
 *         touches a denied byte, not even with a part of itself: an access that would is left out.
 * Rule 2: denied ranges do not change how the rest is accessed: an access beside one is as wide as
 *         it would be without it.
 */
#ifndef BARFS_VALIDATE_H
#define BARFS_VALIDATE_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/transfer.h"

#pragma GCC visibility push(hidden)

struct barfs_validated {
    uint64_t count; /* bytes to transfer; 0: none, and `result` is the answer */
    uint64_t limit; /* of the width of an access */
    int64_t result; /* 0 or -errno */
};

struct barfs_validated barfs_validate(const struct barfs_table *table, uint64_t offset,
                                      uint64_t count, enum barfs_direction direction);

/* Whether a byte of the range is denied.  The range is inside the region. */
bool barfs_is_denied(const struct barfs_table *table, uint64_t offset, uint64_t count,
                     enum barfs_direction direction);

/* The entry that contains `position`, an offset inside the region. */
const struct barfs_table_entry *barfs_entry_at(const struct barfs_table *table, uint64_t position);

/* The widest single access at `offset`, which is inside the region. */
uint32_t barfs_widest_access(const struct barfs_table *table, uint64_t offset);

/* Whether `count` bytes at `offset`, which is inside the region, can be one access. */
bool barfs_is_one_access(const struct barfs_table *table, uint64_t offset, uint64_t count);

static inline bool barfs_is_natural(uint64_t offset, uint64_t count)
{
    return (count == 1 || count == 2 || count == 4 || count == 8) && offset % count == 0;
}

/* The widest naturally aligned access at `position` that ends by `end` and is at most `cap`. */
static inline uint32_t barfs_widest(uint64_t position, uint64_t end, uint64_t cap)
{
    uint64_t width = cap;

    while ((position & (width - 1)) != 0 || width > end - position)
        width >>= 1;
    return (uint32_t)width;
}

#pragma GCC visibility pop

#endif
