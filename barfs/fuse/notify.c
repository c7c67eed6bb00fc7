/* SPDX-License-Identifier: MIT */
#include "fuse/notify.h"
#include "engine/common.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct barfs_notification {
    STAILQ_ENTRY(barfs_notification) next;
    size_t size;
    unsigned char message[];
};

int barfs_notify_init(struct barfs_notify *notify, int fd)
{
    int error;

    memset(notify, 0, sizeof *notify);
    notify->fd = fd;
    STAILQ_INIT(&notify->waiting);
    error = -pthread_mutex_init(&notify->lock, NULL);
    if (error)
        return error;
    error = barfs_cond_init(&notify->wake);
    if (error)
        pthread_mutex_destroy(&notify->lock);
    return error;
}

void barfs_notify_destroy(struct barfs_notify *notify)
{
    struct barfs_notification *notification;

    while ((notification = STAILQ_FIRST(&notify->waiting)) != NULL) {
        STAILQ_REMOVE_HEAD(&notify->waiting, next);
        free(notification);
    }
    pthread_cond_destroy(&notify->wake);
    pthread_mutex_destroy(&notify->lock);
}

void barfs_notify_push(struct barfs_notify *notify, const void *message, size_t size)
{
    struct barfs_notification *notification = malloc(sizeof *notification + size);

    if (!notification)
        return;
    notification->size = size;
    memcpy(notification->message, message, size);
    pthread_mutex_lock(&notify->lock);
    STAILQ_INSERT_TAIL(&notify->waiting, notification, next);
    pthread_cond_signal(&notify->wake);
    pthread_mutex_unlock(&notify->lock);
}

void barfs_notify_run(struct barfs_notify *notify)
{
    pthread_mutex_lock(&notify->lock);
    while (!notify->stopping) {
        struct barfs_notification *notification = STAILQ_FIRST(&notify->waiting);

        if (!notification) {
            pthread_cond_wait(&notify->wake, &notify->lock);
            continue;
        }
        STAILQ_REMOVE_HEAD(&notify->waiting, next);
        pthread_mutex_unlock(&notify->lock);
        /* ENOENT: the kernel has nothing cached that it should forget. */
        while (write(notify->fd, notification->message, notification->size) < 0 && errno == EINTR)
            ;
        free(notification);
        pthread_mutex_lock(&notify->lock);
    }
    pthread_mutex_unlock(&notify->lock);
}

void barfs_notify_stop(struct barfs_notify *notify)
{
    pthread_mutex_lock(&notify->lock);
    notify->stopping = true;
    pthread_cond_broadcast(&notify->wake);
    pthread_mutex_unlock(&notify->lock);
}
