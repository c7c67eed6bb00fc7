/* SPDX-License-Identifier: MIT
 *
 * System calls by number.  mmap() may be called from a memory allocator before libc is ready, from
 * a signal handler, or with a cancellation pending; libc's own functions may be interposed by yet
 * another library, and many of them are cancellation points.
 */
#ifndef BARFS_PRELOAD_CALLS_H
#define BARFS_PRELOAD_CALLS_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline void *call_mmap(void *address, size_t length, int protection, int flags, int fd,
                              int64_t offset)
{
#ifdef SYS_mmap2
    if (offset & 0xfff) {
        errno = EINVAL;
        return MAP_FAILED;
    }
    if (offset < 0 || offset >> 12 > UINT32_MAX) {
        errno = EOVERFLOW;
        return MAP_FAILED;
    }
    return (void *)syscall(SYS_mmap2, address, length, protection, flags, fd, (long)(offset >> 12));
#else
    return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
#endif
}

static inline int call_munmap(void *address, size_t length)
{
    return (int)syscall(SYS_munmap, address, length);
}

static inline int call_open(int folder, const char *name, int flags)
{
    return (int)syscall(SYS_openat, folder, name, flags | O_CLOEXEC, 0);
}

static inline void call_close(int fd)
{
    int saved = errno;

    syscall(SYS_close, fd);
    errno = saved;
}

/* What the kernel knows of a file; a network or FUSE server is not asked. */
static inline bool call_stat(int fd, struct statx *found)
{
    return syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO,
                   found) == 0;
}

static inline uint64_t whole_pages(uint64_t length)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

    return (length + page - 1) & ~(page - 1);
}

#define BARFS_FD_LINK "/proc/thread-self/fd/"

enum { FD_LINK_SIZE = sizeof(BARFS_FD_LINK) + 10 /* digits of INT_MAX */ };

/* The name in /proc of a descriptor, and its length. */
static inline size_t fd_link(char link[FD_LINK_SIZE], int fd)
{
    size_t length = sizeof(BARFS_FD_LINK) - 1;
    char digits[10];
    size_t count = 0;

    memcpy(link, BARFS_FD_LINK, length);
    do
        digits[count++] = (char)('0' + fd % 10);
    while ((fd /= 10) > 0);
    while (count > 0)
        link[length++] = digits[--count];
    link[length] = 0;
    return length;
}

#endif
