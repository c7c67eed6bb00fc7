/* SPDX-License-Identifier: MIT
 *
 * The accesses of a device that are under way, and the end of its accesses.
 */
#ifndef BARFS_INFLIGHT_H
#define BARFS_INFLIGHT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

/* Who is inside a device's tables, and whether anybody may still enter: a count in the low bits, and
 * a closed flag in the same word, so that no order of enter and close can miss anybody. */
struct barfs_inflight {
    atomic_uint state;
    unsigned forks; /* barfs_forks of the process whose device it is */
};

/* Every function of transfer.h enters and leaves by itself. */
bool barfs_inflight_enter(struct barfs_inflight *inflight);

/* Why it could not be entered: -ECHILD or -ENODEV. */
int barfs_inflight_error(const struct barfs_inflight *inflight);
void barfs_inflight_leave(struct barfs_inflight *inflight);

/* How many are inside now. */
uint32_t barfs_inflight_inside(struct barfs_inflight *inflight);

bool barfs_inflight_closed(struct barfs_inflight *inflight);

/* Refuse everybody from now on, for ever. */
void barfs_inflight_close(struct barfs_inflight *inflight);

/* Close, and wait until nobody is inside.  False: somebody still was after timeout_ns. */
bool barfs_inflight_drain(struct barfs_inflight *inflight, int64_t timeout_ns);

#pragma GCC visibility pop

#endif
