/* SPDX-License-Identifier: MIT */
#include "fuse/inodes.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

static _Atomic(struct barfs_inode_chunk *) *chunk_of(struct barfs_inodes *inodes, uint64_t node_id)
{
    uint64_t index = node_id / BARFS_CHUNK_INODES;

    return index < BARFS_MOST_CHUNKS ? &inodes->chunks[index] : NULL;
}

struct barfs_inode *barfs_inodes_find(struct barfs_inodes *inodes, uint64_t node_id)
{
    _Atomic(struct barfs_inode_chunk *) *place = chunk_of(inodes, node_id);
    struct barfs_inode_chunk *chunk;

    if (!place)
        return NULL;
    chunk = atomic_load_explicit(place, memory_order_acquire);
    if (!chunk)
        return NULL;
    return atomic_load_explicit(&chunk->inodes[node_id % BARFS_CHUNK_INODES], memory_order_acquire);
}

int barfs_inodes_add(struct barfs_inodes *inodes, uint64_t node_id, const struct barfs_table *table,
                     uint32_t permission, struct barfs_lanes *lanes)
{
    _Atomic(struct barfs_inode_chunk *) *place = chunk_of(inodes, node_id);
    struct barfs_inode_chunk *chunk;
    struct barfs_inode *inode;

    if (!place)
        return -ENOSPC;
    chunk = atomic_load(place);
    if (!chunk) {
        chunk = calloc(1, sizeof *chunk);
        if (!chunk)
            return -ENOMEM;
        atomic_store(place, chunk);
    }
    if (atomic_load(&chunk->inodes[node_id % BARFS_CHUNK_INODES]))
        return -EEXIST;
    inode = calloc(1, sizeof *inode);
    if (!inode)
        return -ENOMEM;
    inode->table = table;
    inode->permission = permission;
    inode->lanes = lanes;
    atomic_store(&chunk->inodes[node_id % BARFS_CHUNK_INODES], inode);
    return 0;
}

void barfs_inodes_clear(struct barfs_inodes *inodes)
{
    for (size_t i = 0; i < BARFS_MOST_CHUNKS; i++) {
        struct barfs_inode_chunk *chunk = atomic_load(&inodes->chunks[i]);

        for (size_t j = 0; chunk && j < BARFS_CHUNK_INODES; j++)
            free(atomic_load(&chunk->inodes[j]));
        free(chunk);
        atomic_store(&inodes->chunks[i], NULL);
    }
}
