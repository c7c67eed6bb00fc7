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
    atomic_bool stopping;         /* forwards no more */
    atomic_bool abandoned;        /* writes nothing more to fuse_fd */
    _Atomic uint64_t init_unique; /* of the FUSE_INIT that libfuse has yet to answer; 0: none */
    struct barfs_workers workers;
    struct barfs_inodes inodes;
    struct barfs_error_log errors;
};

/* 0, or -errno. */
int barfs_dispatch_init(struct barfs_dispatch *dispatch, int fuse_fd, int forward_fd);

/* No thread is inside any function. */
void barfs_dispatch_destroy(struct barfs_dispatch *dispatch);

/* A message from fuse_fd, at least a header long.  Returns whether a lane has taken the request. */
bool barfs_dispatch_request(struct barfs_dispatch *dispatch, struct barfs_request *request);

/* Hand the kernel a reply of libfuse's, at least a header long. */
void barfs_dispatch_reply(struct barfs_dispatch *dispatch, unsigned char *message, size_t size);

#pragma GCC visibility pop

#endif
