/* SPDX-License-Identifier: MIT
 *
 * The engine: a request over a table of entries, split into accesses of an exact width.
 *
 * Rule 1: an access is one load or store instruction, one pread()/pwrite(), or one call, of exactly
 *         its width.  It is never wider, merged, speculative or repeated.
 * Rule 2: a request is clipped to the end of the region first.  If what is left is naturally aligned
 *         and 1, 2, 4 or 8 bytes long, its own length is the limit, else the table's width is.  Then,
 *         from the start: the widest access that is naturally aligned at its offset, fits the limit,
 *         the entry's max_width, the entry and the request.
 * Rule 3: the answer is the count of bytes done, or -errno when none was.  Nothing is undone.
 * Rule 4: nothing here knows Python, and nothing here allocates.  Any thread may call; the guard must
 *         be installed (sigbus.h) before a table with memory entries is used.
 *
 * Lifetimes: a table, what its entries point to and its in-flight count outlive every call on it.
 * barfs_inflight_drain() is how the owner knows that the last call is over.
 */
#ifndef BARFS_TRANSFER_H
#define BARFS_TRANSFER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/inflight.h"

#pragma GCC visibility push(hidden)

struct barfs_trace;

enum barfs_direction { BARFS_READ = 0, BARFS_WRITE = 1 };

/* Bit `1 << direction` of an entry's permission. */
enum barfs_permission { BARFS_MAY_READ = 1, BARFS_MAY_WRITE = 2 };

enum barfs_kind {
    BARFS_REFUSED, /* no access is possible; its permission is 0 */
    BARFS_MEMORY,  /* a mapped window: volatile, guarded loads and stores */
    BARFS_FD,      /* one pread()/pwrite() per access */
    BARFS_CALL,    /* one function call per access */
};

enum barfs_table_flags {
    BARFS_PORT = 1,        /* an I/O-port BAR: one access of 1, 2 or 4 bytes inside, or -EINVAL */
    BARFS_GUARD_READS = 2, /* a request that is not one access of its place: -EINVAL */
    BARFS_GUARD_WRITES = 4,
};

/* One access of a BARFS_CALL entry: `data` holds, or receives, `width` bytes in the device's order.
 * Returns 0, or -errno. */
typedef int barfs_call_fn(void *context, uint64_t offset, uint32_t width,
                          enum barfs_direction direction, void *data);

struct barfs_table_entry {
    uint64_t start, end; /* offsets in the region, half-open */
    enum barfs_kind kind;
    uint32_t permission;
    uint32_t max_width;     /* 1, 2, 4 or 8 */
    int fd;                 /* BARFS_FD */
    uint64_t fd_offset;     /* BARFS_FD: where `start` is in the fd */
    volatile uint8_t *base; /* BARFS_MEMORY: the address of `start`, congruent to it modulo 8 */
    barfs_call_fn *call;    /* BARFS_CALL */
    void *context;
    struct barfs_turns *turns; /* BARFS_CALL; NULL: its accesses wait for no others */
};

/* Accesses that take turns, from whatever thread: who waits for its turn waits for a device that
 * answers as long as it answers the others. */
struct barfs_turns {
    _Atomic int64_t answered_ns; /* CLOCK_MONOTONIC */
};

struct barfs_range {
    uint64_t start, end; /* offsets in the region, half-open */
};

/* In order, without overlap. */
struct barfs_ranges {
    uint64_t count;
    const struct barfs_range *ranges;
};

struct barfs_table {
    struct barfs_inflight *inflight;
    uint64_t size;  /* of the region, below 2^63 */
    uint32_t width; /* of the file: 1, 2, 4 or 8 */
    uint32_t flags;
    int64_t timeout_ns; /* how long the device may take for an access; 0: any time */
    uint64_t entry_count;
    const struct barfs_table_entry *entries; /* cover [0, size) in order, without gap or overlap */
    struct barfs_ranges denied[2];           /* by direction: no access touches any byte of these */
    struct barfs_trace *trace;               /* NULL: off */
};

/* What may end a transfer early, and how far it is.  `stop` is looked at before every access that
 * takes long, and at least every 4096 short ones.  An access that took longer than `timeout_ns` is the
 * last of its transfer; one that does not come back is for others to give up (workers.h). */
struct barfs_control {
    atomic_int stop;
    int64_t timeout_ns;       /* 0: none, and `since_ns` is not kept */
    _Atomic int64_t since_ns; /* CLOCK_MONOTONIC: from when on the device owes an answer */
    _Atomic(struct barfs_turns *) turns; /* of the entry that it is in */
    int32_t pid;                         /* for the trace: whose request it is */
};

/* Transfer `count` bytes at `offset`.  Returns the bytes done (fewer at the end of the region, or when
 * something below happened after the first), 0 for a read at or past the end, or:
 *   -EFBIG      a write at or past the end       -EACCES     the entry's permission lacks it
 *   -EIO        the device did not take it       -ENODEV     the device is closed
 *   -EINTR      control->stop                    -ETIMEDOUT  an access took longer than timeout_ns
 *   -ECHILD     the device is another process's, from which this one was forked
 *   -EINVAL     BARFS_PORT and BARFS_GUARD rules   -EPERM    the first access touches a denied byte
 * and what pread()/pwrite() (ENODEV, ETIMEDOUT, EACCES; anything else is EIO) or the call answered.
 * Without a `control`, the table's timeout holds. */
int64_t barfs_transfer(const struct barfs_table *table, uint64_t offset, void *buffer,
                       uint64_t count, enum barfs_direction direction,
                       struct barfs_control *control);

/* What a transfer would touch; nothing past the end of the region. */
struct barfs_cost {
    uint64_t fd_bytes; /* in BARFS_FD entries */
    bool calls;        /* a BARFS_CALL entry is among them */
};
struct barfs_cost barfs_transfer_cost(const struct barfs_table *table, uint64_t offset,
                                      uint64_t count);

/* Exactly one access of `width`, or an error as above; -EINVAL if it is misaligned, wider than the
 * entry's max_width, or crosses the edge of its entry or of the region.  Values are the host's
 * integers of the device's little-endian bytes. */
int64_t barfs_load(const struct barfs_table *table, uint64_t offset, uint32_t width,
                   uint64_t *value);
int64_t barfs_store(const struct barfs_table *table, uint64_t offset, uint32_t width,
                    uint64_t value);

/* barfs_load() of 1, 2 or 4 bytes: the value, or -errno. */
int64_t barfs_load_narrow(const struct barfs_table *table, uint64_t offset, uint32_t width);

/* Make every transfer under this control end before its next access. */
void barfs_control_stop(struct barfs_control *control);

#pragma GCC visibility pop

#endif
