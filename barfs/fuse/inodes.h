/* SPDX-License-Identifier: MIT
 *
 * The regions that the gate answers for, by FUSE node id.
 *
 * Rule 1: a node id is never used again, so an entry is never replaced, and never freed before the
 *         whole map is: whoever found one may keep it.
 * Rule 2: finding takes no lock.  Adding is for one thread at a time.
 */
#ifndef BARFS_NODES_H
#define BARFS_NODES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/transfer.h"
#include "fuse/workers.h"

enum { BARFS_CHUNK_NODES = 1024, BARFS_MOST_CHUNKS = 4096 };

struct barfs_node {
    const struct barfs_table *table;
    uint32_t permission; /* what an open may ask for */
    struct barfs_lanes *lanes;
    atomic_bool removed;
};

struct barfs_chunk {
    _Atomic(struct barfs_node *) nodes[BARFS_CHUNK_NODES];
};

struct barfs_nodes {
    _Atomic(struct barfs_chunk *) chunks[BARFS_MOST_CHUNKS];
};

/* NULL where the node id is no region's. */
BARFS_HIDDEN struct barfs_node *barfs_nodes_find(struct barfs_nodes *nodes, uint64_t node_id);

/* 0, or -errno: -ENOSPC for a node id above four millions, -EEXIST for one that was used. */
BARFS_HIDDEN int barfs_nodes_add(struct barfs_nodes *nodes, uint64_t node_id,
                                 const struct barfs_table *table, uint32_t permission,
                                 struct barfs_lanes *lanes);

/* Free all entries; nobody uses any of them. */
BARFS_HIDDEN void barfs_nodes_clear(struct barfs_nodes *nodes);

#endif
