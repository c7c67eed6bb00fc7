/* SPDX-License-Identifier: MIT */
#include "fuse/error_log.h"

#include <stddef.h>
#include <string.h>
#include <time.h>

#include "fuse/workers.h"

static const int64_t BETWEEN_NS = 1000000000;

int barfs_refusals_init(struct barfs_refusals *refusals)
{
    int error;

    memset(refusals, 0, sizeof *refusals);
    error = -pthread_mutex_init(&refusals->lock, NULL);
    return error ? error : barfs_init_condition(&refusals->wake);
}

void barfs_refusals_destroy(struct barfs_refusals *refusals)
{
    pthread_cond_destroy(&refusals->wake);
    pthread_mutex_destroy(&refusals->lock);
}

static bool same_kind(const struct barfs_refusal *a, const struct barfs_refusal *b)
{
    return a->table == b->table && a->what == b->what && a->error == b->error;
}

/* The place of its kind, or one whose kind has nothing to tell; NULL where there is none. */
static struct barfs_refusal_kind *place_for(struct barfs_refusals *refusals,
                                            const struct barfs_refusal *refusal)
{
    struct barfs_refusal_kind *oldest = NULL;

    for (size_t i = 0; i < BARFS_REFUSAL_KINDS; i++) {
        struct barfs_refusal_kind *kind = &refusals->kinds[i];

        if (same_kind(&kind->refusal, refusal))
            return kind;
        if (kind->waiting == 0 && (oldest == NULL || kind->told_ns < oldest->told_ns))
            oldest = kind;
    }
    if (oldest)
        oldest->told_ns = 0;
    return oldest;
}

void barfs_refusals_push(struct barfs_refusals *refusals, const struct barfs_refusal *refusal)
{
    struct barfs_refusal_kind *kind;

    pthread_mutex_lock(&refusals->lock);
    kind = place_for(refusals, refusal);
    if (!kind)
        refusals->missed++;
    else if (kind->waiting++ == 0)
        kind->refusal = *refusal;
    pthread_cond_signal(&refusals->wake);
    pthread_mutex_unlock(&refusals->lock);
}

/* Whose turn it is.  NULL: nobody's before *until_ns (INT64_MAX: until something is pushed). */
static struct barfs_refusal_kind *due(struct barfs_refusals *refusals, int64_t now,
                                      int64_t *until_ns)
{
    *until_ns = INT64_MAX;
    for (size_t i = 0; i < BARFS_REFUSAL_KINDS; i++) {
        struct barfs_refusal_kind *kind = &refusals->kinds[i];
        int64_t at = kind->told_ns == 0 ? 0 : kind->told_ns + BETWEEN_NS;

        if (kind->waiting == 0)
            continue;
        if (at <= now || refusals->stopping)
            return kind;
        if (at < *until_ns)
            *until_ns = at;
    }
    return NULL;
}

static void tell(struct barfs_refusal_kind *kind, int64_t now, struct barfs_refusal *refusal)
{
    *refusal = kind->refusal;
    refusal->more = kind->waiting - 1;
    kind->waiting = 0;
    kind->told_ns = now;
}

bool barfs_refusals_next(struct barfs_refusals *refusals, struct barfs_refusal *refusal)
{
    bool found = true;

    pthread_mutex_lock(&refusals->lock);
    for (;;) {
        int64_t now = barfs_now_ns(), until;
        struct barfs_refusal_kind *kind = due(refusals, now, &until);

        if (kind) {
            tell(kind, now, refusal);
            break;
        }
        if (refusals->missed) {
            *refusal = (struct barfs_refusal){.more = refusals->missed};
            refusals->missed = 0;
            break;
        }
        if (refusals->stopping) {
            found = false;
            break;
        }
        if (until == INT64_MAX) {
            pthread_cond_wait(&refusals->wake, &refusals->lock);
        } else {
            struct timespec at = {.tv_sec = until / 1000000000, .tv_nsec = until % 1000000000};

            pthread_cond_timedwait(&refusals->wake, &refusals->lock, &at);
        }
    }
    pthread_mutex_unlock(&refusals->lock);
    return found;
}

void barfs_refusals_stop(struct barfs_refusals *refusals)
{
    pthread_mutex_lock(&refusals->lock);
    refusals->stopping = true;
    pthread_cond_signal(&refusals->wake);
    pthread_mutex_unlock(&refusals->lock);
}
