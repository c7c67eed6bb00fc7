/* SPDX-License-Identifier: MIT
 *
 * The regions that the gate answers for, by FUSE node id.
 *
 * Rule 1: a node id is never used again, so an entry is never replaced, and never freed before the
 *         whole map is: whoever found one may keep it.
 * Rule 2: finding takes no lock.  Adding is for one thread at a time.
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
    uint32_t permission; /* what an open may ask for */
    struct barfs_lanes *lanes;
    atomic_bool removed;
};

struct barfs_inode_chunk {
    _Atomic(struct barfs_inode *) inodes[BARFS_CHUNK_INODES];
};

struct barfs_inodes {
    _Atomic(struct barfs_inode_chunk *) chunks[BARFS_MOST_CHUNKS];
};

/* NULL where the node id is no region's. */
struct barfs_inode *barfs_inodes_find(struct barfs_inodes *inodes, uint64_t node_id);

/* 0, or -errno: -ENOSPC for a node id above four millions, -EEXIST for one that was used. */
int barfs_inodes_add(struct barfs_inodes *inodes, uint64_t node_id, const struct barfs_table *table,
                     uint32_t permission, struct barfs_lanes *lanes);

/* Free all entries; nobody uses any of them. */
void barfs_inodes_clear(struct barfs_inodes *inodes);

#pragma GCC visibility pop

#endif
