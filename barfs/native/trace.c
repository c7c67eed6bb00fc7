/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "trace.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "transfer.h"

enum { LINE = 256, WORD = 24 };

/* What an access can fail with (transfer.h). */
static const char *name_of(int error)
{
    switch (-error) {
    case ENODEV:
        return "ENODEV";
    case ETIMEDOUT:
        return "ETIMEDOUT";
    case EACCES:
        return "EACCES";
    case EINVAL:
        return "EINVAL";
    case EINTR:
        return "EINTR";
    default:
        return "EIO";
    }
}

static bool put(int fd, const char *line, int length)
{
    return write(fd, line, (size_t)length) == length;
}

static void format_value(char value[WORD], const struct barfs_traced *access)
{
    uint64_t little = 0;

    if (access->error != 0) {
        snprintf(value, WORD, "%s", name_of(access->error));
        return;
    }
    memcpy(&little, access->data, access->width);
    snprintf(value, WORD, "0x%0*" PRIx64, (int)(2 * access->width), le64toh(little));
}

void barfs_trace_access(struct barfs_trace *trace, const struct barfs_traced *access)
{
    char line[LINE], value[WORD], pid[WORD] = "-";
    struct timespec now;
    uint64_t lost;
    int length;

    clock_gettime(CLOCK_REALTIME, &now);
    if (access->pid != BARFS_PID_UNKNOWN)
        snprintf(pid, sizeof pid, "%d", access->pid ? access->pid : getpid());
    format_value(value, access);
    length = snprintf(line, sizeof line, "%lld.%06ld %s %s %c 0x%08" PRIx64 " %" PRIu32 " %s %s\n",
                      (long long)now.tv_sec, now.tv_nsec / 1000, pid, trace->name,
                      access->direction == BARFS_READ ? 'r' : 'w', access->offset, access->width, value,
                      access->kind == BARFS_MEMORY ? "mmap" : "pread");
    lost = atomic_exchange(&trace->lost, 0);
    if (lost != 0) {
        char note[LINE];

        if (!put(trace->fd, note,
                 snprintf(note, sizeof note, "# %" PRIu64 " lines of %s are lost\n", lost, trace->name))) {
            atomic_fetch_add(&trace->lost, lost + 1);
            return;
        }
    }
    if (!put(trace->fd, line, length))
        atomic_fetch_add(&trace->lost, 1);
}
