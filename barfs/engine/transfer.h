/* SPDX-License-Identifier: MIT
 *
 * The engine: splits a request over a table of entries into accesses of an exact width.
 *
 * Rule 1: an access is one load or store instruction, one pread()/pwrite(), or one call, of exactly
 *         its width.  It is never widened, merged, speculated or repeated.
 * Rule 2: a request is first clipped to the end of the region.  If the rest is naturally aligned
 *         and 1, 2, 4 or 8 bytes long, its own length is the limit, else the table's width is.
 *         Then, from the start: the widest access of the entry's widths that is naturally aligned
 *         at its offset and fits the limit, the entry and the request.  Where no width of an entry
 *         is within the limit, its narrowest takes the limit's place.  A request that cannot be
 *         made of such accesses to its end is refused before the first.
 * Rule 3: the result is the number of bytes done, or -errno if none were.  Nothing is undone.
 * Rule 4: no code here knows Python or allocates memory.  Any thread may call; the SIGBUS handler
 *         must be installed (sigbus.h) before a table with memory entries is used.
 *
 * Lifetimes: a table, everything its entries point to and its barfs_inflight outlive every call on
 * it. The owner waits for the last call with barfs_inflight_drain().
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
    BARFS_REFUSED, /* allows no access; its permission is 0 */
    BARFS_MEMORY,  /* a mapped window: volatile loads and stores that survive SIGBUS */
    BARFS_FD,      /* one pread()/pwrite() per access */
    BARFS_CALL,    /* one function call per access */
};

enum barfs_table_flags {
    BARFS_PORT = 1,        /* an I/O-port BAR: one access of 1, 2 or 4 bytes inside, or -EINVAL */
    BARFS_GUARD_READS = 2, /* a request that is not a single access there: -EINVAL */
    BARFS_GUARD_WRITES = 4,
    BARFS_WIDTHS = 8, /* an entry lacks a width that is narrower than its widest, or has none */
};

/* One access of a BARFS_CALL entry: `data` holds or receives `width` bytes in the device's order.
 * Returns 0 or -errno. */
typedef int barfs_call_fn(void *context, uint64_t offset, uint32_t width,
                          enum barfs_direction direction, void *data);

struct barfs_table_entry {
    uint64_t start, end; /* offsets in the region, half-open */
    enum barfs_kind kind;
    uint32_t permission;
    uint32_t widths;        /* of its accesses: the sum of some of 1, 2, 4 and 8; 0: none fits */
    int fd;                 /* BARFS_FD */
    uint64_t fd_offset;     /* BARFS_FD: where `start` is in the fd */
    volatile uint8_t *base; /* BARFS_MEMORY: the address of `start`, congruent to it modulo 8 */
    barfs_call_fn *call;    /* BARFS_CALL */
    void *context;
    struct barfs_turns *turns; /* BARFS_CALL; NULL: its accesses do not wait for others */
};

/* Accesses of several threads that take turns: while one waits for its turn, each answer to another
 * shows that the device is alive. */
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
    int64_t timeout_ns; /* limit for one access; 0: none */
    uint64_t entry_count;
    const struct barfs_table_entry *entries; /* cover [0, size) in order, without gap or overlap */
    struct barfs_ranges denied[2];           /* by direction: no access touches any byte of these */
    struct barfs_trace *trace;               /* NULL: off */
};

/* Ends a transfer early, and tells its progress.  The transfer checks `stop` before every slow
 * access, and at least once in 4096 fast ones.  An access that took longer than `timeout_ns` is the
 * last of its transfer; other threads give up an access that never returns (workers.h). */
struct barfs_control {
    atomic_int stop;
    int64_t timeout_ns;       /* 0: none, and `since_ns` is not kept */
    _Atomic int64_t since_ns; /* CLOCK_MONOTONIC: when the device began to owe an answer */
    _Atomic(struct barfs_turns *) turns; /* of the current entry */
    int32_t pid;                         /* the client's, for the trace */
};

/* Transfer `count` bytes at `offset`.  Returns the number of bytes done (fewer at the end of the
 * region, or if an error follows the first access), 0 for a read at or past the end, or:
 *   -EFBIG      a write at or past the end         -EACCES     the entry does not permit it
 *   -EIO        the device refused the access      -ENODEV     `inflight` is closed
 *   -EINTR      control->stop                      -ETIMEDOUT  an access exceeded timeout_ns
 *   -EINVAL     the BARFS_PORT and BARFS_GUARD rules, or the entries' widths
 *   -EPERM      the first access touches a denied byte
 *   -ECHILD     the device belongs to the process that this one was forked from
 * or the error of pread()/pwrite() (ENODEV, ETIMEDOUT, EACCES; any other becomes EIO) or of the
 * call. If `control` is NULL, the table's timeout applies. */
int64_t barfs_transfer(const struct barfs_table *table, uint64_t offset, void *buffer,
                       uint64_t count, enum barfs_direction direction,
                       struct barfs_control *control);

/* The cost of a transfer, up to the end of the region. */
struct barfs_cost {
    uint64_t fd_bytes; /* in BARFS_FD entries */
    bool calls;        /* it touches a BARFS_CALL entry */
};
struct barfs_cost barfs_transfer_cost(const struct barfs_table *table, uint64_t offset,
                                      uint64_t count);

/* Exactly one access of `width` bytes, or an error as above; -EINVAL if it is misaligned, of no
 * width of its entry, or crosses the end of its entry or of the region.  The device's bytes are
 * little-endian, `value` is in host order. */
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
