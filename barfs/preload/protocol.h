/* SPDX-License-Identifier: MIT
 *
 * What a process says to the socket of a mount with `-o map`, and the answer, in native byte order:
 * barfs/attached/wire.py has the same.  File descriptors come with the reply (SCM_RIGHTS).
 */
#ifndef BARFS_PRELOAD_PROTOCOL_H
#define BARFS_PRELOAD_PROTOCOL_H

#include <stddef.h>
#include <stdint.h>

/* A symbolic link to the socket, in the root of the mount. */
#define BARFS_MAP_NAME ".barfs-map"
#define BARFS_MAP_MAGIC "barfsmap"

enum {
    BARFS_MAP_VERSION = 1,
    BARFS_MAP_MOST_WINDOWS = 4096,
    BARFS_MAP_MOST_DESCRIPTORS = 253, /* the kernel's SCM_MAX_FD */
};

struct barfs_map_request {
    char magic[8];
    uint32_t version, flags;
    uint64_t inode; /* st_ino of the region's file */
};

enum barfs_map_access { BARFS_MAP_READ = 1, BARFS_MAP_WRITE = 2 };

/* Windows are in ascending order, and whole pages, apart from one that ends with its region. */
struct barfs_map_window {
    uint64_t offset, size; /* in the region */
    uint64_t fd_offset;
    uint32_t fd; /* which of the descriptors */
    uint32_t access;
};

struct barfs_map_reply {
    char magic[8];
    uint32_t version;
    uint32_t error; /* 0 or an errno */
    uint64_t size;  /* of the region */
    uint32_t windows, descriptors, flags, reserved;
    struct barfs_map_window window[BARFS_MAP_MOST_WINDOWS];
};

_Static_assert(sizeof(struct barfs_map_request) == 24, "no padding");
_Static_assert(sizeof(struct barfs_map_window) == 32, "no padding");
_Static_assert(offsetof(struct barfs_map_reply, window) == 40, "no padding");

#endif
