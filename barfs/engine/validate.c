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
    const struct barfs_table_entry *entry = barfs_entry_at(table, offset);

    if (table->flags & BARFS_PORT && count > MOST_OF_A_PORT)
        return false;
    return barfs_is_natural(offset, count) && entry->widths & count && count <= entry->end - offset;
}

/* Whether accesses of the entries' widths make up the request: they do if the narrowest do. */
static bool can_be_made(const struct barfs_table *table, uint64_t offset, uint64_t count,
                        uint64_t limit)
{
    const struct barfs_table_entry *entry = barfs_entry_at(table, offset);
    uint64_t end = offset + count;

    for (; offset < end; entry++) {
        uint32_t widths = barfs_widths_within(entry->widths, limit);
        uint64_t narrowest = widths & -widths;
        uint64_t part_end = barfs_min(entry->end, end);

        if (widths == 0 || ((offset | part_end) & (narrowest - 1)) != 0)
            return false;
        offset = part_end;
    }
    return true;
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

/* The number of bytes before the first access that touches a denied one.  That access may be any of
 * those which the entry takes there. */
static uint64_t permitted(const struct barfs_table *table, uint64_t offset, uint64_t count,
                          uint64_t limit, enum barfs_direction direction)
{
    const struct barfs_range *range = denied_from(table, offset, direction);
    const struct barfs_table_entry *entry;
    uint64_t end, widest;

    if (range == NULL || range->start >= offset + count)
        return count;
    if (range->start <= offset)
        return 0;
    entry = barfs_entry_at(table, range->start);
    widest = barfs_widest_of(barfs_widths_within(entry->widths, limit));
    end = range->start & ~(widest - 1);
    if (end < entry->start)
        end = entry->start;
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
    valid.limit = barfs_is_natural(offset, count) ? count : table->width;
    if (table->flags & BARFS_WIDTHS && !can_be_made(table, offset, count, valid.limit))
        return valid;
    valid.result = 0;
    valid.count = permitted(table, offset, count, valid.limit, direction);
    if (valid.count == 0)
        valid.result = -EPERM;
    return valid;
}
