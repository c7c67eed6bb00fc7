/* SPDX-License-Identifier: MIT */
#include "admission.h"

#include <errno.h>
#include <stddef.h>

static bool is_natural(uint64_t offset, uint64_t count)
{
    return barfs_is_width(count) && offset % count == 0;
}

/* The first denied range that ends behind `offset`; NULL where none does. */
static const struct barfs_range *denied_from(const struct barfs_table *table, uint64_t offset,
                                             int direction)
{
    const struct barfs_ranges *denied = &table->denied[direction];
    uint64_t low = 0, high = denied->count;

    while (low < high) {
        uint64_t middle = low + (high - low) / 2;

        if (offset < denied->ranges[middle].end)
            high = middle;
        else
            low = middle + 1;
    }
    return low < denied->count ? &denied->ranges[low] : NULL;
}

bool barfs_denied(const struct barfs_table *table, uint64_t offset, uint64_t count, int direction)
{
    const struct barfs_range *range = denied_from(table, offset, direction);

    return range != NULL && range->start < offset + count;
}

/* The bytes before the first access that touches a denied one, if `limit` is the widest. */
static uint64_t permitted(const struct barfs_table *table, uint64_t offset, uint64_t count,
                          uint64_t limit, int direction)
{
    const struct barfs_range *range = denied_from(table, offset, direction);
    uint64_t end;

    if (range == NULL || range->start >= offset + count)
        return count;
    end = range->start & ~(limit - 1);
    return end > offset ? end - offset : 0;
}

struct barfs_admission barfs_admit(const struct barfs_table *table, uint64_t offset, uint64_t count,
                                   int direction)
{
    struct barfs_admission admission = {0};
    bool beyond = offset >= table->size;

    /* Before clipping: a port access that crosses the end is wrong, not short. */
    if (table->flags & BARFS_PORT &&
        (!is_natural(offset, count) || count > 4 || beyond || count > table->size - offset)) {
        admission.refused = -EINVAL;
        return admission;
    }
    if (count == 0)
        return admission;
    if (table->flags & (unsigned)BARFS_GUARD_READS << direction && !is_natural(offset, count)) {
        admission.refused = -EINVAL;
        return admission;
    }
    if (beyond) {
        admission.refused = direction == BARFS_READ ? 0 : -EFBIG;
        return admission;
    }
    count = barfs_smaller(count, table->size - offset);
    admission.limit = is_natural(offset, count) ? count : table->width;
    admission.count = permitted(table, offset, count, admission.limit, direction);
    if (admission.count == 0)
        admission.refused = -EPERM;
    return admission;
}
