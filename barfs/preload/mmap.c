/* SPDX-License-Identifier: MIT
 *
 * mmap() for the commands that `barfs run` starts: a shared mapping of a region's file.
 *
 * The kernel has none for files with direct I/O, and says ENODEV after all its other checks
 * (fs/fuse/file.c: fuse_file_mmap).  So each call goes to the kernel as it is, and only one that
 * fails like this on a file of a barfs mount is answered here (regions.h).
 *
 * Rule 1: a call that is not about a region has the effect, the result and the errno that it has
 *         without this library.
 * Rule 2: no memory allocation, no stdio, no lock that a fork or a signal handler could find held.
 * Rule 3: no descriptor is left open: a mapping keeps its file.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>

#include "preload/calls.h"
#include "preload/mappings.h"
#include "preload/regions.h"

#define PUBLIC __attribute__((visibility("default")))

static bool is_regular(int fd, struct statx *found)
{
    return call_stat(fd, found) && S_ISREG(found->stx_mode);
}

/* Whether the kernel can map a file at all.  Asked before MAP_FIXED, which unmaps what is there
 * even if it then fails.
 */
static bool kernel_maps(const struct barfs_request *request)
{
    int flags = request->flags & ~(PLACING | MAP_POPULATE | MAP_LOCKED);
    void *base = call_mmap(NULL, request->length, request->protection, flags, request->fd,
                           (int64_t)request->offset);

    if (base == MAP_FAILED)
        return errno != ENODEV;
    call_munmap(base, request->length);
    return true;
}

static void *kernel_mmap(const struct barfs_request *request)
{
    void *base = call_mmap(request->address, request->length, request->protection, request->flags,
                           request->fd, (int64_t)request->offset);

    if (base != MAP_FAILED && request->flags & MAP_FIXED)
        barfs_mapping_forget((uintptr_t)base, (uintptr_t)base + whole_pages(request->length));
    return base;
}

static bool is_shared_file(const struct barfs_request *request)
{
    int type = request->flags & MAP_TYPE;

    return request->fd >= 0 && !(request->flags & MAP_ANONYMOUS) &&
           (type == MAP_SHARED || type == MAP_SHARED_VALIDATE);
}

static void *map(struct barfs_request request)
{
    int saved = errno;
    bool shared = is_shared_file(&request);
    struct statx file;
    void *base;

    if (shared && request.flags & MAP_FIXED && is_regular(request.fd, &file) &&
        !kernel_maps(&request)) {
        base = MAP_FAILED;
        errno = ENODEV;
    } else {
        errno = saved;
        base = kernel_mmap(&request);
    }
    if (base != MAP_FAILED || errno != ENODEV || !shared)
        return base;
    if (is_regular(request.fd, &file)) {
        request.length = whole_pages(request.length);
        base = barfs_region_map(&request, &file);
    } else {
        errno = ENODEV;
    }
    if (base != MAP_FAILED)
        errno = saved;
    return base;
}

PUBLIC void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    return map((struct barfs_request){address, length, protection, flags, fd, (uint64_t)offset});
}

PUBLIC void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset)
{
    return map((struct barfs_request){address, length, protection, flags, fd, (uint64_t)offset});
}

/* Forgotten first: once the kernel has the addresses, another thread may map a region there. */
PUBLIC int munmap(void *address, size_t length)
{
    uintptr_t start = (uintptr_t)address;

    if (start == whole_pages(start))
        barfs_mapping_forget(start, start + whole_pages(length));
    return call_munmap(address, length);
}

PUBLIC int mprotect(void *address, size_t length, int protection)
{
    uintptr_t start = (uintptr_t)address;
    const struct barfs_mapping *mapping = barfs_mapping_find(start, start + length);

    /* The descriptors of windows allow more than the region's own file. */
    if (mapping != NULL &&
        protection & (PROT_READ | PROT_WRITE | PROT_EXEC) & ~mapping->protection) {
        errno = EACCES;
        return -1;
    }
    return (int)syscall(SYS_mprotect, address, length, protection);
}

/* Not every device has an fsync, without which the kernel says EINVAL to MS_SYNC; there is nothing
 * to wait for.
 */
PUBLIC int msync(void *address, size_t length, int flags)
{
    uintptr_t start = (uintptr_t)address, end = start + length;
    const struct barfs_mapping *mapping;

    pthread_testcancel();
    if ((flags & (MS_SYNC | MS_ASYNC)) == MS_SYNC) {
        mapping = barfs_mapping_find(start, end);
        if (mapping != NULL && mapping->start <= start && end <= mapping->end)
            flags ^= MS_SYNC | MS_ASYNC;
    }
    return (int)syscall(SYS_msync, address, length, flags);
}

/* A mapping of a region may shrink.  Like one of device memory, it does not grow (VM_DONTEXPAND):
 * what follows a window in its file is not of the window.  It does not move, either: the kernel
 * moves one file's mapping at a time.
 */
PUBLIC void *mremap(void *address, size_t length, size_t new_length, int flags, ...)
{
    uintptr_t start = (uintptr_t)address;
    /* Length 0 asks for one more mapping of the same file. */
    bool is_region = barfs_mapping_find(start, start + (length ? length : 1)) != NULL;
    void *new_address = NULL, *result;
    va_list arguments;

    if (flags & MREMAP_FIXED) {
        va_start(arguments, flags);
        new_address = va_arg(arguments, void *);
        va_end(arguments);
    }
    if (is_region && (flags & ~MREMAP_MAYMOVE || whole_pages(new_length) > whole_pages(length))) {
        errno = EFAULT;
        return MAP_FAILED;
    }
    if (is_region && new_length > 0 && start == whole_pages(start))
        barfs_mapping_forget(start + whole_pages(new_length), start + whole_pages(length));
    result = (void *)syscall(SYS_mremap, address, length, new_length, flags, new_address);
    if (result != MAP_FAILED && flags & MREMAP_FIXED)
        barfs_mapping_forget((uintptr_t)result, (uintptr_t)result + whole_pages(new_length));
    return result;
}
