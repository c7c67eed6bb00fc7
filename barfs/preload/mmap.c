/* SPDX-License-Identifier: MIT
 *
 * mmap() for the commands that `barfs run` starts: a shared mapping of a region's file.
 *
 * The kernel has none for files with direct I/O, and says ENODEV after all its other checks
 * (fs/fuse/file.c: fuse_file_mmap).  So each call goes to the kernel as it is, and only one that
 * fails like this on a file of a barfs mount is answered here, with a mapping in the shape of the
 * region: its windows, and between them an empty file, so that no mprotect() makes a gap accessible.
 *
 * Rule 1: a call that is not about a region has the effect, the result and the errno that it has
 *         without this library.
 * Rule 2: no memory allocation, no stdio, no lock that a fork or a signal handler could find held.
 * Rule 3: no descriptor is left open: a mapping keeps its file.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>

#include "preload/calls.h"
#include "preload/faults.h"
#include "preload/mappings.h"
#include "preload/mounts.h"
#include "preload/tell.h"

#define PUBLIC __attribute__((visibility("default")))

#ifndef MFD_NOEXEC_SEAL /* since 6.3, which may insist on it (vm.memfd_noexec) */
#define MFD_NOEXEC_SEAL 0x8U
#endif
#ifndef MAP_32BIT
#define MAP_32BIT 0
#endif

enum { PLACING = MAP_FIXED | MAP_FIXED_NOREPLACE | MAP_32BIT };

struct request {
    void *address;
    size_t length; /* whole pages */
    int protection, flags, fd;
    uint64_t offset;
};

static uint64_t whole_pages(uint64_t length)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

    return (length + page - 1) & ~(page - 1);
}

/* --- hints -------------------------------------------------------------------------------------- */

enum hint { NO_OPTION, NOT_REACHED, NOT_ANSWERED, REFUSED, MALFORMED, NO_WINDOW };

/* Each is given once, however often a program tries. */
static bool first_time(enum hint hint)
{
    static _Atomic unsigned given;

    return !(atomic_fetch_or(&given, 1U << hint) & 1U << hint);
}

static void hint_at(enum hint hint, const char *path, uint64_t offset)
{
    static const char *const texts[] = {
        [NO_OPTION] = "%w cannot be mapped: its mount was made without -o map",
        [NOT_REACHED] = "%w cannot be mapped: the root of its mount cannot be reached from here",
        [NOT_ANSWERED] = "%w cannot be mapped: its mount does not answer",
        [REFUSED] = "%w cannot be mapped: its mount lets only its owner and root do that",
        [MALFORMED] = "%w cannot be mapped: its mount is of another version of barfs",
        [NO_WINDOW] = "%n has no window there, and cannot be mapped; read it with: barfs md %w %x",
    };

    if (!first_time(hint))
        return;
    if (hint == NO_WINDOW)
        barfs_tell(texts[hint], path, path, offset);
    else
        barfs_tell(texts[hint], path);
}

static void hint_at_error(int error, const char *path)
{
    switch (error) {
    case ENXIO:
        hint_at(NO_OPTION, path, 0);
        break;
    case EHOSTUNREACH:
        hint_at(NOT_REACHED, path, 0);
        break;
    case ETIMEDOUT:
        hint_at(NOT_ANSWERED, path, 0);
        break;
    case EACCES:
        hint_at(REFUSED, path, 0);
        break;
    case EPROTO:
        hint_at(MALFORMED, path, 0);
        break;
    }
}

/* --- a mapping of a region ----------------------------------------------------------------------- */

/* A window's part of a request, at `start` from its beginning; `size` is 0 if there is none. */
struct part {
    uint64_t start, size, fd_offset;
};

static struct part part_of(const struct barfs_map_window *window, const struct request *request)
{
    uint64_t end = request->offset + request->length;
    uint64_t window_end = whole_pages(window->offset + window->size);
    uint64_t from = window->offset > request->offset ? window->offset : request->offset;
    uint64_t to = window_end < end ? window_end : end;

    if (from >= to)
        return (struct part){0};
    return (struct part){
        .start = from - request->offset,
        .size = to - from,
        .fd_offset = window->fd_offset + (from - window->offset),
    };
}

/* Whether a part of a window is asked for, and may be accessed like this: 0, ENODEV or EACCES. */
static int check(const struct barfs_map_reply *reply, const struct request *request)
{
    uint32_t wanted = (request->protection & PROT_READ ? BARFS_MAP_READ : 0U) |
                      (request->protection & PROT_WRITE ? BARFS_MAP_WRITE : 0U);
    int error = ENODEV;

    for (uint32_t i = 0; i < reply->windows; i++) {
        if (part_of(&reply->window[i], request).size == 0)
            continue;
        if (wanted & ~reply->window[i].access)
            return EACCES;
        error = 0;
    }
    return error;
}

/* A file that ends at 0, and always will: a touch of its mapping is a SIGBUS, whatever mprotect()
 * allows.
 */
static int open_gap(void)
{
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    int fd = (int)syscall(SYS_memfd_create, "barfs-gap", flags | MFD_NOEXEC_SEAL);

    if (fd < 0 && errno == EINVAL)
        fd = (int)syscall(SYS_memfd_create, "barfs-gap", flags);
    if (fd >= 0)
        syscall(SYS_fcntl, fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SEAL);
    return fd;
}

static void *reserve(const struct request *request)
{
    int fd = open_gap();
    void *base;

    if (fd < 0)
        return MAP_FAILED;
    base = call_mmap(request->address, request->length, PROT_NONE,
                     MAP_SHARED | MAP_NORESERVE | (request->flags & PLACING), fd, 0);
    call_close(fd);
    return base;
}

static bool map_windows(char *base, const struct barfs_mapping *mapping,
                        const struct request *request)
{
    int flags = MAP_SHARED | MAP_FIXED | (request->flags & ~(MAP_TYPE | PLACING));

    for (uint32_t i = 0; i < mapping->reply.windows; i++) {
        const struct barfs_map_window *window = &mapping->reply.window[i];
        struct part part = part_of(window, request);

        if (part.size > 0 &&
            call_mmap(base + part.start, (size_t)part.size, request->protection, flags,
                      mapping->descriptors.fd[window->fd], (int64_t)part.fd_offset) == MAP_FAILED)
            return false;
    }
    return true;
}

static void *map_parts(const struct barfs_mapping *mapping, const struct request *request)
{
    char *base = reserve(request);
    int error;

    if (base == MAP_FAILED)
        return base;
    if (map_windows(base, mapping, request))
        return base;
    error = errno;
    call_munmap(base, request->length);
    errno = error;
    return MAP_FAILED;
}

static void find_path(int fd, char path[PATH_MAX])
{
    char link[FD_LINK_SIZE];
    long length;

    fd_link(link, fd);
    length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[length > 0 ? length : 0] = 0;
}

/* What the kernel allows for mappings of the file, and mprotect() may not exceed. */
static int allowed(int fd)
{
    long flags = syscall(SYS_fcntl, fd, F_GETFL);

    return (flags & O_ACCMODE) == O_RDWR ? PROT_READ | PROT_WRITE : PROT_READ;
}

/* Fill in a mapping, and make it.  Returns MAP_FAILED and sets errno if that is impossible. */
static void *map_region(struct barfs_mapping *mapping, const struct request *request, int root,
                        uint64_t inode)
{
    void *base = MAP_FAILED;
    int error;

    find_path(request->fd, mapping->path);
    error = root < 0 ? -root : barfs_ask(root, inode, &mapping->reply, &mapping->descriptors);
    if (error == EMFILE || error == ENFILE || error == ENOMEM) {
        errno = error;
        return MAP_FAILED;
    }
    if (error) {
        hint_at_error(root < 0 ? EHOSTUNREACH : error, mapping->path);
        errno = ENODEV;
        return MAP_FAILED;
    }
    error = check(&mapping->reply, request);
    if (error == ENODEV)
        hint_at(NO_WINDOW, mapping->path, request->offset);
    if (error == 0)
        base = map_parts(mapping, request);
    else
        errno = error;
    barfs_descriptors_close(&mapping->descriptors);
    if (base == MAP_FAILED)
        return base;
    mapping->address = (uintptr_t)base;
    mapping->offset = request->offset;
    mapping->protection = allowed(request->fd);
    return base;
}

/* The answer to a request on a regular file that the kernel cannot map. */
static void *map_here(const struct request *request, const struct statx *file)
{
    struct barfs_found_mount mount = barfs_find_mount(file->stx_dev_major, file->stx_dev_minor);
    struct barfs_mapping *mapping = mount.is_barfs ? barfs_mapping_new() : NULL;
    void *base = MAP_FAILED;

    errno = ENODEV;
    if (mapping != NULL) {
        base = map_region(mapping, request, mount.root, file->stx_ino);
        if (base == MAP_FAILED) {
            barfs_mapping_drop(mapping);
        } else {
            barfs_mapping_forget((uintptr_t)base, (uintptr_t)base + request->length);
            barfs_mapping_publish(mapping, (uintptr_t)base, (uintptr_t)base + request->length);
            barfs_faults_watch();
        }
    }
    if (mount.root >= 0)
        call_close(mount.root);
    return base;
}

static bool is_regular(int fd, struct statx *found)
{
    return call_stat(fd, found) && S_ISREG(found->stx_mode);
}

/* Whether the kernel can map a file at all.  Asked before MAP_FIXED, which unmaps what is there even
 * if it then fails.
 */
static bool kernel_maps(const struct request *request)
{
    int flags = request->flags & ~(PLACING | MAP_POPULATE | MAP_LOCKED);
    void *base = call_mmap(NULL, request->length, request->protection, flags, request->fd,
                           (int64_t)request->offset);

    if (base == MAP_FAILED)
        return errno != ENODEV;
    call_munmap(base, request->length);
    return true;
}

static void *kernel_mmap(const struct request *request)
{
    void *base = call_mmap(request->address, request->length, request->protection, request->flags,
                           request->fd, (int64_t)request->offset);

    if (base != MAP_FAILED && request->flags & MAP_FIXED)
        barfs_mapping_forget((uintptr_t)base, (uintptr_t)base + whole_pages(request->length));
    return base;
}

static bool is_shared_file(const struct request *request)
{
    int type = request->flags & MAP_TYPE;

    return request->fd >= 0 && !(request->flags & MAP_ANONYMOUS) &&
           (type == MAP_SHARED || type == MAP_SHARED_VALIDATE);
}

static void *map(struct request request)
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
        base = map_here(&request, &file);
    } else {
        errno = ENODEV;
    }
    if (base != MAP_FAILED)
        errno = saved;
    return base;
}

/* --- what programs call -------------------------------------------------------------------------- */

PUBLIC void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    return map((struct request){address, length, protection, flags, fd, (uint64_t)offset});
}

PUBLIC void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset)
{
    return map((struct request){address, length, protection, flags, fd, (uint64_t)offset});
}

PUBLIC int munmap(void *address, size_t length)
{
    int result = call_munmap(address, length);

    if (result == 0)
        barfs_mapping_forget((uintptr_t)address, (uintptr_t)address + whole_pages(length));
    return result;
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

/* Not every device has an fsync, without which the kernel says EINVAL to MS_SYNC; there is nothing to
 * wait for.
 */
PUBLIC int msync(void *address, size_t length, int flags)
{
    uintptr_t start = (uintptr_t)address;

    pthread_testcancel();
    if (flags & MS_SYNC && barfs_mapping_find(start, start + length) != NULL)
        flags ^= MS_SYNC | MS_ASYNC;
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
    result = (void *)syscall(SYS_mremap, address, length, new_length, flags, new_address);
    if (result == MAP_FAILED)
        return result;
    if (is_region)
        barfs_mapping_forget(start + whole_pages(new_length), start + whole_pages(length));
    else if (flags & MREMAP_FIXED)
        barfs_mapping_forget((uintptr_t)result, (uintptr_t)result + whole_pages(new_length));
    return result;
}
