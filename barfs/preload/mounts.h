/* SPDX-License-Identifier: MIT
 *
 * Finds the root of the barfs mount that a file is in.
 */
#ifndef BARFS_PRELOAD_MOUNTS_H
#define BARFS_PRELOAD_MOUNTS_H

#include <stdbool.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

struct barfs_found_mount {
    bool is_barfs;
    int root; /* an O_PATH descriptor to close, or -errno if the root cannot be opened from here */
};

/* The mount whose device number is major:minor.  The path of the file does not matter: it may be
 * that of a bind mount, be unreachable, or be longer than PATH_MAX.
 */
struct barfs_found_mount barfs_find_mount(uint32_t major, uint32_t minor);

#pragma GCC visibility pop
#endif
