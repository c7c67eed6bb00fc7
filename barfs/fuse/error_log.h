/* SPDX-License-Identifier: MIT
 *
 * Requests that were answered with an error, on their way to the log.
 *
 * Rule 1: whoever answers never waits for the log.  What cannot be kept is counted.
 * Rule 2: the first of a kind (a region, what was asked, the error) is told at once; those that follow
 *         are counted, and told together once a second.  A client that polls a dead register fills no
 *         disk.
 */
#ifndef BARFS_ERROR_LOG_H
#define BARFS_ERROR_LOG_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/transfer.h"

#pragma GCC visibility push(hidden)

enum { BARFS_ERROR_KINDS = 64 };

enum barfs_operation { BARFS_LOG_READ, BARFS_LOG_WRITE, BARFS_LOG_OPEN };

struct barfs_logged_error {
    const struct barfs_table *table; /* NULL: `more` of kinds for which there was no room */
    enum barfs_operation operation;
    int error;              /* an errno */
    uint64_t offset, count; /* of the first request */
    uint64_t more;          /* of the same kind, after it */
};

struct barfs_error_kind {
    struct barfs_logged_error first;
    uint64_t waiting; /* to be told */
    int64_t told_ns;  /* CLOCK_MONOTONIC; 0: never */
};

struct barfs_error_log {
    pthread_mutex_t lock; /* of all that follows */
    pthread_cond_t wake;
    bool stopping;
    uint64_t missed;
    struct barfs_error_kind kinds[BARFS_ERROR_KINDS];
};

/* 0, or -errno. */
int barfs_error_log_init(struct barfs_error_log *log);

/* No thread is inside any function. */
void barfs_error_log_destroy(struct barfs_error_log *log);

void barfs_error_log_push(struct barfs_error_log *log, const struct barfs_logged_error *logged);

/* Wait for the next to tell.  False once it is stopped and all is told. */
bool barfs_error_log_next(struct barfs_error_log *log, struct barfs_logged_error *logged);

void barfs_error_log_stop(struct barfs_error_log *log);

#pragma GCC visibility pop

#endif
