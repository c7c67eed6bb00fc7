/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "fuse/dispatch.h"
#include "engine/common.h"
#include "engine/exchange.h"
#include "engine/trace.h"
#include "engine/validate.h"
#include "fuse/handshake.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* A request that takes longer goes on in a lane; one that will take longer at the device's pace is
 * in a lane from its first byte.  As long as a short request takes altogether: others would notice
 * more. */
static const int64_t BUDGET_NS = BARFS_SLOW_NS;
/* If the last access took less, with the way to it, it may have been one of memory: then the budget
 * shows whether many are slow. */
static const int64_t PERHAPS_MEMORY_NS = 500;
static const uint64_t MOST_BYTES_HERE = 4096;
static const uint64_t MOST_FD_BYTES_HERE = 256;
static const uint64_t MOST_QUICK_BYTES = 256;
static const uint64_t MOST_SINGLE_BYTES = 8;
/* So many quick accesses in a row, made in a lane, show that a slow device no longer is. */
static const uint64_t PROOFS_OF_QUICKNESS = 16;
/* The wait for a reply holds up nothing here; but only a lane's requests are looked after. */
static const int64_t REPLY_PATIENCE_NS = 1000000;
static const int64_t MOST_OF_THE_TIME = 64; /* the others' share, to one of a device that is slow */

#ifndef FOPEN_PARALLEL_DIRECT_WRITES /* Linux 6.2; older kernels ignore it */
#define FOPEN_PARALLEL_DIRECT_WRITES (1 << 6)
#endif

static const uint32_t HEADER = sizeof(struct fuse_in_header);
_Static_assert(BARFS_PAYLOAD == sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in),
               "the data of a WRITE follows both headers");

/* ENOENT: the request was interrupted or aborted; drop the reply. */
static void send_reply(int fd, const void *message, size_t size)
{
    while (write(fd, message, size) < 0 && errno == EINTR)
        ;
}

static void reply(struct barfs_dispatch *dispatch, uint64_t unique, int64_t result,
                  const void *body, size_t size)
{
    struct fuse_out_header header = {
        .len = (uint32_t)(sizeof header + (result < 0 ? 0 : size)),
        /* The kernel rejects any other value, and keeps waiting. (fuse_dev_do_write) */
        .error = result < 0 ? (result > -512 ? (int32_t)result : -EIO) : 0,
        .unique = unique,
    };
    struct iovec parts[] = {
        {.iov_base = &header, .iov_len = sizeof header},
        {.iov_base = (void *)(uintptr_t)body, .iov_len = result < 0 ? 0 : size},
    };

    while (writev(dispatch->fuse_fd, parts, size ? 2 : 1) < 0 && errno == EINTR)
        ;
}

/* An interrupt is no error; nor is a refused read from the page cache, which the kernel repeats as
 * a plain read. */
static void log_error(struct barfs_dispatch *dispatch, const struct barfs_logged_error *logged)
{
    if (logged->error != EINTR && logged->error != EOPNOTSUPP)
        barfs_error_log_push(&dispatch->errors, logged);
}

/* The header of a read's reply goes directly before its data, so that one write() sends both. */
static void answer(void *context, struct barfs_request *request, int64_t result)
{
    struct barfs_dispatch *dispatch = context;

    if (result < 0) {
        struct barfs_logged_error logged = {
            .table = request->table,
            .operation = request->direction == BARFS_READ ? BARFS_LOG_READ : BARFS_LOG_WRITE,
            .error = (int)-result,
            .offset = request->offset,
            .count = request->count,
        };

        log_error(dispatch, &logged);
    }
    if (request->direction == BARFS_READ && result >= 0) {
        struct fuse_out_header header = {
            .len = (uint32_t)(sizeof header + (size_t)result),
            .unique = request->unique,
        };
        unsigned char *start = request->message + BARFS_PAYLOAD - sizeof header;

        memcpy(start, &header, sizeof header);
        send_reply(dispatch->fuse_fd, start, header.len);
    } else {
        struct fuse_write_out written = {.size = result < 0 ? 0 : (uint32_t)result};

        reply(dispatch, request->unique, result, &written, sizeof written);
    }
}

static void open_region(struct barfs_dispatch *dispatch, const struct barfs_inode *inode,
                        const struct barfs_request *request)
{
    const struct fuse_open_in *in = (const void *)(request->message + HEADER);
    struct fuse_open_out out = {.open_flags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES};
    uint32_t mode = in->flags & O_ACCMODE;
    uint32_t wanted =
        (mode == O_WRONLY ? 0 : BARFS_MAY_READ) | (mode == O_RDONLY ? 0 : BARFS_MAY_WRITE);
    int result = 0;

    if (atomic_load(&inode->removed) || barfs_inflight_closed(inode->table->inflight))
        result = -ENXIO;
    else if (wanted & ~inode->permission)
        result = -EACCES; /* root: the kernel does not check its opens */
    if (result < 0) {
        struct barfs_logged_error logged = {
            .table = inode->table,
            .operation = BARFS_LOG_OPEN,
            .error = -result,
        };

        log_error(dispatch, &logged);
    }
    reply(dispatch, request->unique, result, &out, sizeof out);
}

static struct barfs_lane *slow_device_lane(struct barfs_lanes *lanes,
                                           const struct barfs_request *request)
{
    return &lanes
                ->each[request->count > MOST_SINGLE_BYTES ? BARFS_SEVERAL_SLOW : BARFS_SINGLE_SLOW];
}

/* Whether the device would keep this thread beyond its budget. */
static bool is_slow(const struct barfs_lanes *lanes, const struct barfs_request *request,
                    int64_t now)
{
    int64_t pace = atomic_load_explicit(&lanes->pace.last_ns, memory_order_relaxed);
    int64_t accesses = (int64_t)(request->count / request->table->width);

    if (now < lanes->slow_until_ns ||
        atomic_load_explicit(&lanes->pace.quick, memory_order_relaxed) < PROOFS_OF_QUICKNESS)
        return true;
    return pace >= PERHAPS_MEMORY_NS && pace * accesses >= BUDGET_NS;
}

/* The lane for a transfer; NULL: do it on this thread. */
static struct barfs_lane *choose_lane(const struct barfs_inode *inode,
                                      const struct barfs_request *request, int64_t now)
{
    struct barfs_lanes *lanes = inode->lanes;
    struct barfs_lane *quick_calls = &lanes->each[BARFS_QUICK_CALLS];
    struct barfs_cost cost;

    cost = barfs_transfer_cost(request->table, request->offset, request->count);
    /* A message that this thread sends and leaves goes on in the lane: not behind a request that
     * waits there for the connection. */
    if (cost.calls && cost.exchanges && request->count <= MOST_SINGLE_BYTES &&
        atomic_load(&quick_calls->unfinished) == 0)
        return NULL;
    if (cost.calls)
        return request->count > MOST_QUICK_BYTES ? &lanes->each[BARFS_LONG_CALLS] : quick_calls;
    if (request->count > MOST_BYTES_HERE)
        return &lanes->each[BARFS_LONG];
    if (is_slow(lanes, request, now))
        return slow_device_lane(lanes, request);
    return cost.fd_bytes > MOST_FD_BYTES_HERE ? &lanes->each[BARFS_LONG] : NULL;
}

/* The lane for what this thread leaves of a request. */
static struct barfs_lane *lane_for_rest(struct barfs_lanes *lanes,
                                        const struct barfs_request *request)
{
    struct barfs_cost cost = barfs_transfer_cost(request->table, request->offset, request->count);

    return cost.calls ? &lanes->each[BARFS_QUICK_CALLS] : slow_device_lane(lanes, request);
}

/* After an access here that followed `quick` others.  The first slow one may have been the
 * scheduler's doing.  A device that is quick and slow in turns would hold up this thread over and
 * over: further ones keep it in its lanes until it has cost the others no more than a share of the
 * time. */
static void learn(struct barfs_lanes *lanes, uint64_t quick, int64_t now)
{
    int64_t took = atomic_load_explicit(&lanes->pace.last_ns, memory_order_relaxed);
    int64_t paid = (now - lanes->held_ns) / MOST_OF_THE_TIME;

    if (atomic_load_explicit(&lanes->pace.quick, memory_order_relaxed) >= quick)
        return;
    lanes->debt_ns = lanes->debt_ns > paid ? lanes->debt_ns - paid : 0;
    lanes->slow_until_ns = now + lanes->debt_ns * MOST_OF_THE_TIME;
    lanes->debt_ns += took;
    lanes->held_ns = now;
}

/* Wait for the reply to a message, for as long as there is nothing else to do. */
static bool await_reply(void *context, int fd)
{
    const struct barfs_dispatch *dispatch = context;
    const struct timespec patience = barfs_timespec(REPLY_PATIENCE_NS);
    struct pollfd polled[] = {
        {.fd = fd, .events = POLLIN},
        {.fd = dispatch->fuse_fd, .events = POLLIN},
    };

    return ppoll(polled, sizeof polled / sizeof *polled, &patience, NULL) > 0 && polled[0].revents;
}

/* Do it on this thread.  Returns whether something is left: the budget ran out, or a reply has not
 * come. */
static bool transfer_here(struct barfs_dispatch *dispatch, struct barfs_lanes *lanes,
                          struct barfs_request *request, int64_t now, int64_t *result)
{
    struct barfs_control *control = &request->control;
    uint64_t quick = atomic_load_explicit(&lanes->pace.quick, memory_order_relaxed);

    control->timeout_ns = request->table->timeout_ns;
    control->until_ns = now + BUDGET_NS;
    control->looked_ns = now;
    control->pace = &lanes->pace;
    control->paused = false;
    control->await = await_reply;
    control->await_context = dispatch;
    atomic_store_explicit(&control->since_ns, now, memory_order_relaxed);
    *result = barfs_transfer(request->table, request->offset, request->message + BARFS_PAYLOAD,
                             request->count, request->direction, control);
    learn(lanes, quick, control->looked_ns);
    if (control->paused && *result > 0)
        control->done = (uint64_t)*result;
    return control->paused;
}

/* A READ or WRITE of a region.  Returns whether a lane took the request. */
static bool transfer(struct barfs_dispatch *dispatch, const struct barfs_inode *inode,
                     struct barfs_request *request)
{
    int64_t now = barfs_now_ns();
    struct barfs_lane *lane;
    int64_t result;

    if (atomic_load(&inode->removed)) {
        answer(dispatch, request, -ENODEV);
        return false;
    }
    request->control.done = 0;
    lane = choose_lane(inode, request, now);
    if (lane) {
        struct barfs_validated valid =
            barfs_validate(request->table, request->offset, request->count, request->direction);

        /* A request that reaches no device does not wait for one. */
        if (valid.count == 0 && !barfs_inflight_closed(request->table->inflight)) {
            answer(dispatch, request, valid.result);
            return false;
        }
        barfs_lane_push(lane, request);
        return true;
    }
    if (transfer_here(dispatch, inode->lanes, request, now, &result) &&
        !atomic_load(&dispatch->abandoned)) {
        barfs_lane_push(lane_for_rest(inode->lanes, request), request);
        return true;
    }
    if (!atomic_load(&dispatch->abandoned))
        answer(dispatch, request, result);
    return false;
}

static bool read_region(struct barfs_dispatch *dispatch, const struct barfs_inode *inode,
                        struct barfs_request *request)
{
    const struct fuse_read_in *in = (const void *)(request->message + HEADER);

    request->direction = BARFS_READ;
    request->offset = in->offset;
    request->count = in->size < BARFS_MOST_DATA ? in->size : BARFS_MOST_DATA;
    if (!(in->read_flags & FUSE_READ_LOCKOWNER)) {
        answer(dispatch, request, -EOPNOTSUPP);
        return false;
    }
    return transfer(dispatch, inode, request);
}

static bool write_region(struct barfs_dispatch *dispatch, const struct barfs_inode *inode,
                         struct barfs_request *request)
{
    const struct fuse_write_in *in = (const void *)(request->message + HEADER);

    request->direction = BARFS_WRITE;
    request->offset = in->offset;
    request->count = in->size;
    if (request->length != BARFS_PAYLOAD + (size_t)in->size) {
        answer(dispatch, request, -EIO);
        return false;
    }
    return transfer(dispatch, inode, request);
}

static bool wants_answer(uint32_t opcode)
{
    return opcode != FUSE_FORGET && opcode != FUSE_BATCH_FORGET && opcode != FUSE_INTERRUPT &&
           opcode != FUSE_NOTIFY_REPLY;
}

/* Blocks while libfuse lags far behind, which never waits for the reader. */
static void forward(struct barfs_dispatch *dispatch, const struct barfs_request *request,
                    uint32_t opcode)
{
    while (send(dispatch->forward_fd, request->message, request->length, MSG_NOSIGNAL) < 0) {
        if (errno == EINTR && !atomic_load(&dispatch->stopping))
            continue;
        /* EMSGSIZE: longer than an unprivileged socket accepts; otherwise libfuse has closed its
         * end. */
        if (wants_answer(opcode))
            reply(dispatch, request->unique, errno == EMSGSIZE ? -E2BIG : -EIO, NULL, 0);
        return;
    }
}

/* The part of such a request that the gate reads, without a WRITE's data. */
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

bool barfs_dispatch_request(struct barfs_dispatch *dispatch, struct barfs_request *request)
{
    const struct fuse_in_header *header = (const void *)request->message;
    const struct barfs_inode *inode;

    request->unique = header->unique;
    request->control.pid = header->pid ? (int32_t)header->pid : BARFS_PID_UNKNOWN;
    if (header->len != request->length || request->length < needed_length(header->opcode)) {
        if (wants_answer(header->opcode))
            reply(dispatch, request->unique, -EIO, NULL, 0);
        return false;
    }
    if (header->opcode == FUSE_INTERRUPT) {
        const struct fuse_interrupt_in *in = (const void *)(request->message + HEADER);

        barfs_workers_interrupt(&dispatch->workers, in->unique);
        return false;
    }
    inode = barfs_inodes_find(&dispatch->inodes, header->nodeid);
    if (inode) {
        request->table = inode->table;
        switch (header->opcode) {
        case FUSE_READ:
            return read_region(dispatch, inode, request);
        case FUSE_WRITE:
            return write_region(dispatch, inode, request);
        case FUSE_OPEN:
            open_region(dispatch, inode, request);
            return false;
        case FUSE_RELEASE:
            reply(dispatch, request->unique, 0, NULL, 0);
            return false;
        default:
            break;
        }
    }
    if (header->opcode == FUSE_INIT) {
        barfs_handshake_request(request->message + HEADER);
        atomic_store(&dispatch->init_unique, header->unique);
    }
    forward(dispatch, request, header->opcode);
    return false;
}

void barfs_dispatch_reply(struct barfs_dispatch *dispatch, unsigned char *message, size_t size)
{
    const struct fuse_out_header *header = (const void *)message;

    if (header->unique == atomic_load(&dispatch->init_unique)) {
        atomic_store(&dispatch->init_unique, 0);
        barfs_handshake_reply(message + sizeof *header, size - sizeof *header);
    }
    send_reply(dispatch->fuse_fd, message, size);
}

int barfs_dispatch_init(struct barfs_dispatch *dispatch, int fuse_fd, int forward_fd)
{
    int error;

    memset(dispatch, 0, sizeof *dispatch);
    dispatch->fuse_fd = fuse_fd;
    dispatch->forward_fd = forward_fd;
    error = barfs_workers_init(&dispatch->workers, answer, dispatch);
    if (error)
        return error;
    error = barfs_error_log_init(&dispatch->errors);
    if (error)
        barfs_workers_destroy(&dispatch->workers);
    return error;
}

void barfs_dispatch_destroy(struct barfs_dispatch *dispatch)
{
    barfs_workers_destroy(&dispatch->workers);
    barfs_error_log_destroy(&dispatch->errors);
    barfs_inodes_clear(&dispatch->inodes);
}
