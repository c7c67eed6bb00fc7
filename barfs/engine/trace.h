/* SPDX-License-Identifier: MIT
 *
 * Writes one line for each access.
 *
 *     1763800000.123456 4711 0000:01:00.0 bar0 r 0x00000010 4 0x00000001 mmap
 *     time, thread of the client (- unknown), device, region, r or w, offset, width,
 *     value (or the errno of a failed access), and how it was made: mmap or pread
 *
 * Rule 1: a line is one write() to a descriptor opened with O_APPEND: lines of several devices,
 *         threads and mounts do not mix, and a line is in the file before the client has its
 *         answer.
 * Rule 2: a file that reaches its limit is renamed to FILE.1, replacing a regular file of that
 *         name, and a new one is begun with its owner and mode.  Another process that writes to the
 *         same file notices at its next line, since the file it writes to is also at its limit.
 * Rule 3: a line that cannot be written, or a file that cannot be renamed, ends the trace and
 *         nothing else: a last line says so if there is room, later lines are counted, and `told`
 *         wakes the thread that logs it.  No access waits or fails because of its trace.
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
    int fd;   /* keeps its number: dup3() puts each new file here */
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

/* The errno that ended the trace; 0 while it goes on. */
int barfs_trace_error(struct barfs_trace_file *file);

/* Whether it ended because the file could not be renamed. */
bool barfs_trace_unmoved(struct barfs_trace_file *file);

/* The number of accesses that are missing from it. */
uint64_t barfs_trace_missed(struct barfs_trace_file *file);

void barfs_trace_access(struct barfs_trace *trace, const struct barfs_traced *access);

#pragma GCC visibility pop

#endif
