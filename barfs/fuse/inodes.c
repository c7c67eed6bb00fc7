/* SPDX-License-Identifier: MIT */
#include "fuse/inodes.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

static _Atomic(struct barfs_chunk *) *chunk_of(struct barfs_nodes *nodes, uint64_t node_id)
{
    uint64_t index = node_id / BARFS_CHUNK_NODES;

    return index < BARFS_MOST_CHUNKS ? &nodes->chunks[index] : NULL;
}

struct barfs_node *barfs_nodes_find(struct barfs_nodes *nodes, uint64_t node_id)
{
    _Atomic(struct barfs_chunk *) *place = chunk_of(nodes, node_id);
    struct barfs_chunk *chunk;

    if (!place)
        return NULL;
    chunk = atomic_load_explicit(place, memory_order_acquire);
    if (!chunk)
        return NULL;
    return atomic_load_explicit(&chunk->nodes[node_id % BARFS_CHUNK_NODES], memory_order_acquire);
}

int barfs_nodes_add(struct barfs_nodes *nodes, uint64_t node_id, const struct barfs_table *table,
                    uint32_t permission, struct barfs_lanes *lanes)
{
    _Atomic(struct barfs_chunk *) *place = chunk_of(nodes, node_id);
    struct barfs_chunk *chunk;
    struct barfs_node *node;

    if (!place)
        return -ENOSPC;
    chunk = atomic_load(place);
    if (!chunk) {
        chunk = calloc(1, sizeof *chunk);
        if (!chunk)
            return -ENOMEM;
        atomic_store(place, chunk);
    }
    if (atomic_load(&chunk->nodes[node_id % BARFS_CHUNK_NODES]))
        return -EEXIST;
    node = calloc(1, sizeof *node);
    if (!node)
        return -ENOMEM;
    node->table = table;
    node->permission = permission;
    node->lanes = lanes;
    atomic_store(&chunk->nodes[node_id % BARFS_CHUNK_NODES], node);
    return 0;
}

void barfs_nodes_clear(struct barfs_nodes *nodes)
{
    for (size_t i = 0; i < BARFS_MOST_CHUNKS; i++) {
        struct barfs_chunk *chunk = atomic_load(&nodes->chunks[i]);

        for (size_t j = 0; chunk && j < BARFS_CHUNK_NODES; j++)
            free(atomic_load(&chunk->nodes[j]));
        free(chunk);
        atomic_store(&nodes->chunks[i], NULL);
    }
}
