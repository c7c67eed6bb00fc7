/* SPDX-License-Identifier: MIT
 *
 * Accesses, a line each, as they are done.
 *
 *     1763800000.123456 4711 0000:01:00.0 bar0 r 0x00000010 4 0x00000001 mmap
 *     time, thread of the client (- unknown), device, region, r or w, offset, width,
 *     value (or the errno of an access that failed), and how: mmap or pread
 *
 * Rule 1: a line is one write() to a descriptor opened with O_APPEND: lines of several devices and
 *         threads do not mix, and are in the file when the client has its answer.
 * Rule 2: a line that could not be written is counted, and the count is written as soon as one can.
 */
#ifndef BARFS_TRACE_H
#define BARFS_TRACE_H

#include <stdatomic.h>
#include <stdint.h>

#include "guard.h"

enum { BARFS_MOST_TRACE_NAME = 64, BARFS_PID_UNKNOWN = -1 };

/* One region's. */
struct barfs_trace {
    int fd;
    char name[BARFS_MOST_TRACE_NAME]; /* "0000:01:00.0 bar0" */
    _Atomic uint64_t lost;
};

struct barfs_traced {
    uint64_t offset;
    const void *data; /* `width` bytes */
    uint32_t width;
    int32_t pid; /* 0: this process's own access */
    int direction, kind;
    int error; /* 0, or -errno */
};

BARFS_HIDDEN void barfs_trace_access(struct barfs_trace *trace, const struct barfs_traced *access);

#endif
