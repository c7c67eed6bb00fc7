/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "fuse/gate.h"
#include "engine/common.h"
#include "engine/sigbus.h"
#include "engine/validate.h"
#include "fuse/handshake.h"
#include "fuse/notify.h"
#include "fuse/error_log.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* Longer requests go to the slow lane.  An uncached load takes up to a microsecond on PCI Express: the
 * reader is never away for more than a millisecond or so. */
static const uint64_t MOST_BYTES_HERE = 4096;
static const uint64_t MOST_FD_BYTES_HERE = 256;
static const uint64_t MOST_QUICK_BYTES = 256;

/* Interrupts a read of /dev/fuse.  By default it is ignored, so it does no harm anywhere else. */
static const int WAKE_SIGNAL = SIGURG;
static const int64_t WAKE_EVERY_NS = 5000000;

#ifndef FOPEN_PARALLEL_DIRECT_WRITES /* Linux 6.2; older kernels ignore it */
#define FOPEN_PARALLEL_DIRECT_WRITES (1 << 6)
#endif

struct device {
    struct device *next;
    struct barfs_lanes lanes;
};

struct barfs_gate {
    int fuse_fd, forward_fd;
    atomic_bool stopping, abandoned;
    atomic_bool reading; /* cleared with the lock held, so that the reader is there to be woken */
    pthread_t reader;
    _Atomic uint64_t init_unique;
    struct barfs_workers workers;
    struct barfs_inodes inodes;
    struct device *devices;
    struct barfs_notify notify;
    struct barfs_error_log errors;
    pthread_mutex_t lock; /* of `reading` */
};

static const uint32_t HEADER = sizeof(struct fuse_in_header);
_Static_assert(BARFS_PAYLOAD == sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in),
               "data of a WRITE stands behind both headers");

/* ---- Answers ------------------------------------------------------------------------------------- */

/* A reply that the kernel does not want any more (ENOENT: interrupted or aborted) is nobody's loss. */
static void send_reply(int fd, const void *message, size_t size)
{
    while (write(fd, message, size) < 0 && errno == EINTR)
        ;
}

static void reply(struct barfs_gate *gate, uint64_t unique, int64_t result, const void *body,
                  size_t size)
{
    struct fuse_out_header header = {
        .len = (uint32_t)(sizeof header + (result < 0 ? 0 : size)),
        /* The kernel takes no others, and would wait for ever. (fuse_dev_do_write) */
        .error = result < 0 ? (result > -512 ? (int32_t)result : -EIO) : 0,
        .unique = unique,
    };
    struct iovec parts[] = {
        {.iov_base = &header, .iov_len = sizeof header},
        {.iov_base = (void *)(uintptr_t)body, .iov_len = result < 0 ? 0 : size},
    };

    while (writev(gate->fuse_fd, parts, size ? 2 : 1) < 0 && errno == EINTR)
        ;
}

/* An interrupted request was not refused; nor was a read of the page cache, which comes again as a
 * plain one. */
static void log_error(struct barfs_gate *gate, const struct barfs_logged_error *entry)
{
    if (entry->error != EINTR && entry->error != EOPNOTSUPP)
        barfs_error_log_push(&gate->errors, entry);
}

/* A read's header is put right in front of its data, so that the reply is one piece. */
static void answer(void *context, struct barfs_request *request, int64_t result)
{
    struct barfs_gate *gate = context;

    if (result < 0)
        log_error(gate, &(struct barfs_logged_error){request->table, request->direction, (int)-result,
                                           request->offset, request->count, 0});
    if (request->direction == BARFS_READ && result >= 0) {
        struct fuse_out_header header = {
            .len = (uint32_t)(sizeof header + (size_t)result),
            .unique = request->unique,
        };
        unsigned char *start = request->message + BARFS_PAYLOAD - sizeof header;

        memcpy(start, &header, sizeof header);
        send_reply(gate->fuse_fd, start, header.len);
    } else {
        struct fuse_write_out written = {.size = result < 0 ? 0 : (uint32_t)result};

        reply(gate, request->unique, result, &written, sizeof written);
    }
}

/* ---- Making, and what is registered ---------------------------------------------------------------- */

struct barfs_gate *barfs_gate_new(int fuse_fd, int forward_fd)
{
    struct barfs_gate *gate = calloc(1, sizeof *gate);
    int error;

    if (!gate)
        return NULL;
    gate->fuse_fd = fuse_fd;
    gate->forward_fd = forward_fd;
    error = barfs_sigbus_install();
    if (!error)
        error = barfs_workers_init(&gate->workers, answer, gate);
    if (!error)
        error = -pthread_mutex_init(&gate->lock, NULL);
    if (!error)
        error = barfs_notify_init(&gate->notify, fuse_fd);
    if (!error)
        error = barfs_error_log_init(&gate->errors);
    if (error) {
        free(gate);
        errno = -error;
        return NULL;
    }
    return gate;
}

void barfs_gate_free(struct barfs_gate *gate)
{
    barfs_workers_destroy(&gate->workers);
    barfs_notify_destroy(&gate->notify);
    barfs_error_log_destroy(&gate->errors);
    barfs_inodes_clear(&gate->inodes);
    while (gate->devices) {
        struct device *device = gate->devices;

        gate->devices = device->next;
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
    error = barfs_lanes_init(&device->lanes, &gate->workers);
    if (error) {
        free(device);
        errno = -error;
        return NULL;
    }
    device->next = gate->devices;
    gate->devices = device;
    return &device->lanes;
}

void barfs_gate_remove_device(struct barfs_gate *gate, struct barfs_lanes *lanes)
{
    (void)gate;
    barfs_lanes_stop(lanes);
}

int barfs_gate_add_region(struct barfs_gate *gate, uint64_t node_id, const struct barfs_table *table,
                          uint32_t permission, struct barfs_lanes *lanes)
{
    return barfs_inodes_add(&gate->inodes, node_id, table, permission, lanes);
}

void barfs_gate_remove_region(struct barfs_gate *gate, uint64_t node_id)
{
    struct barfs_inode *inode = barfs_inodes_find(&gate->inodes, node_id);

    if (inode)
        atomic_store(&inode->removed, true);
}

/* ---- Requests ---------------------------------------------------------------------------------------- */

static void open_region(struct barfs_gate *gate, const struct barfs_inode *inode,
                        const struct barfs_request *request)
{
    const struct fuse_open_in *in = (const void *)(request->message + HEADER);
    struct fuse_open_out out = {.open_flags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES};
    uint32_t mode = in->flags & O_ACCMODE;
    uint32_t wanted = (mode == O_WRONLY ? 0 : BARFS_MAY_READ) | (mode == O_RDONLY ? 0 : BARFS_MAY_WRITE);
    int result = 0;

    if (atomic_load(&inode->removed) || barfs_inflight_closed(inode->table->inflight))
        result = -ENXIO;
    else if (wanted & ~inode->permission)
        result = -EACCES; /* root, whom the kernel does not stop */
    if (result < 0)
        log_error(gate, &(struct barfs_logged_error){inode->table, BARFS_OPEN, -result, 0, 0, 0});
    reply(gate, request->unique, result, &out, sizeof out);
}

/* Where a transfer belongs: NULL, right here. */
static struct barfs_lane *choose_lane(const struct barfs_inode *inode, const struct barfs_request *request)
{
    struct barfs_lanes *lanes = inode->lanes;
    struct barfs_cost cost;

    cost = barfs_transfer_cost(request->table, request->offset, request->count);
    if (cost.calls)
        return request->count > MOST_QUICK_BYTES ? &lanes->patient : &lanes->quick;
    if (request->count > MOST_BYTES_HERE || cost.fd_bytes > MOST_FD_BYTES_HERE)
        return &lanes->slow;
    return NULL;
}

/* A READ or WRITE of a region.  Returns whether the request was given away. */
static bool transfer(struct barfs_gate *gate, const struct barfs_inode *inode, struct barfs_request *request)
{
    struct barfs_control none = {.pid = request->control.pid};
    struct barfs_lane *lane;
    int64_t result;

    if (atomic_load(&inode->removed)) {
        answer(gate, request, -ENODEV);
        return false;
    }
    lane = choose_lane(inode, request);
    if (lane) {
        struct barfs_validated valid =
            barfs_validate(request->table, request->offset, request->count, request->direction);

        /* What no device is asked for does not wait for one. */
        if (valid.count == 0 && !barfs_inflight_closed(request->table->inflight)) {
            answer(gate, request, valid.result);
            return false;
        }
        barfs_lane_push(lane, request);
        return true;
    }
    result = barfs_transfer(request->table, request->offset, request->message + BARFS_PAYLOAD,
                            request->count, request->direction, &none);
    if (!atomic_load(&gate->abandoned))
        answer(gate, request, result);
    return false;
}

static bool read_region(struct barfs_gate *gate, const struct barfs_inode *inode, struct barfs_request *request)
{
    const struct fuse_read_in *in = (const void *)(request->message + HEADER);

    request->direction = BARFS_READ;
    request->offset = in->offset;
    request->count = in->size < BARFS_MOST_DATA ? in->size : BARFS_MOST_DATA;
    if (!(in->read_flags & FUSE_READ_LOCKOWNER)) {
        answer(gate, request, -EOPNOTSUPP);
        return false;
    }
    return transfer(gate, inode, request);
}

static bool write_region(struct barfs_gate *gate, const struct barfs_inode *inode, struct barfs_request *request)
{
    const struct fuse_write_in *in = (const void *)(request->message + HEADER);

    request->direction = BARFS_WRITE;
    request->offset = in->offset;
    request->count = in->size;
    if (request->length != BARFS_PAYLOAD + (size_t)in->size) {
        answer(gate, request, -EIO);
        return false;
    }
    return transfer(gate, inode, request);
}

static bool wants_answer(uint32_t opcode)
{
    return opcode != FUSE_FORGET && opcode != FUSE_BATCH_FORGET && opcode != FUSE_INTERRUPT &&
           opcode != FUSE_NOTIFY_REPLY;
}

/* Blocks while libfuse is far behind; it never waits for the reader. */
static void forward(struct barfs_gate *gate, const struct barfs_request *request, uint32_t opcode)
{
    while (send(gate->forward_fd, request->message, request->length, MSG_NOSIGNAL) < 0) {
        if (errno == EINTR && !atomic_load(&gate->stopping))
            continue;
        /* Longer than an unprivileged socket takes, or nobody there any more. */
        if (wants_answer(opcode))
            reply(gate, request->unique, errno == EMSGSIZE ? -E2BIG : -EIO, NULL, 0);
        return;
    }
}

/* What the gate reads of a request of this kind, without a WRITE's data. */
static size_t needed_length(uint32_t opcode)
{
    switch (opcode) {
    case FUSE_READ:
        return HEADER + sizeof(struct fuse_read_in);
    case FUSE_WRITE:
        return HEADER + sizeof(struct fuse_write_in);
    case FUSE_OPEN:
        return HEADER + sizeof(struct fuse_open_in);
    case FUSE_INTERRUPT:
        return HEADER + sizeof(struct fuse_interrupt_in);
    case FUSE_INIT:
        return HEADER + offsetof(struct fuse_init_in, flags) + sizeof(uint32_t);
    default:
        return HEADER;
    }
}

/* A request that was read.  Returns whether it was given away. */
static bool handle(struct barfs_gate *gate, struct barfs_request *request)
{
    const struct fuse_in_header *header = (const void *)request->message;
    const struct barfs_inode *inode;

    request->unique = header->unique;
    request->control.pid = header->pid ? (int32_t)header->pid : BARFS_PID_UNKNOWN;
    if (header->len != request->length || request->length < needed_length(header->opcode)) {
        if (wants_answer(header->opcode))
            reply(gate, request->unique, -EIO, NULL, 0);
        return false;
    }
    if (header->opcode == FUSE_INTERRUPT) {
        const struct fuse_interrupt_in *in = (const void *)(request->message + HEADER);

        barfs_workers_interrupt(&gate->workers, in->unique);
        return false;
    }
    inode = barfs_inodes_find(&gate->inodes, header->nodeid);
    if (inode) {
        request->table = inode->table;
        switch (header->opcode) {
        case FUSE_READ:
            return read_region(gate, inode, request);
        case FUSE_WRITE:
            return write_region(gate, inode, request);
        case FUSE_OPEN:
            open_region(gate, inode, request);
            return false;
        case FUSE_RELEASE:
            reply(gate, request->unique, 0, NULL, 0);
            return false;
        default:
            break;
        }
    }
    if (header->opcode == FUSE_INIT) {
        barfs_handshake_request(request->message + HEADER);
        atomic_store(&gate->init_unique, header->unique);
    }
    forward(gate, request, header->opcode);
    return false;
}

/* ---- Threads ---------------------------------------------------------------------------------------- */

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

static int read_requests(struct barfs_gate *gate)
{
    struct barfs_request *request = NULL;
    int error = 0;

    while (!atomic_load(&gate->stopping)) {
        ssize_t length;

        if (!request)
            request = barfs_workers_get_request(&gate->workers);
        if (!request) {
            error = -ENOMEM;
            break;
        }
        length = read(gate->fuse_fd, request->message, sizeof request->message);
        if (length == 0)
            break; /* the other end of a socket in the place of /dev/fuse */
        if (length < 0) {
            /* ENOENT: the request was interrupted before it was read. */
            if (errno == EINTR || errno == EAGAIN || errno == ENOENT)
                continue;
            /* ENODEV, or with FUSE_ABORT_ERROR the other: unmounted, or the connection was aborted. */
            error = errno == ENODEV || errno == ECONNABORTED ? 0 : -errno;
            break;
        }
        request->length = (size_t)length;
        if (request->length >= HEADER && handle(gate, request))
            request = NULL;
    }
    if (request)
        barfs_workers_put_request(&gate->workers, request);
    return error;
}

int barfs_gate_read_loop(struct barfs_gate *gate)
{
    int error = install_wake();

    if (error)
        return error;
    gate->reader = pthread_self();
    atomic_store(&gate->reading, true);
    error = read_requests(gate);
    pthread_mutex_lock(&gate->lock);
    atomic_store(&gate->reading, false);
    pthread_mutex_unlock(&gate->lock);
    return error;
}

int barfs_gate_reply_loop(struct barfs_gate *gate)
{
    unsigned char *message = malloc(BARFS_MESSAGE_SIZE);
    int error = message ? 0 : -ENOMEM;

    while (!error && !atomic_load(&gate->stopping)) {
        const struct fuse_out_header *header = (const void *)message;
        ssize_t size = recv(gate->forward_fd, message, BARFS_MESSAGE_SIZE, 0);

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
        if (header->unique == atomic_load(&gate->init_unique)) {
            atomic_store(&gate->init_unique, 0);
            barfs_handshake_reply(message + sizeof *header, (size_t)size - sizeof *header);
        }
        send_reply(gate->fuse_fd, message, (size_t)size);
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
    barfs_workers_watch(&gate->workers);
}

struct barfs_lane *barfs_gate_next_lane(struct barfs_gate *gate)
{
    return barfs_workers_next_lane(&gate->workers);
}

bool barfs_gate_next_error(struct barfs_gate *gate, struct barfs_logged_error *entry)
{
    return barfs_error_log_next(&gate->errors, entry);
}

bool barfs_gate_stop(struct barfs_gate *gate, int64_t timeout_ns)
{
    const struct timespec pause = barfs_timespec(WAKE_EVERY_NS);
    int64_t end = barfs_now_ns() + timeout_ns;

    atomic_store(&gate->stopping, true);
    barfs_workers_stop(&gate->workers);
    shutdown(gate->forward_fd, SHUT_RDWR);
    barfs_notify_stop(&gate->notify);
    barfs_error_log_stop(&gate->errors);
    /* The signal may come just before the reader goes to sleep, so it is sent until it has left. */
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
    atomic_store(&gate->abandoned, true);
    barfs_workers_abandon(&gate->workers);
}
