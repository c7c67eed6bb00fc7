/* SPDX-License-Identifier: MIT
 *
 * What libfuse tells the kernel of its own accord, on its way there in a thread of its own: writing it
 * may block on a directory lock whose holder waits for a reply.
 */
#ifndef BARFS_NOTICES_H
#define BARFS_NOTICES_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "engine/sigbus.h"

struct barfs_notice;

struct barfs_notices {
    int fd; /* to write them to */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stopping;
    struct barfs_notice *first, **last;
};

/* 0, or -errno. */
BARFS_HIDDEN int barfs_notices_init(struct barfs_notices *notices, int fd);

/* Free what was not written.  No thread is inside barfs_notices_run(). */
BARFS_HIDDEN void barfs_notices_destroy(struct barfs_notices *notices);

/* Hand a message over; it is copied, and written in its turn.  Without memory for it, it is lost: the
 * kernel then finds out when its time limit is over. */
BARFS_HIDDEN void barfs_notices_push(struct barfs_notices *notices, const void *message,
                                     size_t size);

/* The thread's function; returns once stopped. */
BARFS_HIDDEN void barfs_notices_run(struct barfs_notices *notices);
BARFS_HIDDEN void barfs_notices_stop(struct barfs_notices *notices);

#endif
