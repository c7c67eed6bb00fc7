/* SPDX-License-Identifier: MIT */
#include "fuse/error_log.h"
#include "engine/common.h"

#include <stddef.h>
#include <string.h>

static const int64_t BETWEEN_NS = BARFS_NS_PER_S;

int barfs_error_log_init(struct barfs_error_log *log)
{
    int error;

    memset(log, 0, sizeof *log);
    error = -pthread_mutex_init(&log->lock, NULL);
    if (error)
        return error;
    error = barfs_cond_init(&log->wake);
    if (error)
        pthread_mutex_destroy(&log->lock);
    return error;
}

void barfs_error_log_destroy(struct barfs_error_log *log)
{
    pthread_cond_destroy(&log->wake);
    pthread_mutex_destroy(&log->lock);
}

static bool same_kind(const struct barfs_logged_error *a, const struct barfs_logged_error *b)
{
    return a->table == b->table && a->operation == b->operation && a->error == b->error;
}

/* The slot of its kind, else the oldest slot without an error to report; NULL if there is none. */
static struct barfs_error_kind *place_for(struct barfs_error_log *log,
                                          const struct barfs_logged_error *logged)
{
    struct barfs_error_kind *oldest = NULL;

    for (size_t i = 0; i < BARFS_ERROR_KINDS; i++) {
        struct barfs_error_kind *kind = &log->kinds[i];

        if (same_kind(&kind->first, logged))
            return kind;
        if (kind->waiting == 0 && (oldest == NULL || kind->told_ns < oldest->told_ns))
            oldest = kind;
    }
    if (oldest)
        oldest->told_ns = 0;
    return oldest;
}

void barfs_error_log_push(struct barfs_error_log *log, const struct barfs_logged_error *logged)
{
    struct barfs_error_kind *kind;

    pthread_mutex_lock(&log->lock);
    kind = place_for(log, logged);
    if (!kind)
        log->missed++;
    else if (kind->waiting++ == 0)
        kind->first = *logged;
    pthread_cond_signal(&log->wake);
    pthread_mutex_unlock(&log->lock);
}

/* A kind that is due for a report.  NULL: none before *until_ns (INT64_MAX: none until a push). */
static struct barfs_error_kind *due(struct barfs_error_log *log, int64_t now, int64_t *until_ns)
{
    *until_ns = INT64_MAX;
    for (size_t i = 0; i < BARFS_ERROR_KINDS; i++) {
        struct barfs_error_kind *kind = &log->kinds[i];
        int64_t at = kind->told_ns == 0 ? 0 : kind->told_ns + BETWEEN_NS;

        if (kind->waiting == 0)
            continue;
        if (at <= now || log->stopping)
            return kind;
        if (at < *until_ns)
            *until_ns = at;
    }
    return NULL;
}

static void tell(struct barfs_error_kind *kind, int64_t now, struct barfs_logged_error *logged)
{
    *logged = kind->first;
    logged->more = kind->waiting - 1;
    kind->waiting = 0;
    kind->told_ns = now;
}

bool barfs_error_log_next(struct barfs_error_log *log, struct barfs_logged_error *logged)
{
    bool found = true;

    pthread_mutex_lock(&log->lock);
    for (;;) {
        int64_t now = barfs_now_ns(), until;
        struct barfs_error_kind *kind = due(log, now, &until);

        if (kind) {
            tell(kind, now, logged);
            break;
        }
        if (log->missed) {
            *logged = (struct barfs_logged_error){.more = log->missed};
            log->missed = 0;
            break;
        }
        if (log->stopping) {
            found = false;
            break;
        }
        if (until == INT64_MAX) {
            pthread_cond_wait(&log->wake, &log->lock);
        } else {
            struct timespec at = barfs_timespec(until);

            pthread_cond_timedwait(&log->wake, &log->lock, &at);
        }
    }
    pthread_mutex_unlock(&log->lock);
    return found;
}

void barfs_error_log_stop(struct barfs_error_log *log)
{
    pthread_mutex_lock(&log->lock);
    log->stopping = true;
    pthread_cond_signal(&log->wake);
    pthread_mutex_unlock(&log->lock);
}
