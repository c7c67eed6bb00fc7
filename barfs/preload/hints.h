/* SPDX-License-Identifier: MIT
 *
 * Why a region cannot be mapped: mmap() itself only says ENODEV.
 */
#ifndef BARFS_PRELOAD_HINTS_H
#define BARFS_PRELOAD_HINTS_H

#include <stdint.h>

#pragma GCC visibility push(hidden)

enum barfs_hint {
    BARFS_HINT_NO_OPTION,
    BARFS_HINT_NOT_REACHED,
    BARFS_HINT_NOT_ANSWERED,
    BARFS_HINT_REFUSED,
    BARFS_HINT_MALFORMED,
    BARFS_HINT_NO_WINDOW,
};

/* Each is printed once in a process, however often it tries. */
void barfs_hint(enum barfs_hint hint, const char *path, uint64_t offset);

/* The hint that an error of barfs_ask() deserves, if any. */
void barfs_hint_at_error(int error, const char *path);

#pragma GCC visibility pop
#endif
