/* SPDX-License-Identifier: MIT
 *
 * Another library in LD_PRELOAD, which counts the shared mappings that a program asks for, and
 * prints their number when it ends.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <sys/mman.h>

static int count;

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    static void *(*next)(void *, size_t, int, int, int, off_t);

    if (next == NULL)
        next = (void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, "mmap");
    count += (flags & MAP_SHARED) && fd >= 0;
    return next(address, length, protection, flags, fd, offset);
}

__attribute__((destructor)) static void print(void)
{
    fprintf(stderr, "other: %d\n", count);
}
