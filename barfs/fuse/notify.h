/* SPDX-License-Identifier: MIT
 *
 * Passes libfuse's notifications to the kernel from a thread of its own: a write may block on a
 * directory lock whose holder waits for a reply.
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
    int fd; /* /dev/fuse */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stopping;
    STAILQ_HEAD(, barfs_notification) waiting;
};

/* Returns 0 or -errno. */
int barfs_notify_init(struct barfs_notify *notify, int fd);

/* Discard unwritten notifications.  No thread may be inside barfs_notify_run(). */
void barfs_notify_destroy(struct barfs_notify *notify);

/* Queue a copy of a message.  If there is no memory for it, it is lost, and the kernel notices the
 * change when its cache times out. */
void barfs_notify_push(struct barfs_notify *notify, const void *message, size_t size);

/* The thread's function; returns once stopped. */
void barfs_notify_run(struct barfs_notify *notify);
void barfs_notify_stop(struct barfs_notify *notify);

#pragma GCC visibility pop

#endif
