/* SPDX-License-Identifier: MIT
 *
 * Counts the accesses of a device that are in flight, and closes the device to further ones.
 */
#ifndef BARFS_INFLIGHT_H
#define BARFS_INFLIGHT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

/* The count of transfers in flight and a closed flag share one word, so no interleaving of enter
 * and close can miss a transfer. */
struct barfs_inflight {
    atomic_uint state;
    unsigned forks; /* barfs_forks of the process that owns the device */
};

/* Every function of transfer.h enters and leaves by itself.  False if it may not enter. */
bool barfs_inflight_enter(struct barfs_inflight *inflight);

/* The reason that barfs_inflight_enter() failed: -ECHILD or -ENODEV. */
int barfs_inflight_error(const struct barfs_inflight *inflight);
void barfs_inflight_leave(struct barfs_inflight *inflight);

/* The number of transfers in flight. */
uint32_t barfs_inflight_inside(struct barfs_inflight *inflight);

bool barfs_inflight_closed(struct barfs_inflight *inflight);

/* Refuse all further transfers, permanently. */
void barfs_inflight_close(struct barfs_inflight *inflight);

/* Close, and wait for the transfers in flight.  False if one is still running after timeout_ns. */
bool barfs_inflight_drain(struct barfs_inflight *inflight, int64_t timeout_ns);

#pragma GCC visibility pop

#endif
