/* SPDX-License-Identifier: MIT
 *
 * Accesses, a line each, as they are done.
 *
 *     1763800000.123456 4711 0000:01:00.0 bar0 r 0x00000010 4 0x00000001 mmap
 *     time, thread of the client (- unknown), device, region, r or w, offset, width,
 *     value (or the errno of an access that failed), and how: mmap or pread
 *
 * Rule 1: a line is one write() to a descriptor opened with O_APPEND: lines of several devices, threads
 *         and mounts do not mix, and are in the file when the client has its answer.
 * Rule 2: a file that has reached its limit is moved to FILE.1, in place of what was there if that is a
 *         file, and a new one is begun, with its owner and mode. Who writes to the same file finds out
 *         by its own next line, since what it writes to has reached the limit as well.
 * Rule 3: what cannot be written, or moved, ends the trace, and nothing else: a last line says so if
 *         there is room, lines that come later are counted, and `told` wakes whoever logs it. No access
 *         waits, or fails, for its trace.
 */
#ifndef BARFS_TRACE_H
#define BARFS_TRACE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/transfer.h"

#pragma GCC visibility push(hidden)

enum { BARFS_MOST_TRACE_NAME = 64, BARFS_PID_UNKNOWN = -1 };

/* One device's. */
struct barfs_trace_file {
    int fd;   /* one number for ever: a new file takes it over */
    int told; /* an eventfd */
    uint64_t limit;
    const char *path, *older, *header;
    atomic_flag moving;
    _Atomic int error;
    _Atomic bool unmoved;
    _Atomic uint64_t missed;
};

/* One region's. */
struct barfs_trace {
    struct barfs_trace_file *file;
    char name[BARFS_MOST_TRACE_NAME]; /* "0000:01:00.0 bar0" */
};

struct barfs_traced {
    uint64_t offset;
    const void *data; /* `width` bytes */
    uint32_t width;
    int32_t pid; /* 0: this process's own access */
    enum barfs_direction direction;
    enum barfs_kind kind;
    int error; /* 0, or -errno */
};

/* Why the trace has ended, an errno; 0: it has not. */
int barfs_trace_error(struct barfs_trace_file *file);

/* Whether it has because the file could not be moved. */
bool barfs_trace_unmoved(struct barfs_trace_file *file);

/* How many accesses are not in it. */
uint64_t barfs_trace_missed(struct barfs_trace_file *file);

void barfs_trace_access(struct barfs_trace *trace, const struct barfs_traced *access);

#pragma GCC visibility pop

#endif
