/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "fuse/gate.h"
#include "engine/common.h"
#include "engine/sigbus.h"
#include "fuse/dispatch.h"
#include "fuse/notify.h"
#include "fuse/placement.h"

#include <errno.h>
#include <linux/fuse.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

/* Interrupts a read of /dev/fuse.  Ignored by default, so a stray one is harmless. */
static const int WAKE_SIGNAL = SIGURG;
static const int64_t WAKE_EVERY_NS = 5000000;

struct device {
    SLIST_ENTRY(device) next;
    struct barfs_lanes lanes;
};

struct barfs_gate {
    struct barfs_dispatch dispatch;
    atomic_bool reading; /* cleared under the lock: while set, the thread exists */
    pthread_t reader;
    SLIST_HEAD(, device) devices;
    struct barfs_notify notify;
    pthread_mutex_t lock; /* of `reading` */
};

/* ---- Devices and regions --------------------------------------------------------------------- */

struct barfs_gate *barfs_gate_new(int fuse_fd, int forward_fd)
{
    struct barfs_gate *gate = calloc(1, sizeof *gate);
    int error;

    if (!gate)
        return NULL;
    SLIST_INIT(&gate->devices);
    error = barfs_sigbus_install();
    if (error)
        goto free_gate;
    error = barfs_dispatch_init(&gate->dispatch, fuse_fd, forward_fd);
    if (error)
        goto free_gate;
    error = barfs_notify_init(&gate->notify, fuse_fd);
    if (error)
        goto destroy_dispatch;
    error = -pthread_mutex_init(&gate->lock, NULL);
    if (error)
        goto destroy_notify;
    return gate;

destroy_notify:
    barfs_notify_destroy(&gate->notify);
destroy_dispatch:
    barfs_dispatch_destroy(&gate->dispatch);
free_gate:
    free(gate);
    errno = -error;
    return NULL;
}

void barfs_gate_free(struct barfs_gate *gate)
{
    struct device *device;

    barfs_dispatch_destroy(&gate->dispatch);
    barfs_notify_destroy(&gate->notify);
    while ((device = SLIST_FIRST(&gate->devices)) != NULL) {
        SLIST_REMOVE_HEAD(&gate->devices, next);
        free(device);
    }
    pthread_mutex_destroy(&gate->lock);
    free(gate);
}

struct barfs_lanes *barfs_gate_add_device(struct barfs_gate *gate)
{
    struct device *device = calloc(1, sizeof *device);
    int error;

    if (!device)
        return NULL;
    error = barfs_lanes_init(&device->lanes, &gate->dispatch.workers);
    if (error) {
        free(device);
        errno = -error;
        return NULL;
    }
    SLIST_INSERT_HEAD(&gate->devices, device, next);
    return &device->lanes;
}

int barfs_gate_add_region(struct barfs_gate *gate, uint64_t node_id,
                          const struct barfs_table *table, uint32_t permission,
                          struct barfs_lanes *lanes)
{
    return barfs_inodes_add(&gate->dispatch.inodes, node_id, table, permission, lanes);
}

void barfs_gate_remove_region(struct barfs_gate *gate, uint64_t node_id)
{
    struct barfs_inode *inode = barfs_inodes_find(&gate->dispatch.inodes, node_id);

    if (inode)
        atomic_store(&inode->removed, true);
}

/* ---- Threads --------------------------------------------------------------------------------- */

static void on_wake(int signal)
{
    (void)signal;
}

static int install_wake(void)
{
    struct sigaction action = {.sa_handler = on_wake}; /* no SA_RESTART */
    sigset_t wake;

    sigemptyset(&wake);
    sigaddset(&wake, WAKE_SIGNAL);
    if (sigaction(WAKE_SIGNAL, &action, NULL) < 0)
        return -errno;
    return -pthread_sigmask(SIG_UNBLOCK, &wake, NULL);
}

static int read_requests(struct barfs_gate *gate, struct barfs_placement *placement)
{
    struct barfs_request *request = NULL;
    int error = 0;

    while (!atomic_load(&gate->dispatch.stopping)) {
        ssize_t length;

        if (!request)
            request = barfs_workers_get_request(&gate->dispatch.workers);
        if (!request) {
            error = -ENOMEM;
            break;
        }
        length = read(gate->dispatch.fuse_fd, request->message, sizeof request->message);
        if (length == 0)
            break; /* the peer closed a socket that replaces /dev/fuse */
        if (length < 0) {
            /* ENOENT: the request was interrupted before it was read. */
            if (errno == EINTR || errno == EAGAIN || errno == ENOENT)
                continue;
            /* ENODEV: unmounted or aborted; ECONNABORTED: aborted, under FUSE_ABORT_ERROR. */
            error = errno == ENODEV || errno == ECONNABORTED ? 0 : -errno;
            break;
        }
        request->length = (size_t)length;
        if (request->length < sizeof(struct fuse_in_header))
            continue;
        barfs_placement_note(placement,
                             (int32_t)((const struct fuse_in_header *)request->message)->pid);
        if (barfs_dispatch_request(&gate->dispatch, request))
            request = NULL;
    }
    if (request)
        barfs_workers_put_request(&gate->dispatch.workers, request);
    return error;
}

int barfs_gate_read_loop(struct barfs_gate *gate)
{
    struct barfs_placement placement;
    int error = install_wake();

    if (error)
        return error;
    gate->reader = pthread_self();
    atomic_store(&gate->reading, true);
    barfs_placement_begin(&placement);
    error = read_requests(gate, &placement);
    barfs_placement_end(&placement);
    pthread_mutex_lock(&gate->lock);
    atomic_store(&gate->reading, false);
    pthread_mutex_unlock(&gate->lock);
    return error;
}

int barfs_gate_reply_loop(struct barfs_gate *gate)
{
    unsigned char *message = malloc(BARFS_MESSAGE_SIZE);
    int error = message ? 0 : -ENOMEM;

    while (!error && !atomic_load(&gate->dispatch.stopping)) {
        const struct fuse_out_header *header = (const void *)message;
        ssize_t size = recv(gate->dispatch.forward_fd, message, BARFS_MESSAGE_SIZE, 0);

        if (size < 0 && errno == EINTR)
            continue;
        if (size <= 0) {
            error = size < 0 ? -errno : 0;
            break;
        }
        if ((size_t)size < sizeof *header)
            continue;
        if (header->unique == 0) {
            barfs_notify_push(&gate->notify, message, (size_t)size);
            continue;
        }
        barfs_dispatch_reply(&gate->dispatch, message, (size_t)size);
    }
    free(message);
    return error;
}

void barfs_gate_notify_loop(struct barfs_gate *gate)
{
    barfs_notify_run(&gate->notify);
}

void barfs_gate_watch_loop(struct barfs_gate *gate)
{
    barfs_workers_watch(&gate->dispatch.workers);
}

struct barfs_lane *barfs_gate_next_lane(struct barfs_gate *gate)
{
    return barfs_workers_next_lane(&gate->dispatch.workers);
}

bool barfs_gate_next_error(struct barfs_gate *gate, struct barfs_logged_error *logged)
{
    return barfs_error_log_next(&gate->dispatch.errors, logged);
}

bool barfs_gate_stop(struct barfs_gate *gate, int64_t timeout_ns)
{
    const struct timespec pause = barfs_timespec(WAKE_EVERY_NS);
    int64_t end = barfs_now_ns() + timeout_ns;

    atomic_store(&gate->dispatch.stopping, true);
    barfs_workers_stop(&gate->dispatch.workers);
    shutdown(gate->dispatch.forward_fd, SHUT_RDWR);
    barfs_notify_stop(&gate->notify);
    barfs_error_log_stop(&gate->dispatch.errors);
    /* The signal may arrive just before the reader sleeps, so repeat it until the reader leaves. */
    while (atomic_load(&gate->reading) && barfs_now_ns() < end) {
        pthread_mutex_lock(&gate->lock);
        if (atomic_load(&gate->reading))
            pthread_kill(gate->reader, WAKE_SIGNAL);
        pthread_mutex_unlock(&gate->lock);
        nanosleep(&pause, NULL);
    }
    return !atomic_load(&gate->reading);
}

void barfs_gate_abandon(struct barfs_gate *gate)
{
    atomic_store(&gate->dispatch.abandoned, true);
    barfs_workers_abandon(&gate->dispatch.workers);
}
