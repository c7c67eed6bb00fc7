/* SPDX-License-Identifier: MIT
 *
 * Notifications on their way to the kernel, in a thread of their own.
 *
 * Rule 1: writing one may block on a directory lock whose holder waits for a reply, so whoever brings
 *         one never writes it.
 */
#ifndef BARFS_NOTICES_H
#define BARFS_NOTICES_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "guard.h"

struct barfs_notice;

struct barfs_notices {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct barfs_notice *first, **last;
    bool stopping;
};

/* 0, or -errno. */
BARFS_HIDDEN int barfs_notices_init(struct barfs_notices *notices);

/* Nobody is inside any of the other functions. */
BARFS_HIDDEN void barfs_notices_destroy(struct barfs_notices *notices);

/* Copy a message; without memory for it, the kernel finds out when its own time limit is over. */
BARFS_HIDDEN void barfs_notices_push(struct barfs_notices *notices, const void *message, size_t size);

/* The thread's function: write to `fd` what is pushed, until stopped. */
BARFS_HIDDEN void barfs_notices_run(struct barfs_notices *notices, int fd);
BARFS_HIDDEN void barfs_notices_stop(struct barfs_notices *notices);

#endif
