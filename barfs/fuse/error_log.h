/* SPDX-License-Identifier: MIT
 *
 * Requests that were answered with an error, on their way to the log.
 *
 * Rule 1: a thread that answers requests never waits for the log.  Errors that find no room are
 * counted.
 * Rule 2: the first error of a kind (region, operation, errno) is reported at once; later ones are
 *         counted and reported together once a second, so a client that polls a dead register does
 *         not fill the disk.
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
    const struct barfs_table *table; /* NULL: `more` errors found no room */
    enum barfs_operation operation;
    int error;              /* errno */
    uint64_t offset, count; /* of the first request */
    uint64_t more;          /* of the same kind, after the first */
};

struct barfs_error_kind {
    struct barfs_logged_error first;
    uint64_t waiting; /* to be reported */
    int64_t told_ns;  /* CLOCK_MONOTONIC; 0: never reported */
};

struct barfs_error_log {
    pthread_mutex_t lock; /* of all members below */
    pthread_cond_t wake;
    bool stopping;
    uint64_t missed;
    struct barfs_error_kind kinds[BARFS_ERROR_KINDS];
};

/* Returns 0 or -errno. */
int barfs_error_log_init(struct barfs_error_log *log);

/* No thread may be inside any function. */
void barfs_error_log_destroy(struct barfs_error_log *log);

void barfs_error_log_push(struct barfs_error_log *log, const struct barfs_logged_error *logged);

/* Wait for the next error to report.  False once the log is stopped and everything is reported. */
bool barfs_error_log_next(struct barfs_error_log *log, struct barfs_logged_error *logged);

void barfs_error_log_stop(struct barfs_error_log *log);

#pragma GCC visibility pop

#endif
