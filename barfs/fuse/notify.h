/* SPDX-License-Identifier: MIT
 *
 * What libfuse tells the kernel of its own accord, on its way there in a thread of its own: writing it
 * may block on a directory lock whose holder waits for a reply.
 */
#ifndef BARFS_NOTIFY_H
#define BARFS_NOTIFY_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/queue.h>

#pragma GCC visibility push(hidden)

struct barfs_notification;

struct barfs_notify {
    int fd; /* to write them to */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stopping;
    STAILQ_HEAD(, barfs_notification) waiting;
};

/* 0, or -errno. */
int barfs_notify_init(struct barfs_notify *notify, int fd);

/* Free what was not written.  No thread is inside barfs_notify_run(). */
void barfs_notify_destroy(struct barfs_notify *notify);

/* Hand a message over; it is copied, and written in its turn.  Without memory for it, it is lost: the
 * kernel then finds out when its time limit is over. */
void barfs_notify_push(struct barfs_notify *notify, const void *message, size_t size);

/* The thread's function; returns once stopped. */
void barfs_notify_run(struct barfs_notify *notify);
void barfs_notify_stop(struct barfs_notify *notify);

#pragma GCC visibility pop

#endif
