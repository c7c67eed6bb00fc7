/* SPDX-License-Identifier: MIT
 *
 * From the outside in: barfs_transfer() and barfs_load()/barfs_store() validate a request
 * (validate.h) and enter; guarded() has the one sigsetjmp(); walk() goes from entry to entry; one
 * function per kind does the accesses of an entry.
 */
#define _GNU_SOURCE
#include "engine/transfer.h"
#include "engine/common.h"
#include "engine/sigbus.h"
#include "engine/trace.h"
#include "engine/validate.h"

#include <endian.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline))

/* A loop of one load and one store takes a third longer if it straddles a cache line (build.py
 * aligns loops, too). */
#define TIGHT __attribute__((noinline, aligned(64)))

static const uint64_t MOST_BETWEEN_LOOKS = 4096; /* accesses between two calls of look() */
static const uint64_t BATCH_WITHOUT_CLOCK = 256;
/* A batch this slow is followed by a single access. */
static const int64_t LONG_ACCESSES_NS = 20000;

/* A request in progress, in the stack frame of its entry point: what walk() stores here survives
 * the handler's jump out of walk(). */
struct request {
    const struct barfs_table *table;
    struct barfs_control *control;
    uint8_t *buffer;
    uint64_t offset, count;
    volatile uint64_t done;
    uint64_t limit; /* of the width of an access */
    enum barfs_direction direction;
    bool late; /* the last access exceeded the timeout */
    struct barfs_sigbus_frame frame;
    volatile uint32_t guarded_width; /* of the accesses that are armed now */
};

/* Record an access at `position` that ended with `error`, or 0. */
static void trace(const struct request *request, uint64_t position, uint32_t width,
                  enum barfs_kind kind, int error)
{
    if (request->table->trace == NULL || error == -EINTR)
        return;
    barfs_trace_access(
        request->table->trace,
        &(struct barfs_traced){.offset = position,
                               .data = request->buffer + (position - request->offset),
                               .width = width,
                               .pid = request->control->pid,
                               .direction = request->direction,
                               .kind = kind,
                               .error = error});
    /* Do not charge the device for a slow disk. */
    if (request->control->timeout_ns != 0 && error != -ETIMEDOUT)
        atomic_store_explicit(&request->control->since_ns, barfs_now_ns(), memory_order_relaxed);
}

/* ---- Early ends ------------------------------------------------------------------------------ */

void barfs_control_stop(struct barfs_control *control)
{
    atomic_store(&control->stop, 1);
}

static inline bool is_set(atomic_int *stop)
{
    return atomic_load_explicit(stop, memory_order_relaxed) != 0;
}

/* 0 if the transfer may make its next access. */
static int look(const struct request *request)
{
    if (is_set(&request->control->stop))
        return -EINTR;
    if (request->late)
        return -ETIMEDOUT;
    return barfs_inflight_closed(request->table->inflight) ? -ENODEV : 0;
}

/* The device has answered.  Returns how long that took; where accesses take turns, an answer to
 * another access counts, too. */
static int64_t answered(struct request *request, struct barfs_turns *turns)
{
    struct barfs_control *control = request->control;
    int64_t since = atomic_load_explicit(&control->since_ns, memory_order_relaxed);
    int64_t now = barfs_now_ns();

    if (turns) {
        int64_t other = atomic_load_explicit(&turns->answered_ns, memory_order_relaxed);

        since = other > since ? other : since;
        atomic_store_explicit(&turns->answered_ns, now, memory_order_relaxed);
    }
    atomic_store_explicit(&control->since_ns, now, memory_order_relaxed);
    return now - since;
}

static bool is_late(const struct request *request, int64_t took)
{
    return request->control->timeout_ns != 0 && took >= request->control->timeout_ns;
}

/* ---- Memory: the only accesses that fault ---------------------------------------------------- */

/* `accesses` loads or stores of one width between the device and the buffer, which need not be
 * aligned. They are separate functions so that `volatile` alone decides what the compiler emits:
 * exactly one mov of the width for each access, in order. */
#define DEFINE_ACCESSES(bits)                                                                      \
    static TIGHT void load##bits(const volatile uint8_t *base, uint8_t *buffer, uint64_t accesses) \
    {                                                                                              \
        const volatile uint##bits##_t *device = (const volatile void *)base;                       \
                                                                                                   \
        for (uint64_t i = 0; i < accesses; i++) {                                                  \
            uint##bits##_t value = device[i];                                                      \
                                                                                                   \
            memcpy(buffer + i * sizeof(value), &value, sizeof(value));                             \
        }                                                                                          \
    }                                                                                              \
    static TIGHT void store##bits(volatile uint8_t *base, const uint8_t *buffer,                   \
                                  uint64_t accesses)                                               \
    {                                                                                              \
        volatile uint##bits##_t *device = (volatile void *)base;                                   \
                                                                                                   \
        for (uint64_t i = 0; i < accesses; i++) {                                                  \
            uint##bits##_t value;                                                                  \
                                                                                                   \
            memcpy(&value, buffer + i * sizeof(value), sizeof(value));                             \
            device[i] = value;                                                                     \
        }                                                                                          \
    }

DEFINE_ACCESSES(8)
DEFINE_ACCESSES(16)
DEFINE_ACCESSES(32)
DEFINE_ACCESSES(64)

static void load(const volatile uint8_t *base, uint8_t *buffer, uint32_t width, uint64_t accesses)
{
    switch (width) {
    case 1:
        load8(base, buffer, accesses);
        break;
    case 2:
        load16(base, buffer, accesses);
        break;
    case 4:
        load32(base, buffer, accesses);
        break;
    default:
        load64(base, buffer, accesses);
        break;
    }
}

static void store(volatile uint8_t *base, const uint8_t *buffer, uint32_t width, uint64_t accesses)
{
    switch (width) {
    case 1:
        store8(base, buffer, accesses);
        break;
    case 2:
        store16(base, buffer, accesses);
        break;
    case 4:
        store32(base, buffer, accesses);
        break;
    default:
        store64(base, buffer, accesses);
        break;
    }
}

static void access_memory(struct request *request, volatile uint8_t *base, uint32_t width,
                          uint64_t accesses)
{
    uint8_t *buffer = request->buffer + request->done;

    request->guarded_width = width;
    barfs_sigbus_arm(&request->frame, base, width * accesses);
    if (request->direction == BARFS_READ)
        load(base, buffer, width, accesses);
    else
        store(base, buffer, width, accesses);
    barfs_sigbus_disarm();
    request->done += width * accesses;
}

/* look() runs between batches of accesses.  Reading the clock costs as much as fifty loads of RAM,
 * and next to nothing compared with one register: with a timeout, batches grow while they are fast
 * and shrink to one access after a slow one.  Only a batch of one shows that an access took too
 * long. */
static int walk_memory(struct request *request, const struct barfs_table_entry *entry, uint64_t end)
{
    uint32_t widths = barfs_widths_within(entry->widths, request->limit);
    uint32_t widest = barfs_widest_of(widths);
    uint64_t most = request->table->trace == NULL ? MOST_BETWEEN_LOOKS : 1;
    bool timed = request->control->timeout_ns != 0;
    uint64_t batch = timed ? 1 : barfs_min(BATCH_WITHOUT_CLOCK, most);

    for (;;) {
        uint64_t position = request->offset + request->done;
        uint64_t accesses;
        uint32_t width;
        int error;

        if (position == end)
            return 0;
        error = look(request);
        if (error != 0)
            return error;
        width = barfs_widest(position, end, widths);
        accesses = width == widest ? barfs_min(batch, (end - position) / width) : 1;
        access_memory(request, entry->base + (position - entry->start), width, accesses);
        if (timed) {
            int64_t took = answered(request, NULL);

            request->late = accesses == 1 && is_late(request, took);
            batch = took < LONG_ACCESSES_NS ? barfs_min(batch * 2, most) : 1;
        }
        trace(request, position, width, BARFS_MEMORY, 0);
    }
}

/* ---- One access by fd or by call ------------------------------------------------------------- */

static int access_fd(struct request *request, const struct barfs_table_entry *entry,
                     uint64_t position, uint32_t width)
{
    uint8_t *data = request->buffer + request->done;
    off_t place = (off_t)(entry->fd_offset + (position - entry->start));
    ssize_t count;

    for (;;) {
        count = request->direction == BARFS_READ ? pread(entry->fd, data, width, place)
                                                 : pwrite(entry->fd, data, width, place);
        if (count == (ssize_t)width)
            return 0;
        if (count >= 0)
            return -EIO; /* a partial access: the rest would be a second one */
        switch (errno) {
        case EINTR: /* before anything was done: no access yet */
            if (is_set(&request->control->stop))
                return -EINTR;
            continue;
        case ENODEV:
        case ETIMEDOUT:
        case EACCES:
            return -errno;
        default:
            return -EIO;
        }
    }
}

static int access_call(struct request *request, const struct barfs_table_entry *entry,
                       uint64_t position, uint32_t width)
{
    return entry->call(entry->context, position, width, request->direction,
                       request->buffer + request->done);
}

typedef int access_fn(struct request *, const struct barfs_table_entry *, uint64_t position,
                      uint32_t width);

static int walk_singly(struct request *request, const struct barfs_table_entry *entry, uint64_t end,
                       access_fn *access)
{
    uint32_t widths = barfs_widths_within(entry->widths, request->limit);
    bool timed = request->control->timeout_ns != 0 || entry->turns != NULL;

    for (;;) {
        uint64_t position = request->offset + request->done;
        uint32_t width;
        int error;

        if (position == end)
            return 0;
        error = look(request);
        if (error != 0)
            return error;
        width = barfs_widest(position, end, widths);
        error = access(request, entry, position, width);
        if (timed && error != -ETIMEDOUT && error != -EINTR)
            request->late = is_late(request, answered(request, entry->turns));
        trace(request, position, width, entry->kind, error);
        if (error != 0)
            return error < 0 ? error : -EIO;
        request->done += width;
    }
}

/* ---- A request ------------------------------------------------------------------------------- */

struct barfs_cost barfs_transfer_cost(const struct barfs_table *table, uint64_t offset,
                                      uint64_t count)
{
    struct barfs_cost cost = {0};
    const struct barfs_table_entry *entry;
    uint64_t end;

    if (offset >= table->size)
        return cost;
    end = offset + barfs_min(count, table->size - offset);
    for (entry = barfs_entry_at(table, offset); offset < end; entry++) {
        uint64_t part_end = barfs_min(entry->end, end);

        if (entry->kind == BARFS_FD)
            cost.fd_bytes += part_end - offset;
        else if (entry->kind == BARFS_CALL)
            cost.calls = true;
        offset = part_end;
    }
    return cost;
}

/* 0 if everything was done, else -errno. */
static NOINLINE int walk(struct request *request)
{
    const struct barfs_table_entry *entry = barfs_entry_at(request->table, request->offset);
    uint64_t request_end = request->offset + request->count;

    for (; request->done < request->count; entry++) {
        uint64_t end = barfs_min(entry->end, request_end);
        int error = -EACCES;

        if (!(entry->permission & 1u << request->direction))
            return -EACCES;
        atomic_store_explicit(&request->control->turns, entry->turns, memory_order_relaxed);
        switch (entry->kind) {
        case BARFS_MEMORY:
            error = walk_memory(request, entry, end);
            break;
        case BARFS_FD:
            error = walk_singly(request, entry, end, access_fd);
            break;
        case BARFS_CALL:
            error = walk_singly(request, entry, end, access_call);
            break;
        case BARFS_REFUSED:
            break;
        }
        if (error != 0)
            return error;
    }
    return 0;
}

/* This function keeps no locals: they are indeterminate after the jump. */
static NOINLINE int guarded(struct request *request)
{
    barfs_sigbus_prepare_thread();
    if (sigsetjmp(request->frame.env, 0) == 0)
        return walk(request);
    request->done += barfs_sigbus_done(&request->frame) & ~(uint64_t)(request->guarded_width - 1);
    if (request->control->timeout_ns != 0)
        answered(request, NULL);
    trace(request, request->offset + request->done, request->guarded_width, BARFS_MEMORY, -EIO);
    return -EIO;
}

static int64_t perform(const struct barfs_table *table, uint64_t offset, void *buffer,
                       uint64_t count, uint64_t limit, enum barfs_direction direction,
                       struct barfs_control *control)
{
    struct request request;
    int error;

    request.table = table;
    request.control = control;
    request.buffer = buffer;
    request.offset = offset;
    request.count = count;
    request.done = 0;
    request.limit = limit;
    request.direction = direction;
    request.late = false;
    error = guarded(&request);
    return request.done > 0 ? (int64_t)request.done : error;
}

int64_t barfs_transfer(const struct barfs_table *table, uint64_t offset, void *buffer,
                       uint64_t count, enum barfs_direction direction,
                       struct barfs_control *control)
{
    struct barfs_control own = {.timeout_ns = table->timeout_ns};
    struct barfs_validated valid = barfs_validate(table, offset, count, direction);
    int64_t result = valid.result;

    if (control == NULL) {
        control = &own;
        if (own.timeout_ns != 0)
            atomic_init(&own.since_ns, barfs_now_ns());
    }
    if (!barfs_inflight_enter(table->inflight))
        return barfs_inflight_error(table->inflight);
    if (valid.count != 0)
        result = perform(table, offset, buffer, valid.count, valid.limit, direction, control);
    barfs_inflight_leave(table->inflight);
    return result;
}

/* ---- Single accesses ------------------------------------------------------------------------- */

/* Returns 0 or -errno. */
static int64_t single(const struct barfs_table *table, uint64_t offset, void *buffer,
                      uint32_t width, enum barfs_direction direction)
{
    struct barfs_control unlimited = {.timeout_ns = 0};
    int64_t result = -EINVAL;

    if (!barfs_is_natural(offset, width) || offset >= table->size || width > table->size - offset)
        return -EINVAL;
    if (!barfs_inflight_enter(table->inflight))
        return barfs_inflight_error(table->inflight);
    if (!(barfs_entry_at(table, offset)->permission & 1u << direction))
        result = -EACCES;
    else if (barfs_is_denied(table, offset, width, direction))
        result = -EPERM;
    else if (barfs_is_one_access(table, offset, width))
        result = perform(table, offset, buffer, width, width, direction, &unlimited);
    barfs_inflight_leave(table->inflight);
    return result < 0 ? result : 0;
}

int64_t barfs_load(const struct barfs_table *table, uint64_t offset, uint32_t width,
                   uint64_t *value)
{
    uint64_t little = 0;
    int64_t result = single(table, offset, &little, width, BARFS_READ);

    if (result == 0)
        *value = le64toh(little);
    return result;
}

int64_t barfs_store(const struct barfs_table *table, uint64_t offset, uint32_t width,
                    uint64_t value)
{
    uint64_t little = htole64(value);

    return single(table, offset, &little, width, BARFS_WRITE);
}

int64_t barfs_load_narrow(const struct barfs_table *table, uint64_t offset, uint32_t width)
{
    uint64_t value = 0;
    int64_t result = width <= 4 ? barfs_load(table, offset, width, &value) : -EINVAL;

    return result == 0 ? (int64_t)value : result;
}
