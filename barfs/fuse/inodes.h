/* SPDX-License-Identifier: MIT
 *
 * The regions that the gate answers for, by FUSE node id.
 *
 * Rule 1: node ids are never reused, so an entry is never replaced, and is freed only with the
 *         whole map: a pointer to an entry remains valid.
 * Rule 2: lookups take no lock.  Only one thread at a time may add.
 */
#ifndef BARFS_INODES_H
#define BARFS_INODES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/transfer.h"
#include "fuse/workers.h"

#pragma GCC visibility push(hidden)

enum { BARFS_CHUNK_INODES = 1024, BARFS_MOST_CHUNKS = 4096 };

struct barfs_inode {
    const struct barfs_table *table;
    uint32_t permission; /* limits opens */
    struct barfs_lanes *lanes;
    atomic_bool removed;
};

struct barfs_inode_chunk {
    _Atomic(struct barfs_inode *) inodes[BARFS_CHUNK_INODES];
};

struct barfs_inodes {
    _Atomic(struct barfs_inode_chunk *) chunks[BARFS_MOST_CHUNKS];
};

/* NULL if the node id is not a region's. */
struct barfs_inode *barfs_inodes_find(struct barfs_inodes *inodes, uint64_t node_id);

/* Returns 0 or -errno: -ENOSPC for a node id above 4 million, -EEXIST for one that was used. */
int barfs_inodes_add(struct barfs_inodes *inodes, uint64_t node_id, const struct barfs_table *table,
                     uint32_t permission, struct barfs_lanes *lanes);

/* Free all entries; no thread may use any of them. */
void barfs_inodes_clear(struct barfs_inodes *inodes);

#pragma GCC visibility pop

#endif
