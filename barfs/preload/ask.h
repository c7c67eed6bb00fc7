/* SPDX-License-Identifier: MIT
 *
 * Asks a mount for the windows of a region.
 */
#ifndef BARFS_PRELOAD_ASK_H
#define BARFS_PRELOAD_ASK_H

#include "preload/protocol.h"

#pragma GCC visibility push(hidden)

struct barfs_descriptors {
    uint32_t count;
    int fd[BARFS_MAP_MOST_DESCRIPTORS]; /* the caller closes them */
};

/* Returns 0 and fills in a checked reply, or returns an errno: that of the reply, EPROTO for one
 * that is malformed, ETIMEDOUT, EPERM if the mount does not answer this user, ENXIO if the mount
 * has no socket, EHOSTUNREACH if it has one that cannot be reached from here.
 */
int barfs_ask(int root, uint64_t inode, struct barfs_map_reply *reply,
              struct barfs_descriptors *descriptors);

void barfs_descriptors_close(struct barfs_descriptors *descriptors);

#pragma GCC visibility pop
#endif
