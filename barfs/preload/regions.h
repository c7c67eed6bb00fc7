/* SPDX-License-Identifier: MIT
 *
 * The mapping of a region, in the region's shape: its windows, and between them an empty file, so
 * that no mprotect() makes a gap accessible.
 */
#ifndef BARFS_PRELOAD_REGIONS_H
#define BARFS_PRELOAD_REGIONS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>

#ifndef MAP_32BIT
#define MAP_32BIT 0
#endif

/* The flags of mmap() that say where. */
enum { PLACING = MAP_FIXED | MAP_FIXED_NOREPLACE | MAP_32BIT };

#pragma GCC visibility push(hidden)

/* The arguments of mmap(). */
struct barfs_request {
    void *address;
    size_t length; /* whole pages */
    int protection, flags, fd;
    uint64_t offset;
};

/* Map a file that the kernel would map but for its file system.  Returns the address, or MAP_FAILED
 * and sets errno, to ENODEV if it is no region.
 */
void *barfs_region_map(const struct barfs_request *request, const struct statx *file);

#pragma GCC visibility pop
#endif
