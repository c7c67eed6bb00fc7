/* SPDX-License-Identifier: MIT */
#include "fuse/notify.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct barfs_notice {
    struct barfs_notice *next;
    size_t size;
    unsigned char message[];
};

int barfs_notices_init(struct barfs_notices *notices, int fd)
{
    int error;

    memset(notices, 0, sizeof *notices);
    notices->fd = fd;
    notices->last = &notices->first;
    error = pthread_mutex_init(&notices->lock, NULL);
    return error ? -error : -pthread_cond_init(&notices->wake, NULL);
}

void barfs_notices_destroy(struct barfs_notices *notices)
{
    while (notices->first) {
        struct barfs_notice *notice = notices->first;

        notices->first = notice->next;
        free(notice);
    }
    pthread_cond_destroy(&notices->wake);
    pthread_mutex_destroy(&notices->lock);
}

void barfs_notices_push(struct barfs_notices *notices, const void *message, size_t size)
{
    struct barfs_notice *notice = malloc(sizeof *notice + size);

    if (!notice)
        return;
    notice->next = NULL;
    notice->size = size;
    memcpy(notice->message, message, size);
    pthread_mutex_lock(&notices->lock);
    *notices->last = notice;
    notices->last = &notice->next;
    pthread_cond_signal(&notices->wake);
    pthread_mutex_unlock(&notices->lock);
}

void barfs_notices_run(struct barfs_notices *notices)
{
    pthread_mutex_lock(&notices->lock);
    while (!notices->stopping) {
        struct barfs_notice *notice = notices->first;

        if (!notice) {
            pthread_cond_wait(&notices->wake, &notices->lock);
            continue;
        }
        notices->first = notice->next;
        if (!notices->first)
            notices->last = &notices->first;
        pthread_mutex_unlock(&notices->lock);
        /* What the kernel does not know (ENOENT) it need not forget. */
        while (write(notices->fd, notice->message, notice->size) < 0 && errno == EINTR)
            ;
        free(notice);
        pthread_mutex_lock(&notices->lock);
    }
    pthread_mutex_unlock(&notices->lock);
}

void barfs_notices_stop(struct barfs_notices *notices)
{
    pthread_mutex_lock(&notices->lock);
    notices->stopping = true;
    pthread_cond_broadcast(&notices->wake);
    pthread_mutex_unlock(&notices->lock);
}
