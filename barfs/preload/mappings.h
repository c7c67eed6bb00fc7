/* SPDX-License-Identifier: MIT
 *
 * The mappings of regions in this process.
 *
 * Rule 1: all of this may run in a signal handler, also in one that interrupts it.
 * Rule 2: a `struct barfs_mapping` is used again but never freed, so the handler of faults may read
 *         the list without a lock.
 */
#ifndef BARFS_PRELOAD_MAPPINGS_H
#define BARFS_PRELOAD_MAPPINGS_H

#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "preload/ask.h"

#pragma GCC visibility push(hidden)

struct barfs_mapping {
    struct barfs_mapping *next;
    bool taken;
    _Atomic uintptr_t start, end; /* end is 0 when nothing is mapped */
    uintptr_t address; /* where `offset` in the region is, or was before it was unmapped */
    uint64_t offset;
    int protection; /* what the region's file was opened for */
    char path[PATH_MAX];
    struct barfs_descriptors descriptors; /* open only while it is made */
    struct barfs_map_reply reply;
};

/* One to fill in and publish or drop; NULL without memory. */
struct barfs_mapping *barfs_mapping_new(void);
void barfs_mapping_drop(struct barfs_mapping *mapping);

/* From now on it is found, at [start, end). */
void barfs_mapping_publish(struct barfs_mapping *mapping, uintptr_t start, uintptr_t end);

/* Any that has a page in [start, end), or NULL. */
struct barfs_mapping *barfs_mapping_find(uintptr_t start, uintptr_t end);

/* The program has unmapped [start, end), or mapped something else there. */
void barfs_mapping_forget(uintptr_t start, uintptr_t end);

#pragma GCC visibility pop
#endif
