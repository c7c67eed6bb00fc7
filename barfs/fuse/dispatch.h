/* SPDX-License-Identifier: MIT
 *
 * Decides who answers a request: the engine on the reader's thread, a lane (workers.h), or libfuse.
 */
#ifndef BARFS_DISPATCH_H
#define BARFS_DISPATCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fuse/error_log.h"
#include "fuse/inodes.h"
#include "fuse/workers.h"

#pragma GCC visibility push(hidden)

struct barfs_dispatch {
    int fuse_fd, forward_fd;
    atomic_bool stopping;         /* give up a forward that was interrupted */
    atomic_bool abandoned;        /* drop the results of accesses */
    _Atomic uint64_t init_unique; /* of a FUSE_INIT that libfuse has not answered; 0: none */
    struct barfs_workers workers;
    struct barfs_inodes inodes;
    struct barfs_error_log errors;
};

/* Returns 0 or -errno. */
int barfs_dispatch_init(struct barfs_dispatch *dispatch, int fuse_fd, int forward_fd);

/* No thread may be inside any function. */
void barfs_dispatch_destroy(struct barfs_dispatch *dispatch);

/* Handle a message from fuse_fd, at least a header long.  Returns whether a lane took it. */
bool barfs_dispatch_request(struct barfs_dispatch *dispatch, struct barfs_request *request);

/* Pass on a reply of libfuse's, at least a header long, to the kernel. */
void barfs_dispatch_reply(struct barfs_dispatch *dispatch, unsigned char *message, size_t size);

#pragma GCC visibility pop

#endif
