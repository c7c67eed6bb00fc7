/* SPDX-License-Identifier: MIT
 *
 * Decides which part of a request is permitted before any of it is done: pure arithmetic over a
 * table (transfer.h).
 *
 * Rule 1: a request is clipped to the end of the region, then to the first denied byte.  No access
 *         touches a denied byte, not even with a part of itself: an access that would is left out.
 * Rule 2: denied ranges do not change how the rest is accessed: an access beside one is as wide as
 *         it would be without it.
 * Rule 3: no access has a width that its entry lacks: a request that no others make up is refused.
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

/* Whether `count` bytes at `offset`, which is inside the region, can be one access. */
bool barfs_is_one_access(const struct barfs_table *table, uint64_t offset, uint64_t count);

static inline bool barfs_is_natural(uint64_t offset, uint64_t count)
{
    return (count == 1 || count == 2 || count == 4 || count == 8) && offset % count == 0;
}

/* Of an entry's widths, those that make up a request of this limit. */
static inline uint32_t barfs_widths_within(uint32_t widths, uint64_t limit)
{
    uint32_t within = widths & (uint32_t)(2 * limit - 1);

    return within != 0 ? within : widths & -widths;
}

/* The widest of `widths`, of which there is one. */
static inline uint32_t barfs_widest_of(uint32_t widths)
{
    return 1u << (31 - __builtin_clz(widths));
}

/* The widest naturally aligned access of `widths` at `position` that ends by `end`.  There is one:
 * barfs_validate() has seen to it that the narrowest fits. */
static inline uint32_t barfs_widest(uint64_t position, uint64_t end, uint32_t widths)
{
    uint32_t width = barfs_widest_of(widths);

    while ((widths & width) == 0 || (position & (width - 1)) != 0 || width > end - position)
        width >>= 1;
    return width;
}

#pragma GCC visibility pop

#endif
