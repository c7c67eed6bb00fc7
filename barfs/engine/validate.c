/* SPDX-License-Identifier: MIT */
#include "engine/validate.h"
#include "engine/common.h"

#include <errno.h>
#include <stddef.h>

static const uint64_t MOST_OF_A_PORT = 4;

const struct barfs_table_entry *barfs_entry_at(const struct barfs_table *table, uint64_t position)
{
    uint64_t low = 0, high = table->entry_count - 1;

    while (low < high) {
        uint64_t middle = low + (high - low) / 2;

        if (position < table->entries[middle].end)
            high = middle;
        else
            low = middle + 1;
    }
    return &table->entries[low];
}

bool barfs_is_one_access(const struct barfs_table *table, uint64_t offset, uint64_t count)
{
    return barfs_is_natural(offset, count) && count <= barfs_widest_access(table, offset);
}

uint32_t barfs_widest_access(const struct barfs_table *table, uint64_t offset)
{
    const struct barfs_table_entry *entry = barfs_entry_at(table, offset);
    uint64_t cap = entry->max_width;

    if (table->flags & BARFS_PORT)
        cap = barfs_min(cap, MOST_OF_A_PORT);
    return barfs_widest(offset, entry->end, cap);
}

/* The first denied range that ends after `offset`; NULL if none does. */
static const struct barfs_range *denied_from(const struct barfs_table *table, uint64_t offset,
                                             enum barfs_direction direction)
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

bool barfs_is_denied(const struct barfs_table *table, uint64_t offset, uint64_t count,
                     enum barfs_direction direction)
{
    const struct barfs_range *range = denied_from(table, offset, direction);

    return range != NULL && range->start < offset + count;
}

/* The number of bytes before the first access, `limit` wide at most, that touches a denied one. */
static uint64_t permitted(const struct barfs_table *table, uint64_t offset, uint64_t count,
                          uint64_t limit, enum barfs_direction direction)
{
    const struct barfs_range *range = denied_from(table, offset, direction);
    uint64_t end;

    if (range == NULL || range->start >= offset + count)
        return count;
    end = range->start & ~(limit - 1);
    return end > offset ? end - offset : 0;
}

struct barfs_validated barfs_validate(const struct barfs_table *table, uint64_t offset,
                                      uint64_t count, enum barfs_direction direction)
{
    struct barfs_validated valid = {.result = -EINVAL};
    bool beyond = offset >= table->size;
    bool guarded = table->flags & (unsigned)BARFS_GUARD_READS << direction;

    /* Before clipping: a port access that crosses the end is invalid, not short. */
    if (table->flags & BARFS_PORT && (beyond || !barfs_is_one_access(table, offset, count)))
        return valid;
    if (guarded && count != 0 && !barfs_is_natural(offset, count))
        return valid;
    if (count == 0 || beyond) {
        valid.result = count == 0 || direction == BARFS_READ ? 0 : -EFBIG;
        return valid;
    }
    count = barfs_min(count, table->size - offset);
    if (guarded && !barfs_is_one_access(table, offset, count))
        return valid;
    valid.result = 0;
    valid.limit = barfs_is_natural(offset, count) ? count : table->width;
    valid.count = permitted(table, offset, count, valid.limit, direction);
    if (valid.count == 0)
        valid.result = -EPERM;
    return valid;
}
